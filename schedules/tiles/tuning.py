"""Tuning on a live machine: tasks, trials, limits and records put together."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from codegen.layout.model import ModelLayout
from codegen.spec import GemmTile, Phase, WeightFormat
from platforms.machine import Machine
from schedules.meters import PeakMeter, ReadMeter, last_level_cache_bytes
from schedules.plan import PlanPair
from schedules.records import FILE_NAME, CpuKind, RecordBook, append_records
from schedules.tiles.trials import TrialRunner, is_right
from schedules.tiles.tuned_plans import tasks_of
from schedules.tiles.tuner import Progress, Summary, Surroundings, Task, TaskLimits, tune

DEFAULT_BUDGET = 60.0  # seconds
LIMIT_SAMPLES = 2  # of each limit for every task
IDLE_SECONDS = 0.01  # until the workers of another pool sleep (TVM_THREAD_POOL_SPIN_COUNT)


@dataclass(frozen=True)
class TuningJob:
    """What to tune, where and for how long (seconds). roles: of the matrices; none: of all."""

    machine: Machine
    plans: PlanPair  # with the default tiles
    layout: ModelLayout
    cache_dir: Path
    phases: tuple[Phase, ...] = tuple(Phase)
    roles: tuple[str, ...] = ()
    budget: float = DEFAULT_BUDGET

    @property
    def records_file(self) -> Path:
        """Where records are kept."""
        return self.cache_dir / FILE_NAME

    def tasks(self) -> list[Task]:
        """What is decided one after the other."""
        l2_bytes = self.machine.cache_bytes(2) or 0
        return tasks_of(self.plans, self.layout, l2_bytes, self.phases, self.roles)


def run(job: TuningJob, report: Callable[[Progress], None]) -> Summary:
    """Tune, and keep every record as it is found. OSError if records cannot be written."""
    machine, tasks = job.machine, job.tasks()
    append_records(job.records_file, [])  # fails now, not after a minute
    llc_bytes = last_level_cache_bytes(machine)
    runner = TrialRunner(llc_bytes, job.cache_dir)
    with closing(runner), closing(_LimitMeters(machine, llc_bytes)) as meters:
        around = Surroundings(
            runner=runner,
            machine=machine.fingerprint,
            cpu=CpuKind.of(machine),
            limits=meters.sample,
            is_right=_is_right,
            clock=time.perf_counter,
            save=lambda records: append_records(job.records_file, records),
            report=report,
        )
        return tune(tasks, RecordBook.open(machine, job.cache_dir), around, job.budget)


def _is_right(task: Task, tile: GemmTile) -> bool:
    return is_right(task.space.isa, task.space.layout, tile)


class _LimitMeters:
    """The limits of cores, the best of all samples so far: what disturbs only ever lowers."""

    def __init__(self, machine: Machine, llc_bytes: int) -> None:
        self._isa, self._llc_bytes = machine.isa_row, llc_bytes
        self._reads: dict[tuple[int, ...], ReadMeter] = {}
        self._peaks: dict[tuple[str, tuple[int, ...]], PeakMeter] = {}

    def sample(self, task: Task) -> TaskLimits:
        """With a few new samples. The workers sleep again when it returns."""
        cpus, dtype = task.cpus, _operands(task.space.layout.format)
        if cpus not in self._reads:
            self._reads[cpus] = ReadMeter(self._isa, cpus, self._llc_bytes)
        if (dtype, cpus) not in self._peaks:
            self._peaks[dtype, cpus] = PeakMeter(self._isa, dtype, cpus)
        peak, read = self._peaks[dtype, cpus], self._reads[cpus]
        for meter in (peak, read) * LIMIT_SAMPLES:
            meter.sample()
            time.sleep(IDLE_SECONDS)
        return TaskLimits(gflops=peak.best, gbps=read.best)

    def close(self) -> None:
        """End their threads."""
        for meter in (*self._reads.values(), *self._peaks.values()):
            meter.close()


def _operands(weights: WeightFormat) -> str:
    """The type in which weights of a format are multiplied, where the ISA has it."""
    if weights.has_int8_activations:
        return "int8"
    return "bfloat16" if weights.is_quantized else weights.dtype
