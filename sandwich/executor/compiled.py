"""The executor that serves: two phase programs over one copy of the weights and one KV cache.

A batch becomes flat arrays in place, its phase picks a program and the launcher of that phase's
plan, and the step is one native call. Nothing moves when the phase changes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from codegen.arguments import argument_specs
from codegen.compile import tensor
from codegen.spec import OPERATORS, Phase
from codegen.timing import reset
from platforms.memory import Arena
from sandwich.executor.base import Batch, ExecutorLimits, StepOutput
from sandwich.executor.programs import PhaseProgram
from sandwich.executor.specs import distinct_arrays, step_specs
from sandwich.executor.step_report import step_report

_log = logging.getLogger(__name__)
Arrays = dict[str, npt.NDArray[Any]]


class CompiledExecutor:
    """Runs batches on the compiled programs of their phase. Use from one thread at a time.

    `weights` and `cache` are arrays in arenas, `arena` has room for `step_bytes`; the executor
    shares them and owns the launchers.
    """

    def __init__(
        self,
        programs: Mapping[Phase, PhaseProgram],
        limits: ExecutorLimits,
        weights: Arrays,
        cache: Arrays,
        arena: Arena,
    ) -> None:
        self._programs = dict(programs)
        self._limits = limits
        specs = {phase: program.spec for phase, program in programs.items()}
        shared = {
            key: arena.array(spec.shape, spec.dtype) for key, spec in distinct_arrays(specs).items()
        }
        self._steps: dict[Phase, Arrays] = {
            phase: {name: shared[name, spec] for name, spec in group.items()}
            for phase, group in step_specs(specs).items()
        }
        tensors = {id(a): tensor(a) for a in (*weights.values(), *cache.values(), *shared.values())}
        self._arguments = {
            phase: tuple(
                tensors[id((weights | cache | self._steps[phase])[name])]
                for group in argument_specs(spec).values()
                for name in group
            )
            for phase, spec in specs.items()
        }

    @property
    def limits(self) -> ExecutorLimits:
        """The largest batch."""
        return self._limits

    def adopt_thread(self) -> None:
        """Let the calling thread launch decode steps, the many short ones, without a hand-over."""
        self._programs[Phase.DECODE].launcher.adopt()

    def run(self, batch: Batch) -> StepOutput:
        """One step; the output's arrays are views that the next step of the phase overwrites."""
        program = self._programs[batch.phase]
        arrays = self._steps[batch.phase]
        num_tiles = _fill(arrays, batch, program.spec.query_tile)
        num_logits = len(batch.logit_rows)
        scalars = (len(batch.token_ids), num_tiles, num_logits)
        arguments = self._arguments[batch.phase]
        if program.spec.has_timers:
            reset(arrays["ticks"])
        seconds = program.launcher.run(lambda: program.function(*scalars, *arguments))
        if program.spec.has_timers:
            for line in step_report(program.spec, arrays["ticks"], scalars[0], num_logits):
                _log.debug("%s", line)
        return StepOutput(
            logits=arrays["logits"][:num_logits, : self._limits.vocab_size],
            argmax=arrays["argmax"][:num_logits],
            native_seconds=seconds,
        )

    def operator_ns(self, phase: Phase) -> dict[str, int]:
        """Nanoseconds of each operator in the last step of a phase whose program has timers."""
        ticks = self._steps[phase]["ticks"]
        return dict(zip(OPERATORS, ticks.tolist(), strict=False))

    def warm_up(self) -> None:
        """Run a token through both phases, so that the first request does not wait for threads to
        start and pages to be mapped. It leaves its keys and values in a block nobody has yet.
        """
        zero, one = np.zeros(1, np.int32), np.ones(1, np.int32)
        starts = np.array([0, 1], np.int32)
        for phase in self._programs:
            self.run(Batch(phase, (), zero, zero, zero, starts, one, zero[None], zero, (0,)))

    def close(self) -> None:
        """End the launchers."""
        for program in self._programs.values():
            program.launcher.close()


def _fill(arrays: Arrays, batch: Batch, query_tile: int) -> int:
    """Write the batch into the program's metadata; the number of query tiles."""
    num_seqs, num_blocks = batch.block_tables.shape
    for name, values in (
        ("token_ids", batch.token_ids),
        ("positions", batch.positions),
        ("slots", batch.slot_mapping),
        ("logit_rows", batch.logit_rows),
    ):
        arrays[name][: len(values)] = values
    arrays["block_tables"][:num_seqs, :num_blocks] = batch.block_tables
    tiles = query_tiles(batch.query_starts, query_tile)
    arrays["tiles"][: len(tiles)] = tiles
    return len(tiles)


def query_tiles(query_starts: npt.NDArray[np.int32], query_tile: int) -> npt.NDArray[np.int32]:
    """Cut each sequence's token rows into tiles: (num_tiles, 3) of sequence, first row, rows."""
    counts = np.diff(query_starts)
    tiles_per_seq = -(-counts // query_tile)
    sequence = np.repeat(np.arange(len(counts), dtype=np.int32), tiles_per_seq)
    index = np.arange(len(sequence)) - np.repeat(
        np.cumsum(tiles_per_seq) - tiles_per_seq, tiles_per_seq
    )
    first = query_starts[sequence] + index * query_tile
    rows = np.minimum(query_tile, query_starts[sequence + 1] - first)
    return np.stack((sequence, first, rows), axis=1).astype(np.int32)
