"""From a typed body to what the engine takes: prompts, messages, sampling parameters.

Checks what types cannot say: ranges, limits, combinations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import UNSET

from sandwich.errors import InvalidRequestError
from sandwich.requests.sampling_params import MAX_LOGPROBS, SamplingParams
from sandwich.server.guided import asked_grammar
from sandwich.server.protocol import ChatBody, CompletionBody, SamplingBody, TokenizeBody
from sandwich.server.server_limits import ServerLimits
from sandwich.text.messages import Chat

Prompt = str | list[int]

# Fields of a body that go to SamplingParams as they are.
_SAMPLING_FIELDS = (
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
    "stop_token_ids",
    "min_tokens",
    "ignore_eos",
    "include_stop_str_in_output",
)


def split_prompts(
    prompt: str | Sequence[int | str | list[int]], limits: ServerLimits, param: str = "prompt"
) -> list[Prompt]:
    """The prompts that the field `param` holds: a text, token ids, or a list of either."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise InvalidRequestError(f"{param} is an empty list; give it a text or tokens", param)
    if all(isinstance(item, int) for item in prompt):
        return [prompt]  # type: ignore[list-item]
    _at_most(param, "prompts", len(prompt), limits.max_prompts)
    if all(isinstance(item, str) for item in prompt) or all(
        isinstance(item, list) for item in prompt
    ):
        return prompt  # type: ignore[return-value]
    raise InvalidRequestError(
        f"{param} mixes texts, token ids and lists; use one kind", param, "invalid_type"
    )


def completion_params(
    body: CompletionBody, defaults: Mapping[str, Any], limits: ServerLimits
) -> SamplingParams:
    """Sampling parameters of a text completion; `echo` extends `logprobs` to the prompt."""
    if body.best_of is not UNSET and body.best_of != body.n:
        raise InvalidRequestError(
            f"best_of is {body.best_of} but n is {body.n}; a different best_of is not supported",
            "best_of",
            "unsupported_parameter",
        )
    if body.max_tokens == 0 and not body.echo:
        raise InvalidRequestError(
            "max_tokens is 0, which needs echo; set echo, or max_tokens to 1 or more", "max_tokens"
        )
    extra: dict[str, Any] = {}
    if body.max_tokens is not UNSET:
        extra["max_tokens"] = body.max_tokens
    if body.logprobs is not UNSET:
        extra["logprobs"] = body.logprobs
        extra["prompt_logprobs"] = body.logprobs if body.echo else None
    return _params(body, defaults, limits, extra)


def chat_params(
    body: ChatBody, defaults: Mapping[str, Any], limits: ServerLimits
) -> SamplingParams:
    """Sampling parameters of a chat completion, which by default goes on as long as it fits."""
    max_tokens = body.asked_max_tokens
    if body.max_tokens not in (UNSET, max_tokens):
        raise InvalidRequestError(
            f"max_completion_tokens is {max_tokens} but max_tokens is {body.max_tokens}; give one",
            "max_completion_tokens",
        )
    if max_tokens == 0:
        raise InvalidRequestError("max_tokens is 0 but must be at least 1", "max_tokens")
    extra: dict[str, Any] = {"max_tokens": defaults.get("max_tokens")}
    if max_tokens is not UNSET:
        extra["max_tokens"] = max_tokens
    if body.logprobs:
        num_top = 0 if body.top_logprobs is UNSET else body.top_logprobs
        _at_most("top_logprobs", "tokens", num_top, MAX_LOGPROBS)
        extra["logprobs"] = num_top
    elif body.top_logprobs not in (UNSET, 0):
        raise InvalidRequestError(
            f"top_logprobs is {body.top_logprobs}, which needs logprobs; set logprobs to true",
            "top_logprobs",
        )
    return _params(body, defaults, limits, extra)


def _params(
    body: SamplingBody,
    defaults: Mapping[str, Any],
    limits: ServerLimits,
    extra: Mapping[str, Any],
) -> SamplingParams:
    """Request over checkpoint over built-in."""
    if body.stream_options is not UNSET and not body.stream:
        raise InvalidRequestError(
            "stream_options needs stream; set stream to true or leave stream_options out",
            "stream_options",
        )
    _check_limits(body, limits)
    given = {name: getattr(body, name) for name in _SAMPLING_FIELDS}
    values = {name: value for name, value in given.items() if value is not UNSET}
    values["grammar"] = asked_grammar(body)
    if body.logit_bias is not UNSET:
        values["logit_bias"] = _token_biases(body.logit_bias)
    return SamplingParams(**{**defaults, **values, **extra})


def _check_limits(body: SamplingBody, limits: ServerLimits) -> None:
    _at_most("n", "completions", body.n, limits.max_choices)
    stop = [] if body.stop is UNSET else [body.stop] if isinstance(body.stop, str) else body.stop
    _at_most("stop", "stop strings", len(stop), limits.max_stop_strings)
    for text in stop:
        _at_most("stop", "characters in a stop string", len(text), limits.max_stop_chars)
    if body.logit_bias is not UNSET:
        _at_most("logit_bias", "entries", len(body.logit_bias), limits.max_logit_biases)


def _at_most(param: str, what: str, value: int, limit: int) -> None:
    if value > limit:
        raise InvalidRequestError(
            f"{param} asks for {value} {what}, but the limit is {limit}", param, "limit_exceeded"
        )


def _token_biases(biases: Mapping[str, float]) -> dict[int, float]:
    for name in biases:
        if not (name.isascii() and name.isdigit() and len(name) < 19):
            raise InvalidRequestError(
                f"logit_bias has the key {name[:50]!r}, but its keys are token ids", "logit_bias"
            )
    return {int(name): bias for name, bias in biases.items()}


def conversation(
    body: ChatBody | TokenizeBody, tools: Sequence[Mapping[str, Any]] | None = None
) -> Chat:
    """The conversation of a body, with the tools that the template shows."""
    assert body.messages is not UNSET
    adds_prompt = body.add_generation_prompt is True
    if body.add_generation_prompt is UNSET:
        adds_prompt = not body.continue_final_message
    variables = dict(body.chat_template_kwargs)
    if isinstance(body, ChatBody) and body.reasoning_effort is not UNSET:
        variables.setdefault("reasoning_effort", body.reasoning_effort)
    return Chat(
        messages=[msgspec.to_builtins(message) for message in body.messages],
        tools=tools,
        add_generation_prompt=adds_prompt,
        continue_final_message=body.continue_final_message,
        template_kwargs=variables,
        add_special_tokens=body.add_special_tokens is True,
    )
