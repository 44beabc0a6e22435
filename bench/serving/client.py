"""One streamed request to a server of the OpenAI API, and when each piece of its answer came."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec

_PREFIX = b"data:"
_DONE = b"[DONE]"


@dataclass
class Answer:
    """Times are seconds of time.perf_counter(). error: why there is no whole answer, else empty."""

    kind: str
    sent: float
    times: list[float] = field(default_factory=list)  # of each piece of text
    text: str = ""
    num_prompt_tokens: int = 0
    num_tokens: int = 0
    num_cached_tokens: int = 0
    has_usage: bool = False
    error: str = ""

    @property
    def ttft(self) -> float:
        return self.times[0] - self.sent

    @property
    def e2e(self) -> float:
        return self.times[-1] - self.sent

    @property
    def tpot(self) -> float | None:
        """Seconds per token after the first one; None for an answer of one token."""
        return (self.e2e - self.ttft) / (self.num_tokens - 1) if self.num_tokens > 1 else None

    @property
    def itls(self) -> list[float]:
        """Seconds between pieces. A server may put several tokens into one."""
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]


def session() -> aiohttp.ClientSession:
    """Any number of connections, each for one request: servers differ in when they close one."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))


class Client:
    """Talks to one endpoint; `is_chat` decides whether it takes messages or one text."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        url: str,
        is_chat: bool,
        body: dict[str, Any],
        api_key: str | None,
    ) -> None:
        """body: what every request has, such as the model's name."""
        self.is_chat = is_chat
        self._http, self._url, self._body = http, url, body
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"

    async def ask(self, prompt: str | list[dict[str, str]], max_tokens: int, kind: str) -> Answer:
        """Send and read to the end. Failures are in the answer, not raised."""
        body = msgspec.json.encode(
            {
                **self._body,
                "messages" if self.is_chat else "prompt": prompt,
                "max_tokens": max_tokens,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        )
        answer = Answer(kind, time.perf_counter())
        try:
            async with self._http.post(self._url, data=body, headers=self._headers) as response:
                if response.status != 200:
                    answer.error = f"status {response.status}: {(await response.text())[:300]}"
                    return answer
                await self._read(response, answer)
        except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError) as error:
            answer.error = f"{type(error).__name__}: {error}"
        if not answer.error and not answer.times:
            answer.error = "the answer has no text and no end"
        return answer

    async def _read(self, response: aiohttp.ClientResponse, answer: Answer) -> None:
        pieces: list[str] = []
        end = 0.0
        async for line in response.content:
            data = line.strip()
            if not data.startswith(_PREFIX) or data.endswith(_DONE):
                continue
            now = time.perf_counter()
            event = msgspec.json.decode(data[len(_PREFIX) :])
            if error := event.get("error"):
                answer.error = str(
                    error.get("message", error) if isinstance(error, dict) else error
                )
                return
            if usage := event.get("usage"):
                _take_usage(answer, usage)
            for choice in event.get("choices") or ():
                piece = self._text(choice)
                end = now
                if piece:
                    answer.times.append(now)
                    pieces.append(piece)
        if end and not answer.times:  # an answer of special tokens alone
            answer.times.append(end)
        answer.text = "".join(pieces)
        if not answer.has_usage:
            answer.num_tokens = len(answer.times)

    def _text(self, choice: dict[str, Any]) -> str:
        if not self.is_chat:
            return choice.get("text") or ""
        delta = choice.get("delta") or {}
        return (
            delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning") or ""
        )


def _take_usage(answer: Answer, usage: dict[str, Any]) -> None:
    answer.has_usage = True
    answer.num_prompt_tokens = usage.get("prompt_tokens") or 0
    answer.num_tokens = usage.get("completion_tokens") or 0
    details = usage.get("prompt_tokens_details") or {}
    answer.num_cached_tokens = details.get("cached_tokens") or 0
