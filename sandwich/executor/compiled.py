"""The executor that serves: phase programs over one copy of the weights and one KV cache.

A batch becomes flat arrays in place, its phase picks a program and the launcher of that phase's
plan, and the step is one native call. Nothing moves when the phase changes. Two more programs, on
cores of their own, run a prefill step and decode steps at the same time.
"""

from __future__ import annotations

from collections.abc import Mapping

from codegen.spec import Phase
from platforms.memory import Arena
from sandwich.errors import UnsoundExecutorError
from sandwich.executor.base import Batch, ExecutorLimits, StepOutput
from sandwich.executor.bound import Arrays, BoundProgram, bind
from sandwich.executor.cached_blocks import CachedBlocks
from sandwich.executor.programs import PhaseProgram
from sandwich.executor.rehearsal import rehearsal
from sandwich.executor.step_report import operator_ns

Programs = Mapping[Phase, PhaseProgram]


class CompiledExecutor(CachedBlocks):
    """Runs batches on the compiled programs of their phase. Use from one thread at a time.

    `weights` and `cache` are arrays in arenas, `arena` has room for `step_bytes`; the executor
    shares them and owns the launchers. `corun` are the programs for the time between `start` and
    `wait`, on disjoint cores; without them nothing can be started.
    """

    def __init__(
        self,
        programs: Programs,
        limits: ExecutorLimits,
        weights: Arrays,
        cache: Arrays,
        arena: Arena,
        corun: Programs | None = None,
    ) -> None:
        self._limits = limits
        self._cache = cache
        self._programs: dict[Phase, BoundProgram] = {}
        self._corun: dict[Phase, BoundProgram] = {}
        self._in_flight: BoundProgram | None = None
        self._rehearsed: list[tuple[int, float]] = []  # argmax and its logit, of `warm_up`
        alone = list(programs.values())
        if corun:
            alone.append(corun[Phase.PREFILL])
            (decode,) = bind([corun[Phase.DECODE]], weights, cache, arena)
            self._corun[Phase.DECODE] = decode
        bound = bind(alone, weights, cache, arena)
        self._programs.update(zip(programs, bound, strict=False))
        if corun:
            self._corun[Phase.PREFILL] = bound[-1]

    @property
    def limits(self) -> ExecutorLimits:
        """The largest batch."""
        return self._limits

    def adopt_thread(self) -> None:
        """Let the calling thread launch decode steps, the many short ones, without a hand-over."""
        self._programs[Phase.DECODE].program.launcher.adopt()

    def run(self, batch: Batch) -> StepOutput:
        """One step; the logits are a view that the next step of the phase overwrites."""
        programs = self._corun if self._in_flight else self._programs
        self._copy_blocks(batch)
        return programs[batch.phase].run(batch)

    def start(self, batch: Batch) -> None:
        """Begin a prefill step on the cores that are its own while decode steps run."""
        assert self._in_flight is None, "a step is in flight"
        program = self._corun[batch.phase]
        self._copy_blocks(batch)
        program.start(batch)
        self._in_flight = program

    def stop(self) -> None:
        """Let the prefill step that runs end soon; its output is of no use."""
        for programs in (self._programs, self._corun):
            if Phase.PREFILL in programs:
                programs[Phase.PREFILL].stop()

    def take_stop(self) -> bool:
        """Whether `stop` was called since the last time."""
        all_programs = (self._programs, self._corun)
        prefill = [each[Phase.PREFILL] for each in all_programs if Phase.PREFILL in each]
        taken = [program.take_stop() for program in prefill]
        return any(taken)

    def is_done(self) -> bool:
        """Whether the step that was started has ended."""
        return self._in_flight is not None and self._in_flight.is_done()

    def wait(self) -> StepOutput:
        """The output of the step that was started; its logits are a view as those of `run`."""
        assert self._in_flight is not None, "no step is in flight"
        program, self._in_flight = self._in_flight, None
        return program.wait()

    def operator_ns(self, phase: Phase) -> dict[str, int]:
        """Nanoseconds of each operator in the last step of a phase whose program has timers."""
        program = self._programs[phase]
        return operator_ns(program.program.spec, program.arrays["ticks"])

    def warm_up(self) -> None:
        """Run a token through every program, so that the first request does not wait for threads to
        start and pages to be mapped. It leaves its keys and values in a block nobody has yet.
        """
        self._rehearsed = [self._rehearse(program, block_id=0) for program in self._all_programs]

    def prove(self, block_id: int) -> None:
        """Run the token of `warm_up` again. UnsoundExecutorError unless every program gives the
        logits that it gave then, bit for bit.
        """
        for program, (argmax, peak) in zip(self._all_programs, self._rehearsed, strict=True):
            again = self._rehearse(program, block_id)
            if again != (argmax, peak):
                raise UnsoundExecutorError(
                    f"after a failed step the {program.program.spec.phase.value} program gives "
                    f"token {again[0]} with logit {again[1]!r}, which was {argmax} with {peak!r}; "
                    "restart the server"
                )

    @property
    def _all_programs(self) -> list[BoundProgram]:
        return [*self._programs.values(), *self._corun.values()]

    def _rehearse(self, program: BoundProgram, block_id: int) -> tuple[int, float]:
        spec = program.program.spec
        size = spec.limits.block_size
        batch = rehearsal(spec.phase, [(0, 1)], size, vocab_size=1, first_block=block_id)
        output = program.run(batch)
        return output.argmax[0], output.peaks[0]

    def close(self) -> None:
        """End the launchers, once they have done what was started."""
        for program in self._all_programs:
            program.program.launcher.close()
