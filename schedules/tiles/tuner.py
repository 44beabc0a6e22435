"""The tuner: fast start, then fine-tune (Sandwich, arXiv 2507.18454).

Fast start ranks register tiles on cache-resident data, one core, a few milliseconds each. Fine-tune
runs the best few on the slice that the cores really run, with weights from memory, and goes from
the winner in single steps while steps win. Whatever is compared takes turns, sample by sample, and
a step counts only when a second, longer comparison confirms it: neighbours make noise, and noise
must not decide.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from codegen.spec import GemmTile
from schedules.records import CpuKind, RecordBook, TileKey, TuningRecord, current_generator
from schedules.tiles.space import TileSpace
from schedules.tiles.trial import Trial

NUM_KERNELS = 12  # register tiles of the fast start
NUM_FINALISTS = 3  # of them that run on the real slice, beside the default and known records
NUM_MOVES = 6  # single steps that are compared at a time
SCREENING_ROUNDS = 3  # samples of each in a comparison of many
CONFIRMING_ROUNDS = 7  # pairs that confirm a winner
FINAL_ROUNDS = 9  # pairs of the winner and the default, which the record tells of
MIN_GAIN = 0.015  # of the time, below which a step is not worth another tile
MIN_WINS = 0.7  # of the pairs of a comparison of two
MAX_STEPS = 8  # of fine-tuning

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskLimits:
    """What the cores can do at most, sampled while tuning."""

    gflops: float
    gbps: float


class Runner(Protocol):
    """Runs trials (schedules.tiles.trials.TrialRunner)."""

    def prepare(self, trials: Iterable[Trial]) -> None: ...

    def seconds(self, trial: Trial) -> float: ...

    def forget(self) -> None: ...


@dataclass(frozen=True)
class Task:
    """One decision: the tile of all GEMMs that come down to the same slice and rows.

    roles: their names, with the key of the record of each. start: the default tile. weight: their
    part of a step's time, in any unit.
    """

    roles: tuple[tuple[str, TileKey], ...]
    space: TileSpace
    cpus: tuple[int, ...]
    start: GemmTile
    weight: float

    @property
    def rows(self) -> int:
        return self.space.rows

    def trial(self, tile: GemmTile) -> Trial:
        """A tile on the slice that the cores run."""
        space = self.space
        return Trial(space.isa.name, space.layout, space.rows, self.cpus, tile)


@dataclass(frozen=True)
class Outcome:
    """What tuning a task found; `tile` is the default if nothing was better.

    seconds: of the slice. speedup: over the default, of paired samples.
    """

    task: Task
    tile: GemmTile
    seconds: float
    speedup: float
    limits: TaskLimits
    num_trials: int

    @property
    def gflops(self) -> float:
        return self.task.trial(self.tile).flops / self.seconds / 1e9

    @property
    def gbps(self) -> float:
        """Weights read per second."""
        return self.task.space.layout.nbytes / self.seconds / 1e9

    @property
    def limit_ratio(self) -> float:
        """The part of whichever limit is nearer."""
        return max(self.gflops / self.limits.gflops, self.gbps / self.limits.gbps)


@dataclass(frozen=True)
class Progress:
    """Where tuning is: the best tile so far of the running task, and its time."""

    task: Task
    tile: GemmTile
    seconds: float
    limits: TaskLimits

    def rate_text(self) -> str:
        """The rate as a part of the limit that is nearer, for people."""
        rates = Outcome(self.task, self.tile, self.seconds, 1.0, self.limits, 0)
        compute, memory = rates.gflops / self.limits.gflops, rates.gbps / self.limits.gbps
        if compute >= memory:
            return f"{rates.gflops:.0f} GFLOP/s, {compute:.0%} of the limit"
        return f"{rates.gbps:.1f} GB/s, {memory:.0%} of the limit"


@dataclass(frozen=True)
class Surroundings:
    """What a tuner is given beside its tasks.

    limits: a sample of them. is_right: whether the kernel with a tile is right. clock: seconds.
    save: keeps records as they are found. report: hears of every change of the best.
    """

    runner: Runner
    machine: str
    cpu: CpuKind
    limits: Callable[[Task], TaskLimits]
    is_right: Callable[[Task, GemmTile], bool]
    clock: Callable[[], float]
    save: Callable[[Sequence[TuningRecord]], None]
    report: Callable[[Progress], None]


@dataclass(frozen=True)
class Summary:
    """All that a run of the tuner found."""

    outcomes: tuple[Outcome, ...]
    seconds: float
    is_interrupted: bool


def tune(tasks: Sequence[Task], book: RecordBook, around: Surroundings, budget: float) -> Summary:
    """Tune `tasks` in about `budget` seconds; a task's part is that of its weight.

    Tasks without a record of this machine and generator come first, the others go on from theirs
    with what is left, so that an interrupted run is resumed by running it again. Every finished
    task is saved at once. KeyboardInterrupt ends the run and keeps what was found.
    """
    started = around.clock()
    ordered = sorted(
        tasks, key=lambda task: (all(book.exact(key) for _, key in task.roles), -task.weight)
    )
    outcomes: list[Outcome] = []
    is_interrupted = False
    try:
        for i, task in enumerate(ordered):
            left = budget - (around.clock() - started)
            if left <= 0:
                break
            part = task.weight / sum(other.weight for other in ordered[i:])
            outcome = _TaskTuner(task, book, around, left * part).run()
            if outcome is None:
                continue
            outcomes.append(outcome)
            records = _records(outcome, around)
            around.save(records)
            for record in records:
                book.add(record)
    except KeyboardInterrupt:
        is_interrupted = True
    return Summary(tuple(outcomes), around.clock() - started, is_interrupted)


def _records(outcome: Outcome, around: Surroundings) -> list[TuningRecord]:
    """The record of each role of the task."""
    return [
        TuningRecord(
            machine=around.machine,
            cpu=around.cpu,
            key=key,
            tile=outcome.tile,
            gflops=outcome.gflops,
            gbps=outcome.gbps,
            limit_ratio=outcome.limit_ratio,
            speedup=outcome.speedup,
            generator=current_generator(),
        )
        for _, key in outcome.task.roles
    ]


class _TaskTuner:
    """Tunes one task within `budget` seconds, which it exceeds by its last comparison at most."""

    def __init__(self, task: Task, book: RecordBook, around: Surroundings, budget: float) -> None:
        self._task = task
        self._book = book
        self._around = around
        self._clock = around.clock
        self._deadline = around.clock() + budget
        self._budget = budget
        self._limits = around.limits(task)
        self._seen: set[GemmTile] = set()

    def run(self) -> Outcome | None:
        """The outcome; None if even the default is wrong."""
        task, runner = self._task, self._around.runner
        default = task.space.start(task.start)
        finalists = [default, *self._known(default), *self._fast_start()]
        best, seconds = self._contest(finalists)
        self._tell(best, seconds)
        for _ in range(MAX_STEPS):
            step = self._step(best)
            if step is None:
                break
            best, seconds = step
            self._tell(best, seconds)
        outcome = self._judged(best, default)
        runner.forget()
        return outcome

    def _is_late(self, part: float = 1.0) -> bool:
        return self._clock() > self._deadline - self._budget * (1 - part)

    def _tell(self, tile: GemmTile, seconds: float) -> None:
        self._around.report(Progress(self._task, tile, seconds, self._limits))

    def _known(self, default: GemmTile) -> list[GemmTile]:
        """Tiles that records suggest, of this machine or of others."""
        found = [self._book.best(key) for _, key in self._task.roles]
        starts = [self._task.space.start(entry.record.tile) for entry in found if entry]
        return [tile for tile in dict.fromkeys(starts) if self._task.space.is_legal(tile, default)]

    def _fast_start(self) -> list[GemmTile]:
        """The best register tiles on cache-resident data: the slower half drops out, again and
        again.
        """
        kernels = _various(self._task.space.micro_kernels(), NUM_KERNELS)
        trials = {tile: self._task.trial(tile).resident() for tile in kernels}
        self._around.runner.prepare(trials.values())
        times: dict[GemmTile, list[float]] = {tile: [] for tile in kernels}
        while len(kernels) > NUM_FINALISTS and not self._is_late(0.3):
            for tile in kernels:
                times[tile].append(self._around.runner.seconds(trials[tile]))
            kernels.sort(key=lambda tile: _relative(times[tile], trials[tile]))
            kernels = kernels[: max(NUM_FINALISTS, len(kernels) // 2)]
        return kernels[:NUM_FINALISTS]

    def _contest(self, tiles: Sequence[GemmTile]) -> tuple[GemmTile, float]:
        """The fastest of a few on the real slice, and its seconds."""
        tiles = list(dict.fromkeys(tiles))
        times = self._compare(tiles)
        best = min(tiles, key=lambda tile: statistics.median(times[tile]))
        return best, statistics.median(times[best])

    def _compare(
        self, tiles: Sequence[GemmTile], rounds: int = SCREENING_ROUNDS
    ) -> dict[GemmTile, list[float]]:
        """Samples of each; they take turns, in alternating order."""
        trials = {tile: self._task.trial(tile) for tile in tiles}
        self._seen.update(tiles)
        self._around.runner.prepare(trials.values())
        times: dict[GemmTile, list[float]] = {tile: [] for tile in tiles}
        for i in range(rounds):
            for tile in tiles if i % 2 == 0 else reversed(tiles):
                times[tile].append(self._around.runner.seconds(trials[tile]))
        return times

    def _step(self, best: GemmTile) -> tuple[GemmTile, float] | None:
        """A tile one step from `best` that is faster beyond doubt, and its seconds."""
        moves = [tile for tile in self._task.space.moves(best) if tile not in self._seen]
        while moves and not self._is_late(0.85):
            some, moves = moves[:NUM_MOVES], moves[NUM_MOVES:]
            times = self._compare([best, *some])
            tile = max(some, key=lambda tile: _gain(times[tile], times[best]))
            if _gain(times[tile], times[best]) > MIN_GAIN and self._is_confirmed(tile, best):
                return tile, statistics.median(times[tile])
        return None

    def _is_confirmed(self, tile: GemmTile, best: GemmTile) -> bool:
        """Whether `tile` is faster in a longer row of pairs too."""
        times = self._compare([best, tile], CONFIRMING_ROUNDS)
        return _is_faster(times[tile], times[best])

    def _judged(self, best: GemmTile, default: GemmTile) -> Outcome | None:
        """The outcome after a last comparison with the default, checked for correctness."""
        times = self._compare(list(dict.fromkeys((default, best))), FINAL_ROUNDS)
        gain = _gain(times[best], times[default])
        if not _is_faster(times[best], times[default]):
            best, gain = default, 0.0
        if not self._around.is_right(self._task, best):
            names = ", ".join(role for role, _ in self._task.roles)
            _log.warning("the kernel of %s with %s is wrong and its record is dropped", names, best)
            if best == default or not self._around.is_right(self._task, default):
                return None
            best, gain = default, 0.0
        return Outcome(
            task=self._task,
            tile=best,
            seconds=statistics.median(times[best]),
            speedup=1 / (1 - gain),
            limits=self._limits,
            num_trials=len(self._seen),
        )


def _gain(new: Sequence[float], old: Sequence[float]) -> float:
    """The part of the time that `new` saves: the median over pairs of samples."""
    return statistics.median(1 - a / b for a, b in zip(new, old, strict=True))


def _is_faster(new: Sequence[float], old: Sequence[float]) -> bool:
    """Whether `new` saves enough in the middle and wins often enough to be no accident."""
    wins = sum(a < b for a, b in zip(new, old, strict=True))
    return wins >= MIN_WINS * len(new) and _gain(new, old) > MIN_GAIN


def _relative(times: Sequence[float], trial: Trial) -> float:
    """Seconds per operation; the quickest sample, as caches and noise only ever add."""
    return min(times) / trial.flops if times else math.inf


def _various(tiles: Sequence[GemmTile], count: int) -> list[GemmTile]:
    """The first `count`, but at most two of one register tile: K unrolls are for later steps."""
    found: list[GemmTile] = []
    for tile in tiles:
        same = [other for other in found if replace(other, k_unroll=tile.k_unroll) == tile]
        if len(same) < 2:
            found.append(tile)
    return found[:count]
