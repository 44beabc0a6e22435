"""One request inside the engine: its tokens, how far they are computed, its events."""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sandwich.errors import InvalidRequestError
from sandwich.requests.blocks import BlockTable
from sandwich.requests.logits_processor import LogitsProcessor
from sandwich.requests.pooling import Float32Array, Pool, Pooling
from sandwich.requests.sampling_params import SamplingParams
from sandwich.requests.want import Want

# A request of priority p + 1 is treated as one of p that came so much later: whoever waits long
# enough is first, whatever its priority.
SECONDS_PER_PRIORITY = 10.0
_SPARE_TOKENS = 64  # room for the first tokens of output, made before a step waits for it


@dataclass(frozen=True, slots=True)
class LogprobEntry:
    """A token's natural log probability in the raw distribution, and the likeliest, best first."""

    token_id: int
    logprob: float
    rank: int  # 1 is the likeliest; among equals the lower id comes first
    top_ids: tuple[int, ...]
    top_logprobs: tuple[float, ...]


class SampledTokens(NamedTuple):
    """What the sampler says about one sequence of a batch; no token while prefill goes on.

    `logprobs` belong to `token_ids`, or are empty if nobody asked.
    """

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[LogprobEntry, ...] = ()
    prompt_logprobs: tuple[LogprobEntry, ...] = ()  # of the prompt tokens that this step predicted
    states: Float32Array | None = None  # hidden ones (tokens, hidden_size), for the request's pool
    error: str | None = None  # this request cannot go on


class RequestTimings(NamedTuple):
    """When things happened (seconds of time.monotonic()) and how much was done."""

    arrival: float
    first_scheduled: float | None
    first_token: float | None
    last_token: float | None
    finished: float
    num_prompt_tokens: int
    num_output_tokens: int
    num_preemptions: int
    num_cached_tokens: int  # of the prompt, not computed but found in the cache


class TokenEvent(NamedTuple):
    """One step of one request, as it leaves the engine: the tokens that the step added, if any.

    Exactly one event of a request has a `finish_reason` ("stop", "length", "abort", "error"): its
    last, which carries `timings`. The token that ends a request (eos or a stop id) is the last one
    of that event; `stop_reason` is the stop id that matched, None for eos. `prompt_logprobs` comes
    once, with the first token: entry i is about prompt token i, entry 0 is None as nothing precedes
    it. `error` is the message of finish_reason "error". The last event of an embedding has it.
    """

    request_id: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[LogprobEntry, ...] = ()  # of token_ids, if they were asked for
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    prompt_logprobs: tuple[LogprobEntry | None, ...] | None = None
    error: str | None = None
    timings: RequestTimings | None = None
    embedding: Float32Array | None = None  # (hidden_size,)


@dataclass(slots=True, eq=False)
class Request:
    """A prompt and what became of it. Tokens [0, num_computed) have their K and V in the cache.

    Only the engine's thread touches it once it is added. `choice_index` tells the `n` samples of
    one prompt apart: each is a request of its own with the same seed and another random stream.
    """

    request_id: str
    prompt_token_ids: Sequence[int] | npt.NDArray[np.integer] = field(repr=False)
    params: SamplingParams
    eos_token_ids: Collection[int] = ()
    choice_index: int = 0
    arrival_time: float = field(default_factory=time.monotonic)
    cache_salt: str = ""  # requests share what they have computed with those of the same salt alone
    logits_processor: LogitsProcessor | None = None
    priority: int = 0  # the lower go first; see `rank`
    pooling: Pooling | None = None  # an embedding is wanted, and no token

    token_ids: npt.NDArray[np.int32] = field(init=False, repr=False)  # [0, num_tokens) are valid
    num_prompt_tokens: int = field(init=False)
    num_tokens: int = field(init=False)  # prompt and output
    num_computed: int = field(init=False, default=0)
    num_cached_tokens: int = field(init=False, default=0)  # of the prompt, found when it began
    num_prefill_tokens: int = field(init=False, default=0)  # how far prefill goes, set at admission
    max_tokens: int = field(init=False, default=0)  # of output; clipped to what fits at add
    seed: int = field(init=False)  # 64 bits
    stop_ids: frozenset[int] = field(init=False)  # every id that ends the request, eos included
    block_table: BlockTable = field(init=False, default_factory=BlockTable)
    prompt_logprobs: list[LogprobEntry] = field(init=False, default_factory=list)  # of token 1 on
    pool: Pool | None = field(init=False, repr=False)
    finish_reason: str | None = field(init=False, default=None)

    first_scheduled_time: float | None = field(init=False, default=None)
    first_token_time: float | None = field(init=False, default=None)
    last_token_time: float | None = field(init=False, default=None)
    num_preemptions: int = field(init=False, default=0)
    rank: float = field(init=False)  # the least is the first in every queue

    def __post_init__(self) -> None:
        try:
            prompt = np.array(self.prompt_token_ids, np.int32).reshape(-1)
        except (OverflowError, TypeError, ValueError) as error:
            raise InvalidRequestError(
                f"the prompt's token ids must be a flat list of whole numbers of 31 bits: {error}",
                param="prompt",
            ) from error
        self.num_prompt_tokens = self.num_tokens = len(prompt)
        self.token_ids = np.concatenate((prompt, np.empty(_SPARE_TOKENS, np.int32)))
        self.pool = None if self.pooling is None else Pool(self.pooling)
        self.rank = self.arrival_time + self.priority * SECONDS_PER_PRIORITY
        seed = self.params.seed
        self.seed = (secrets.randbits(64) if seed is None else seed) % 2**64
        eos_ids = frozenset() if self.params.ignore_eos else frozenset(self.eos_token_ids)
        self.stop_ids = eos_ids.union(self.params.stop_token_ids)

    @property
    def num_output_tokens(self) -> int:
        return self.num_tokens - self.num_prompt_tokens

    @property
    def output_token_ids(self) -> npt.NDArray[np.int32]:
        """A view, valid until the next token is appended."""
        return self.token_ids[self.num_prompt_tokens : self.num_tokens]

    @property
    def is_prefilling(self) -> bool:
        return self.num_computed < self.num_prefill_tokens

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def num_wanted_prompt_logprobs(self) -> int:
        """Prompt tokens whose logprobs are still to be computed; the first token has none."""
        if self.params.prompt_logprobs is None:
            return 0
        return self.num_prompt_tokens - 1 - len(self.prompt_logprobs)

    @property
    def num_skippable_tokens(self) -> int:
        """Tokens, from the first on, of which nobody wants logits or hidden states: if their K and
        V are in the cache they need not be computed.
        """
        if self.pooling is Pooling.MEAN:
            assert self.pool is not None
            return self.pool.num_tokens
        if self.num_wanted_prompt_logprobs > 0:
            return len(self.prompt_logprobs)
        return self.num_tokens - 1

    @property
    def want(self) -> Want:
        """What choosing this request's next token needs of its row of logits."""
        want = self.params.want
        return want if self.logits_processor is None else want._replace(needs_logits=True)

    def book(self, num_computed: int, tokens: SampledTokens) -> None:
        """What a step that reached token `num_computed` says of the prompt."""
        self.num_computed = num_computed
        self.prompt_logprobs += tokens.prompt_logprobs
        if tokens.states is not None:
            assert self.pool is not None
            self.pool.add(tokens.states)

    def accept(self, token_id: int, now: float) -> str | None:
        """Append a sampled token; the finish_reason if it is the last."""
        if self.logits_processor is not None:
            self.logits_processor.accept(token_id)
        if self.num_tokens == len(self.token_ids):
            grown = np.empty(2 * self.num_tokens, np.int32)
            grown[: self.num_tokens] = self.token_ids
            self.token_ids = grown
        self.token_ids[self.num_tokens] = token_id
        self.num_tokens += 1
        if self.first_token_time is None:
            self.first_token_time = now
        self.last_token_time = now
        if token_id in self.stop_ids:
            return "stop"
        return "length" if self.num_output_tokens == self.max_tokens else None

    def stop_reason(self) -> int | None:
        """The stop id that ended the request; None if it was the model's eos or anything else."""
        if self.finish_reason != "stop":
            return None
        last = self.token_ids.item(self.num_tokens - 1)
        return last if last in self.params.stop_token_ids else None

    def all_prompt_logprobs(self) -> tuple[LogprobEntry | None, ...] | None:
        """One entry per prompt token, None for the first; None if they were not asked for."""
        if self.params.prompt_logprobs is None:
            return None
        return (None, *self.prompt_logprobs)

    def timings(self, finished: float) -> RequestTimings:
        return RequestTimings(
            arrival=self.arrival_time,
            first_scheduled=self.first_scheduled_time,
            first_token=self.first_token_time,
            last_token=self.last_token_time,
            finished=finished,
            num_prompt_tokens=self.num_prompt_tokens,
            num_output_tokens=self.num_output_tokens,
            num_preemptions=self.num_preemptions,
            num_cached_tokens=self.num_cached_tokens,
        )
