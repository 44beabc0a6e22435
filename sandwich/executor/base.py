"""What the engine asks of whatever runs the model: one flat batch in, logits and their argmax out.

Must not know: how a batch was chosen, what is done with the logits, or any one executor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
import numpy.typing as npt

from codegen.spec import Phase
from sandwich.request import Request

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
    max_num_logits: int = 0  # logit rows of one step; 0: as many as a step may have tokens

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


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's work on the plan of one phase; a sequence's token rows are consecutive, in order.

    Sequence i has token rows [query_starts[i], query_starts[i + 1]); after the step its first
    context_lens[i] tokens are in the cache, in the blocks of block_tables[i] (padded with zeros).
    `slot_mapping` says where a token's K and V go: block id * block_size + offset in the block.
    The first `num_riders` sequences of a prefill step decode: they have one row each.
    """

    phase: Phase
    requests: tuple[Request, ...]  # one per sequence
    token_ids: Int32Array  # (num_tokens,)
    positions: Int32Array  # (num_tokens,)
    slot_mapping: Int32Array  # (num_tokens,)
    query_starts: Int32Array  # (num_seqs + 1,)
    context_lens: Int32Array  # (num_seqs,)
    block_tables: Int32Array  # (num_seqs, most blocks of a sequence)
    logit_rows: Int32Array  # (num_logits,) the token rows whose logits are wanted, ascending
    sampled: tuple[int, ...]  # index in `requests` of each logit row
    num_riders: int = 0

    @property
    def kind(self) -> StepKind:
        return StepKind.MIXED if self.num_riders else StepKind(self.phase.value)


@dataclass(frozen=True, slots=True)
class NativeTime:
    """When a native call ran, in seconds of time.perf_counter()."""

    started: float
    ended: float

    @property
    def seconds(self) -> float:
        return self.ended - self.started


@dataclass(frozen=True, slots=True)
class StepOutput:
    """Logits of the wanted rows; both arrays may be views that the next `run` overwrites."""

    logits: Float32Array  # (num_logits, vocab_size)
    argmax: Int32Array  # (num_logits,) the lowest id among the largest logits
    native: NativeTime | None = None  # the native call alone; None if there was none

    @property
    def native_seconds(self) -> float | None:
        return None if self.native is None else self.native.seconds


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

    def is_done(self) -> bool:
        """Whether `wait` would return at once."""

    def wait(self) -> StepOutput: ...

    def close(self) -> None: ...


class LazyStart(ABC):
    """The `start` of an executor that does one thing at a time: the batch runs in `wait`."""

    _started: Batch

    def adopt_thread(self) -> None:  # noqa: B027
        """Every thread is as good as another."""

    @abstractmethod
    def run(self, batch: Batch) -> StepOutput: ...

    def start(self, batch: Batch) -> None:
        self._started = batch

    def is_done(self) -> bool:
        return True

    def wait(self) -> StepOutput:
        return self.run(self._started)
