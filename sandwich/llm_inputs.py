"""What callers of the Python API pass -> prompts, parameters and options, or a typed error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from sandwich.config import EngineConfig
from sandwich.errors import InvalidRequestError
from sandwich.foreign_options import without_foreign_options
from sandwich.options import options
from sandwich.requests.sampling_params import SamplingParams

TokenIds = Sequence[int]
# Text, token ids, {"prompt": text} or {"prompt_token_ids": [...]}.
Prompt = str | TokenIds | Mapping[str, Any]

_PROMPT_KEYS: Final = {"prompt", "prompt_token_ids"}


def engine_config(model: str, given: Mapping[str, Any]) -> EngineConfig:
    """The configuration that keyword arguments ask for; names are those of the flags.

    Raises ConfigError for a name that nobody knows, or a value that is out of range.
    """
    own = without_foreign_options(
        given, options(EngineConfig), spelling=lambda name: name.replace("-", "_")
    )
    return EngineConfig(model=model, **{name.replace("-", "_"): own[name] for name in own})


def listed_prompts(
    prompts: Prompt | Sequence[Prompt] | None, prompt_token_ids: object = None
) -> list[Any]:
    """Every prompt of a call. `prompt_token_ids`: a list of ids, or of such lists, instead."""
    if prompts is None and prompt_token_ids is not None:
        prompts = prompt_token_ids  # type: ignore[assignment]
    elif prompt_token_ids is not None:
        raise InvalidRequestError(
            "both prompts and prompt_token_ids are given; give one", "prompt_token_ids"
        )
    if isinstance(prompts, str | Mapping) or _are_token_ids(prompts):
        return [prompts]
    if isinstance(prompts, bytes) or not isinstance(prompts, Sequence | np.ndarray):
        raise InvalidRequestError(
            f"prompts is {str(prompts)[:80]!r} ({type(prompts).__name__}) but must be a text, "
            "token ids, or a list of these",
            "prompts",
        )
    return list(prompts)


def read_prompt(index: int, prompt: object) -> tuple[str | None, list[int] | None]:
    """(text, token ids) of one prompt; exactly what was given. InvalidRequestError if unusable."""
    if isinstance(prompt, str):
        return prompt, None
    if _are_token_ids(prompt):
        return None, [int(i) for i in prompt]  # type: ignore[attr-defined]
    if isinstance(prompt, Mapping) and prompt and set(prompt) <= _PROMPT_KEYS:
        text, token_ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
        if token_ids is None and isinstance(text, str):
            return text, None
        if token_ids is not None and all(isinstance(i, int | np.integer) for i in token_ids):
            return text, [int(i) for i in token_ids]
    raise InvalidRequestError(
        f"prompt {index} is {str(prompt)[:80]!r} but must be text, a list of token ids, "
        '{"prompt": text} or {"prompt_token_ids": [whole numbers]}',
        "prompt",
    )


def _are_token_ids(value: object) -> bool:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Sequence | np.ndarray):
        return False
    return len(value) > 0 and all(
        isinstance(i, int | np.integer) and not isinstance(i, bool) for i in value
    )


def checked_params(params: object) -> SamplingParams:
    """`params`, or InvalidRequestError that says what to write instead."""
    if isinstance(params, SamplingParams):
        return params
    hint = "write SamplingParams(**{...})" if isinstance(params, Mapping) else "leave it out"
    raise InvalidRequestError(
        f"sampling_params is {str(params)[:80]!r} ({type(params).__name__}) but must be a "
        f"SamplingParams or a list of them; {hint}",
        "sampling_params",
    )
