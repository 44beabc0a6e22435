"""What a client may ask about how tokens are chosen: one frozen value, checked when it is built."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt

from codegen.spec import MAX_TOP
from sandwich.errors import InvalidRequestError
from sandwich.requests.grammar import Grammar
from sandwich.requests.want import ANY_TOKEN, NOT_SCORED, Want

MAX_LOGPROBS = MAX_TOP
MAX_TEMPERATURE = 100.0
# Below this the largest logit wins in float32 whatever the others are; such a request is greedy.
GREEDY_TEMPERATURE = 1e-5


@dataclass(frozen=True)
class SamplingParams:
    """How one request's tokens are chosen and when they end (names and meanings as in vLLM).

    `max_tokens=None` means as many as fit, 0 none (for prompt_logprobs alone). `top_k` 0 or -1,
    `top_p` 1 and `min_p` 0 switch these filters off. `stop` may be one string. The filters apply in
    the order top_k, min_p, top_p, after penalties, logit_bias and temperature; logprobs are of
    the raw distribution. Raises InvalidRequestError naming the offending parameter.
    """

    n: int = 1
    max_tokens: int | None = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    include_stop_str_in_output: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: Mapping[int, float] | None = None
    grammar: Grammar | None = None  # that the text follows

    want: Want = field(init=False, repr=False, compare=False)  # of the row a token is chosen from

    def __post_init__(self) -> None:
        for param, is_valid, expected in _RULES:
            _check(param, getattr(self, param), is_valid, expected)
        stop = (self.stop,) if self.stop and isinstance(self.stop, str) else self.stop or ()
        object.__setattr__(self, "stop", tuple(stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids or ()))
        object.__setattr__(self, "top_k", max(self.top_k, 0))
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequestError(
                f"min_tokens is {self.min_tokens} but max_tokens is {self.max_tokens}; "
                "lower the one or raise the other",
                param="min_tokens",
            )
        takes_argmax = self.is_greedy and not self.edits_logits
        target = NOT_SCORED if self.logprobs is None else ANY_TOKEN
        want = Want(not takes_argmax, target, self.logprobs or 0)
        object.__setattr__(self, "want", want)

    @property
    def is_greedy(self) -> bool:
        """The largest logit wins; no randomness is drawn."""
        return self.temperature < GREEDY_TEMPERATURE

    @cached_property
    def has_penalties(self) -> bool:
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)

    @cached_property
    def edits_logits(self) -> bool:
        """Whether a row of logits must be edited before even a greedy choice."""
        return self.has_penalties or bool(self.logit_bias) or self.min_tokens > 0

    @cached_property
    def bias_ids(self) -> npt.NDArray[np.int64]:
        """Token ids of `logit_bias`, in the order of `bias_values`."""
        return np.fromiter(self.logit_bias or (), np.int64)

    @cached_property
    def bias_values(self) -> npt.NDArray[np.float32]:
        return np.fromiter((self.logit_bias or {}).values(), np.float32)


def _check(param: str, value: Any, is_valid: Callable[[Any], bool], expected: str) -> None:
    try:
        if is_valid(value):
            return
    except (TypeError, AttributeError):
        pass  # of a type that cannot even be compared
    raise InvalidRequestError(f"{param} is {value!r} but must be {expected}", param=param)


def _is_count(value: Any, least: int = 0, most: float = math.inf) -> bool:
    return isinstance(value, Integral) and least <= int(value) <= most


def _is_number(value: Any, least: float, most: float) -> bool:
    return isinstance(value, Real) and least <= float(value) <= most


def _is_token_id(value: Any) -> bool:
    return _is_count(value, 0, 2**31 - 1)


def _is_bias(bias: Mapping[int, float]) -> bool:
    return all(_is_token_id(token) and _is_number(bias[token], -100.0, 100.0) for token in bias)


_PENALTY = "a number between -2 and 2"
_NUM_LOGPROBS = f"a whole number between 0 and {MAX_LOGPROBS}, or left out"

_RULES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("n", lambda v: _is_count(v, 1), "a whole number of at least 1"),
    ("max_tokens", lambda v: v is None or _is_count(v), "at least 0, or left out"),
    (
        "temperature",
        lambda v: _is_number(v, 0, MAX_TEMPERATURE),
        f"a number between 0 (greedy) and {MAX_TEMPERATURE:g}",
    ),
    ("top_p", lambda v: v > 0 and _is_number(v, 0, 1), "a number above 0 and at most 1"),
    ("top_k", lambda v: _is_count(v, -1), "-1 or 0 (off) or a whole number of at least 1"),
    ("min_p", lambda v: _is_number(v, 0, 1), "a number between 0 and 1"),
    (
        "repetition_penalty",
        lambda v: v > 0 and _is_number(v, 0, 100),
        "a number above 0 and at most 100",
    ),
    ("presence_penalty", lambda v: _is_number(v, -2, 2), _PENALTY),
    ("frequency_penalty", lambda v: _is_number(v, -2, 2), _PENALTY),
    (
        "seed",
        lambda v: v is None or _is_count(v, -(2**63), 2**64 - 1),
        "a whole number between -2^63 and 2^64 - 1, or left out",
    ),
    (
        "stop",
        lambda v: all(isinstance(text, str) and text for text in v or ()),
        "one or more non-empty strings",
    ),
    (
        "stop_token_ids",
        lambda v: all(map(_is_token_id, v or ())),
        "token ids, whole numbers of at least 0",
    ),
    ("min_tokens", _is_count, "a whole number of at least 0"),
    ("include_stop_str_in_output", lambda v: isinstance(v, bool), "true or false"),
    ("logprobs", lambda v: v is None or _is_count(v, 0, MAX_LOGPROBS), _NUM_LOGPROBS),
    ("prompt_logprobs", lambda v: v is None or _is_count(v, 0, MAX_LOGPROBS), _NUM_LOGPROBS),
    ("grammar", lambda v: v is None or isinstance(v, Grammar), "a Grammar, or left out"),
    (
        "logit_bias",
        lambda v: v is None or _is_bias(v),
        "a map from token ids to numbers between -100 and 100",
    ),
)
