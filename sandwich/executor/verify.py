"""An executor that trusts nothing: every batch runs on the compiled programs and in the reference.

Each of the two has a cache of its own, so no error hides by spreading from one to the other. For
debugging: a step takes as long as NumPy does, and the reference holds a float32 copy of all
matrices.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from codegen.spec import Phase
from sandwich.errors import SandwichError
from sandwich.executor.base import Batch, Executor, ExecutorLimits, Float32Array, StepOutput
from sandwich.requests.block_store import Row

# The largest difference that rounding explains, as a share of the row's largest logit. In float32
# only the order of sums differs; with bf16 any input of a product may be rounded the other way, and
# with int8 by a step of 1/127 of its row's largest. Models of up to 30 layers came to 2e-6 and
# 0.01; with int8 one of 8 layers came to 0.026.
TOLERANCE: Final = {"float32": 3e-5, "bfloat16": 0.05, "int8": 0.1}


class VerificationError(SandwichError):
    """A program computed something else than the reference.

    row is that of the logits, position its token's in the request; error is the largest difference
    as a share of the row's largest logit, infinite where a number is missing.
    """

    def __init__(self, what: str, phase: Phase, row: int, position: int, error: float) -> None:
        super().__init__(
            f"the {phase.value} program is wrong in logit row {row}, of position {position}: {what}"
        )
        self.phase = phase
        self.row = row
        self.position = position
        self.error = error


class VerifyingExecutor:
    """Gives what `executor` gives, or raises VerificationError. Owns both executors.

    dtype: the coarsest of the types of inputs of products and of the cache; it sets the tolerance.
    """

    def __init__(self, executor: Executor, reference: Executor, dtype: str) -> None:
        self._executor, self._reference = executor, reference
        self._tolerance = TOLERANCE[dtype]
        self._started: Batch

    @property
    def limits(self) -> ExecutorLimits:
        """The largest batch."""
        return self._executor.limits

    def adopt_thread(self) -> None:
        """For the executor."""
        self._executor.adopt_thread()

    def run(self, batch: Batch) -> StepOutput:
        """One step on both. Raises VerificationError where they differ by more than rounding."""
        return self._checked(batch, self._executor.run(batch))

    def start(self, batch: Batch) -> None:
        """Begin a step; the reference takes it when it is waited for."""
        self._executor.start(batch)
        self._started = batch

    def stop(self) -> None:
        """For the executor; the reference takes its time."""
        self._executor.stop()

    def take_stop(self) -> bool:
        """Whether `stop` was called since the last time."""
        return self._executor.take_stop()

    def is_done(self) -> bool:
        """Whether the executor is done; the reference has yet to begin."""
        return self._executor.is_done()

    def wait(self) -> StepOutput:
        """The step that was started. Raises as `run`."""
        return self._checked(self._started, self._executor.wait())

    def prove(self, block_id: int) -> None:
        """For the executor."""
        self._executor.prove(block_id)

    @property
    def block_nbytes(self) -> int:
        """Of a block in both caches."""
        return self._executor.block_nbytes + self._reference.block_nbytes

    def save_block(self, block_id: int, row: Row) -> None:
        """From both."""
        own = self._executor.block_nbytes
        self._executor.save_block(block_id, row[:own])
        self._reference.save_block(block_id, row[own:])

    def load_block(self, block_id: int, row: Row) -> None:
        """To both."""
        own = self._executor.block_nbytes
        self._executor.load_block(block_id, row[:own])
        self._reference.load_block(block_id, row[own:])

    def close(self) -> None:
        """Close both."""
        self._executor.close()
        self._reference.close()

    def _checked(self, batch: Batch, output: StepOutput) -> StepOutput:
        expected = self._reference.run(batch)
        self._check_logits(batch, output.logits, expected.logits)
        self._check_argmax(batch, output)
        self._check_scores(batch, output, expected)
        return output

    def _check_logits(self, batch: Batch, actual: Float32Array, expected: Float32Array) -> None:
        errors = relative_errors(actual, expected)
        if (errors <= self._tolerance).all():
            return
        row, token_id = (int(i) for i in np.unravel_index(errors.argmax(), errors.shape))
        error = float(errors[row, token_id])
        raise _error(
            batch,
            row + len(batch.logit_rows) - len(actual),
            f"token {token_id} has {actual[row, token_id]:.6g} instead of the reference's "
            f"{expected[row, token_id]:.6g}; that is {error:.3g} of the row's largest logit, where "
            f"rounding explains {self._tolerance:g}",
            error,
        )

    def _check_argmax(self, batch: Batch, output: StepOutput) -> None:
        largest = output.logits.argmax(axis=1).tolist()
        first = len(output.argmax) - len(largest)
        for row, (expected, actual) in enumerate(
            zip(largest, output.argmax[first:], strict=True), first
        ):
            if expected != actual:
                what = f"its largest logit is that of token {expected}, not {actual}"
                raise _error(batch, row, what, 0.0)

    def _check_scores(self, batch: Batch, output: StepOutput, expected: StepOutput) -> None:
        """Log probabilities of targets, also of rows whose logits are not kept."""
        for row, want in enumerate(batch.wants):
            if not want.is_of_given_token:
                continue
            actual, right = output.target_logprob(row), expected.target_logprob(row)
            error = abs(actual - right) / max(abs(expected.peaks[row]), 1.0)
            if not error <= self._tolerance:
                what = (
                    f"the log probability of token {want.target} is {actual:.6g} instead of the "
                    f"reference's {right:.6g}"
                )
                raise _error(batch, row, what, error)


def relative_errors(actual: Float32Array, expected: Float32Array) -> Float32Array:
    """Differences as shares of their rows' largest expected logits; infinite where one is no
    number.
    """
    with np.errstate(invalid="ignore"):
        differences = np.abs(actual - expected)
    scale = np.abs(expected).max(axis=1, keepdims=True, initial=np.finfo(np.float32).tiny)
    errors: Float32Array = np.where(np.isfinite(differences), differences / scale, np.inf)
    return errors


def _error(batch: Batch, row: int, what: str, error: float) -> VerificationError:
    return VerificationError(what, batch.phase, row, batch.position(row), error)
