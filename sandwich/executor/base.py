"""What the engine asks of whatever runs the model: a batch in, what is wanted of its logits out.

What a step makes is named tuples: they are built between two native calls, on caches that have just
been swept by the weights, and cost a fraction of frozen dataclasses.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from codegen.spec import Phase
from sandwich.requests.block_store import Row
from sandwich.requests.request import Request
from sandwich.requests.want import Want

Int32Array = npt.NDArray[np.int32]
Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ExecutorLimits:
    """The largest batch an executor takes and the cache it has, fixed when it is built."""

    block_size: int
    num_blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    vocab_size: int
    hidden_size: int = 16  # columns of a token's hidden state
    max_num_logits: int = 0  # rows of logits kept of one step; 0: as many as it may have tokens

    def __post_init__(self) -> None:
        if self.max_num_logits == 0:
            object.__setattr__(self, "max_num_logits", self.max_step_tokens)
        assert self.max_num_logits >= self.max_num_seqs, "every sequence of a step may want a row"

    @property
    def max_step_tokens(self) -> int:
        """Token rows of a step of any kind."""
        return max(self.max_num_batched_tokens, self.max_num_seqs)


class StepKind(StrEnum):
    """What a step computes: prompts, next tokens, or both."""

    PREFILL = "prefill"
    DECODE = "decode"
    MIXED = "mixed"


_KINDS = {phase: StepKind(phase.value) for phase in Phase}


class Batch(NamedTuple):
    """One step's work on the plan of one phase: the next tokens of some requests.

    Request i computes its tokens [starts[i], starts[i] + num_new[i]) in consecutive token rows, one
    request after the other; the blocks of its table reach that far. Of the token rows `logit_rows`
    something is wanted: those whose logits themselves are come last, `max_num_logits` at most. The
    first `num_riders` requests of a prefill step decode: they have one row each. Before anything
    else is computed, whole blocks of the KV cache are copied, one after the other.
    """

    phase: Phase
    requests: tuple[Request, ...]
    starts: Sequence[int]
    num_new: Sequence[int]  # all >= 1
    num_tokens: int  # token rows, the sum of num_new
    logit_rows: Sequence[int]
    sampled: Sequence[int]  # index in `requests` of each logit row
    wants: Sequence[Want]  # of each logit row
    num_riders: int = 0
    copies: Sequence[tuple[int, int]] = ()  # blocks: source, target
    pooled: Sequence[tuple[int, range]] = ()  # index in `requests`, token rows of wanted states

    @property
    def kind(self) -> StepKind:
        return StepKind.MIXED if self.num_riders else _KINDS[self.phase]

    def one_token_on(self, block_size: int) -> Batch | None:
        """The next decode step of the same requests; None if one has no slot for its last token."""
        for request in self.requests:
            if request.num_tokens > len(request.block_table.ids) * block_size:
                return None
        starts = [start + 1 for start in self.starts]
        return Batch(
            self.phase,
            self.requests,
            starts,
            self.num_new,
            self.num_tokens,
            self.logit_rows,
            self.sampled,
            self.wants,
        )

    @property
    def state_rows(self) -> list[int]:
        """Token rows whose hidden states are wanted."""
        return [row for _, rows in self.pooled for row in rows]

    def position(self, logit_row: int) -> int:
        """Position in its request of the token whose logits are number `logit_row`."""
        index = self.sampled[logit_row]
        return self.starts[index] + self.logit_rows[logit_row] - sum(self.num_new[:index])


class NativeTime(NamedTuple):
    """When a native call ran, in seconds of time.perf_counter()."""

    started: float
    ended: float

    @property
    def seconds(self) -> float:
        return self.ended - self.started


class Scores(NamedTuple):
    """What was found in the logits of each wanted row; of no meaning where that was not wanted.

    A log probability is logit - peak - log(total). Of the likeliest tokens, best first, a row has
    as many as it wanted.
    """

    totals: Sequence[float]  # sum of exp(logit - peak)
    chosen: Sequence[float]  # the target's logit
    ranks: Sequence[int]  # of the target; 1 is the likeliest, the lower id first among equals
    top_ids: Int32Array  # (num_rows, MAX_TOP)
    top_logits: Float32Array  # (num_rows, MAX_TOP)


class StepOutput(NamedTuple):
    """What was read from the logits of the wanted rows, and the last of these rows themselves.

    Arrays may be views that the next `run` overwrites.
    """

    logits: Float32Array  # (as many of the rows as are kept, vocab_size)
    argmax: list[int]  # of each row the lowest id among the largest logits
    peaks: list[float]  # the argmax's logit
    scores: Scores | None = None  # None if no row wants any
    native: NativeTime | None = None  # the native call alone; None if there was none
    states: Float32Array | None = None  # (len(batch.state_rows), hidden_size); None: none wanted

    @property
    def native_seconds(self) -> float | None:
        return None if self.native is None else self.native.seconds

    def logits_of(self, row: int) -> Float32Array:
        """The logits of a row that is kept."""
        logits: Float32Array = self.logits[row - len(self.argmax)]  # both end with the same row
        return logits

    def log_total(self, row: int) -> float:
        """Log probability of a scored row's argmax, negated; NaN if any logit of the row is."""
        assert self.scores is not None
        return math.log(self.scores.totals[row])

    def target_logprob(self, row: int) -> float:
        """Log probability of the token that a row was to score."""
        assert self.scores is not None
        return self.scores.chosen[row] - self.peaks[row] - self.log_total(row)


class Executor(Protocol):
    """Runs batches on the engine's thread. A raise in `run`, `start` or `wait` ends one batch only.

    After `start` of a prefill batch, `run` takes decode batches of other requests beside it until
    `wait`, which gives its output.
    """

    @property
    def limits(self) -> ExecutorLimits: ...

    def adopt_thread(self) -> None:
        """Called by the thread that will make all steps from now on, which it may pin to a core."""

    def run(self, batch: Batch) -> StepOutput: ...

    def start(self, batch: Batch) -> None: ...

    def stop(self) -> None:
        """Let the prefill step that runs end soon, with an output of no use; any thread may."""

    def take_stop(self) -> bool:
        """Whether `stop` was called since the last time."""

    def is_done(self) -> bool:
        """Whether `wait` would return at once."""

    def wait(self) -> StepOutput: ...

    def prove(self, block_id: int) -> None:
        """After a failure, with nothing in flight: UnsoundExecutorError, or whatever it raises now,
        unless steps still compute what they did at the start. They write to a block nobody needs.
        """

    @property
    def block_nbytes(self) -> int:
        """Of one block of the KV cache."""

    def save_block(self, block_id: int, row: Row) -> None:
        """Copy the bytes of a block that no step in flight writes to `row`."""

    def load_block(self, block_id: int, row: Row) -> None:
        """Copy them back, to any block."""

    def close(self) -> None: ...


class LazyStart(ABC):
    """The `start` of an executor that does one thing at a time: the batch runs in `wait`. One that
    has a KV cache says how its blocks are saved.
    """

    _started: Batch
    _is_stopped = False

    def adopt_thread(self) -> None:  # noqa: B027
        """Every thread is as good as another."""

    @abstractmethod
    def run(self, batch: Batch) -> StepOutput: ...

    def stop(self) -> None:
        self._is_stopped = True

    def take_stop(self) -> bool:
        was_stopped, self._is_stopped = self._is_stopped, False
        return was_stopped

    def prove(self, block_id: int) -> None:  # noqa: B027
        """A failure leaves nothing behind that a later step would find."""

    @property
    def block_nbytes(self) -> int:
        """By which a store counts blocks."""
        return 1

    def save_block(self, block_id: int, row: Row) -> None:  # noqa: B027
        """There is nothing to save."""

    def load_block(self, block_id: int, row: Row) -> None:  # noqa: B027
        """There is nothing to load."""

    def start(self, batch: Batch) -> None:
        self._started = batch

    def is_done(self) -> bool:
        return True

    def wait(self) -> StepOutput:
        return self.run(self._started)
