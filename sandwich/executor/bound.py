"""A program bound to its arrays: a batch is written into them, run, and its output read from them.

Knows one program and nothing of others, of phases that alternate or of what runs beside it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from codegen import reference
from codegen.compile import tensor
from codegen.step.arguments import argument_specs
from codegen.step.timing import reset
from platforms.memory import Arena
from sandwich.executor.base import Batch, NativeTime, Scores, StepOutput
from sandwich.executor.inputs import METADATA, StepInputs
from sandwich.executor.launcher import Job
from sandwich.executor.programs import PhaseProgram
from sandwich.executor.specs import distinct_arrays, step_arrays
from sandwich.executor.step_report import step_report
from sandwich.executor.uneven import Unevenness

_log = logging.getLogger(__name__)
Arrays = dict[str, npt.NDArray[Any]]


class BoundProgram:
    """Runs one batch at a time; an output's logits are a view that the next step overwrites.

    `arrays` are metadata and workspace, of which `inputs` writes the metadata; `arguments` are all
    of the program's tensors in order; `norm` are the weights of the final norm.
    """

    def __init__(
        self,
        program: PhaseProgram,
        arrays: Arrays,
        inputs: StepInputs,
        arguments: tuple[Any, ...],
        norm: npt.NDArray[np.float32],
    ) -> None:
        self.program = program
        self._norm = norm
        self.arrays = arrays
        self._inputs = inputs
        self._arguments = arguments
        self._logits = arrays["logits"][:, : program.spec.shape.vocab_size]
        self._argmax: Any = arrays["argmax"].data
        self._peaks: Any = arrays["peaks"].data
        self._unevenness = Unevenness(arrays["claims"], program.spec.num_cores)
        self._num_tokens = self._num_logits = self._num_scored = 0
        self._state_rows: list[int] = []

    def run(self, batch: Batch) -> StepOutput:
        """`start` and `wait`, at once where the calling thread is the launcher's own."""
        return self._output(self.program.launcher.run(self._job(batch)))

    def start(self, batch: Batch) -> None:
        """Begin a step on the program's launcher; `wait` must follow before the next."""
        self.program.launcher.start(self._job(batch))

    def is_done(self) -> bool:
        """Whether `wait` would return at once."""
        return self.program.launcher.is_done()

    def wait(self) -> StepOutput:
        """The output of the step that was started."""
        return self._output(self.program.launcher.wait())

    def stop(self) -> None:
        """Let the step that runs end within an operator's time; any thread may call it."""
        self.arrays["stop"][0] = 1

    def take_stop(self) -> bool:
        """Whether `stop` was called since the last time."""
        was_stopped = bool(self.arrays["stop"][0])
        self.arrays["stop"][0] = 0
        return was_stopped

    def _job(self, batch: Batch) -> Job:
        """Write the batch; the call that computes it."""
        spec, function, arguments = self.program.spec, self.program.function, self._arguments
        num_tiles = self._inputs.write(batch, spec.query_tile)
        self._num_tokens, self._num_logits = batch.num_tokens, len(batch.logit_rows)
        self._num_scored = self._inputs.write_scored(batch)
        self._state_rows = batch.state_rows if batch.pooled else []
        scalars = (self._num_tokens, num_tiles, self._num_logits, self._num_scored)
        self._unevenness.before_step()
        if spec.has_timers:
            reset(self.arrays["ticks"])
        return lambda: function(*scalars, *arguments)

    def _output(self, native: NativeTime) -> StepOutput:
        num_logits = self._num_logits
        self._unevenness.after_step(native.seconds)
        if self.program.spec.has_timers:
            ticks, num_tokens = self.arrays["ticks"], self._num_tokens
            for line in step_report(self.program.spec, ticks, num_tokens, num_logits):
                _log.debug("%s", line)
        return StepOutput(
            self._logits[:num_logits],
            self._argmax[:num_logits].tolist(),
            self._peaks[:num_logits].tolist(),
            self._scores() if self._num_scored else None,
            native,
            self._states() if self._state_rows else None,
        )

    def _states(self) -> npt.NDArray[np.float32]:
        """Few want them, so the final norm of these rows is no part of the program."""
        shape = self.program.spec.shape
        rows = self.arrays["x"][self._state_rows, : shape.hidden_size]
        weights = self._norm[: shape.hidden_size] / np.float32(shape.traits.logit_scale)
        return reference.rms_norm(rows, weights, shape.rms_norm_eps)

    def _scores(self) -> Scores:
        arrays, rows = self.arrays, slice(self._num_logits)
        return Scores(
            arrays["totals"][rows].tolist(),
            arrays["chosen"][rows].tolist(),
            arrays["ranks"][rows].tolist(),
            arrays["top_ids"][rows],
            arrays["top_logits"][rows],
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
    inputs: dict[tuple[int, ...], StepInputs] = {}  # by their arrays, of which each has one writer
    bound = []
    for program in chosen:
        arrays = {name: shared[name, spec] for name, spec in step_arrays(program.spec).items()}
        key = tuple(id(arrays[name]) for name in METADATA)
        if key not in inputs:
            limits = program.spec.limits
            inputs[key] = StepInputs(arrays, limits.num_blocks, limits.block_size)
        by_name = weights | cache | arrays
        kinds = argument_specs(program.spec).values()
        arguments = tuple(tensors[id(by_name[name])] for kind in kinds for name in kind)
        bound.append(BoundProgram(program, arrays, inputs[key], arguments, weights["norm"]))
    return bound
