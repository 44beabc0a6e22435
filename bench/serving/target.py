"""What a server of the OpenAI API says of itself: whether it is ready, its model, its tokens."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from typing import Any

from bench.serving.words import Count
from sandwich.errors import SandwichError

POLL_SECONDS = 0.2
TIMEOUT_SECONDS = 60.0


class BenchServeError(SandwichError):
    """The server cannot be measured: it is not there, not ready or says what cannot be used."""


class Target:
    """One server. All calls block."""

    def __init__(self, base_url: str, api_key: str | None) -> None:
        self.base_url = base_url.rstrip("/")
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def wait_until_ready(self, seconds: float) -> None:
        """Return once it lists its models; BenchServeError if it does not within that time."""
        end = time.monotonic() + seconds
        while True:
            try:
                self._call("/v1/models")
                return
            except urllib.error.HTTPError as error:
                said = f"{error.code} {error.reason}"
                if error.code in (401, 403):
                    raise BenchServeError(
                        f"{self.base_url} refuses the key ({said}); give it with --api-key"
                    ) from error
            except (OSError, ValueError) as error:
                said = str(error)
            if time.monotonic() > end:
                raise BenchServeError(
                    f"no server at {self.base_url} was ready within {seconds:g} s ({said}); start "
                    "one (`sandwich serve`), or name it with --base-url"
                )
            time.sleep(POLL_SECONDS)

    def models(self) -> dict[str, int | None]:
        """Name -> tokens of its longest sequence, where the server says so."""
        cards = self._call("/v1/models").get("data") or []
        if not cards:
            raise BenchServeError(f"{self.base_url} lists no model; name one with --model")
        return {card["id"]: card.get("max_model_len") for card in cards}

    def counter(self, model: str) -> Count | None:
        """A function that has the server count tokens; None if it has no /tokenize."""

        for body_of in (_as_vllm, _as_llama_cpp):
            count = self._counter(partial(body_of, model))
            try:
                if count(" the") > 0:
                    return count
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return None

    def _counter(self, body_of: Callable[[str], dict[str, Any]]) -> Count:
        return lambda text: len(self._call("/tokenize", body_of(text))["tokens"])

    def _call(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """GET, or POST of a body. OSError or ValueError for what is no JSON object."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base_url + path, data, self._headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            answer = json.load(response)
        if not isinstance(answer, dict):
            raise ValueError(f"{path} answered no object")
        return answer


def _as_vllm(model: str, text: str) -> dict[str, Any]:
    return {"model": model, "prompt": text}


def _as_llama_cpp(_: str, text: str) -> dict[str, Any]:
    return {"content": text}
