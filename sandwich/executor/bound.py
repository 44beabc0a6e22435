"""A program bound to its arrays: a batch is written into them, run, and its output read from them.

Knows one program and nothing of others, of phases that alternate or of what runs beside it.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from codegen.arguments import argument_specs
from codegen.compile import tensor
from codegen.timing import reset
from platforms.memory import Arena
from sandwich.executor.base import Batch, StepOutput
from sandwich.executor.programs import PhaseProgram
from sandwich.executor.specs import distinct_arrays, step_arrays
from sandwich.executor.step_report import step_report

_log = logging.getLogger(__name__)
Arrays = dict[str, npt.NDArray[Any]]


class BoundProgram:
    """Runs one batch at a time; an output's arrays are views that the next step overwrites.

    `arrays` are metadata and workspace, `arguments` all of the program's tensors in order.
    """

    def __init__(self, program: PhaseProgram, arrays: Arrays, arguments: tuple[Any, ...]) -> None:
        self.program = program
        self.arrays = arrays
        self._arguments = arguments
        self._num_tokens = self._num_logits = 0

    def run(self, batch: Batch) -> StepOutput:
        """`start` and `wait`."""
        self.start(batch)
        return self.wait()

    def start(self, batch: Batch) -> None:
        """Begin a step on the program's launcher; `wait` must follow before the next."""
        spec, function, arguments = self.program.spec, self.program.function, self._arguments
        num_tiles = _fill(self.arrays, batch, spec.query_tile)
        self._num_tokens, self._num_logits = len(batch.token_ids), len(batch.logit_rows)
        scalars = (self._num_tokens, num_tiles, self._num_logits)
        if spec.has_timers:
            reset(self.arrays["ticks"])
        self.program.launcher.start(lambda: function(*scalars, *arguments))

    def is_done(self) -> bool:
        """Whether `wait` would return at once."""
        return self.program.launcher.is_done()

    def wait(self) -> StepOutput:
        """The output of the step that was started."""
        native = self.program.launcher.wait()
        spec, arrays, num_logits = self.program.spec, self.arrays, self._num_logits
        if spec.has_timers:
            for line in step_report(spec, arrays["ticks"], self._num_tokens, num_logits):
                _log.debug("%s", line)
        return StepOutput(
            logits=arrays["logits"][:num_logits, : spec.shape.vocab_size],
            argmax=arrays["argmax"][:num_logits],
            native=native,
        )


def bind(
    programs: Iterable[PhaseProgram], weights: Arrays, cache: Arrays, arena: Arena
) -> list[BoundProgram]:
    """Programs that never run at the same time, which share what they can of `arena`."""
    chosen = list(programs)
    shared = {
        key: arena.array(spec.shape, spec.dtype)
        for key, spec in distinct_arrays(program.spec for program in chosen).items()
    }
    tensors = {id(a): tensor(a) for a in (*weights.values(), *cache.values(), *shared.values())}
    bound = []
    for program in chosen:
        arrays = {name: shared[name, spec] for name, spec in step_arrays(program.spec).items()}
        by_name = weights | cache | arrays
        kinds = argument_specs(program.spec).values()
        arguments = tuple(tensors[id(by_name[name])] for kind in kinds for name in kind)
        bound.append(BoundProgram(program, arrays, arguments))
    return bound


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


@functools.cache
def _tiles_of_one(num_seqs: int) -> npt.NDArray[np.int32]:
    """The tiles of sequences with a token each, made once: there is one for every decode step."""
    rows = np.arange(num_seqs, dtype=np.int32)
    tiles = np.stack((rows, rows, np.ones_like(rows)), axis=1)
    tiles.flags.writeable = False
    return tiles


def query_tiles(query_starts: npt.NDArray[np.int32], query_tile: int) -> npt.NDArray[np.int32]:
    """Cut each sequence's token rows into tiles: (num_tiles, 3) of sequence, first row, rows."""
    num_seqs = len(query_starts) - 1
    if query_starts[-1] == num_seqs:
        return _tiles_of_one(num_seqs)
    tiles = [
        (sequence, first, min(query_tile, end - first))
        for sequence, (start, end) in enumerate(pairwise(query_starts.tolist()))
        for first in range(start, end, query_tile)
    ]
    return np.array(tiles, np.int32).reshape(-1, 3)
