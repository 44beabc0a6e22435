"""The tuner finds the best tile of a made-up machine, through noise, damage and interruptions."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import pytest

from codegen.layout.panels import PanelLayout
from codegen.spec import GemmTile, WeightFormat
from platforms.isa import isa_row
from platforms.machines import load_machine
from schedules.records import CpuKind, RecordBook, TileKey, TuningRecord
from schedules.tiles.space import TileSpace
from schedules.tiles.trial import Trial
from schedules.tiles.tuner import Progress, Summary, Surroundings, Task, TaskLimits, tune

MACHINE = load_machine("epyc-guest")
LAYOUT = PanelLayout(1024, 2048, WeightFormat("bfloat16"), 64, 16)
BEST = GemmTile(8, 512, 4, 2048, 2)
START = GemmTile(6, 0, 8)


def cost_of(tile: GemmTile) -> float:
    """Seconds with one valley, at BEST."""
    distance = (
        abs(tile.mr - BEST.mr) / 8
        + abs((tile.kc or LAYOUT.k) - BEST.kc) / 2048
        + abs(tile.k_unroll - BEST.k_unroll) / 16
        + abs(tile.prefetch_bytes - BEST.prefetch_bytes) / 16384
        + abs((tile.nv or 4) - BEST.nv) / 4
        + abs(tile.block_prefetch - BEST.block_prefetch)
    )
    return 1e-3 * (1 + 0.5 * distance)


@dataclass
class FakeMachine:
    """A runner, a clock and a check; a sample takes `sample_seconds` of the clock.

    noise: the largest part that a sample is slower. wrong: tiles whose kernels fail their check.
    interrupt_at: the number of samples after which Ctrl-C comes.
    """

    cost: Callable[[GemmTile], float] = cost_of
    noise: float = 0.0
    wrong: Callable[[GemmTile], bool] = lambda tile: False
    interrupt_at: float = float("inf")
    sample_seconds: float = 0.01
    now: float = 0.0
    num_samples: int = 0
    timed: set[Trial] = field(default_factory=set)
    saved: list[TuningRecord] = field(default_factory=list)
    heard: list[Progress] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rng = random.Random(0)
        self._ready: set[Trial] = set()

    def prepare(self, trials: Iterable[Trial]) -> None:
        self._ready.update(trials)

    def seconds(self, trial: Trial) -> float:
        assert trial in self._ready
        self.timed.add(trial)
        self.num_samples += 1
        if self.num_samples > self.interrupt_at:
            raise KeyboardInterrupt
        self.now += self.sample_seconds
        return self.cost(trial.tile) * (1 + self.noise * self._rng.random())

    def forget(self) -> None:
        self._ready.clear()

    def is_right(self, task: Task, tile: GemmTile) -> bool:
        return not self.wrong(tile)

    def tune(
        self,
        tasks: Sequence[Task],
        budget: float = 1e6,
        records: Sequence[TuningRecord] = (),
    ) -> Summary:
        around = Surroundings(
            runner=self,
            machine=MACHINE.fingerprint,
            cpu=CpuKind.of(MACHINE),
            limits=lambda task: TaskLimits(gflops=1000.0, gbps=10.0),
            is_right=self.is_right,
            clock=lambda: self.now,
            save=self.saved.extend,
            report=self.heard.append,
        )
        return tune(tasks, RecordBook(MACHINE, records), around, budget)


def task_of(rows: int = 32, weight: float = 1.0, roles: Sequence[str] = ("o",)) -> Task:
    space = TileSpace(isa_row("avx512_bf16"), LAYOUT, rows, l2_bytes=1 << 20)
    keys = [TileKey("avx512_bf16", "bfloat16", 1024 + i, 2048, 2, rows) for i in range(len(roles))]
    return Task(tuple(zip(roles, keys, strict=True)), space, (0, 1), START, weight)


def test_the_best_tile_is_found_step_by_step() -> None:
    machine = FakeMachine()
    (outcome,) = machine.tune([task_of()]).outcomes
    assert outcome.tile == BEST
    assert outcome.speedup == pytest.approx(cost_of(START) / cost_of(BEST))
    assert outcome.seconds == cost_of(BEST)
    assert outcome.gbps == pytest.approx(LAYOUT.nbytes / cost_of(BEST) / 1e9)
    assert outcome.limit_ratio == pytest.approx(outcome.gbps / 10)
    assert [progress.seconds for progress in machine.heard] == sorted(
        (progress.seconds for progress in machine.heard), reverse=True
    )


@pytest.mark.parametrize("noise", [0.02, 0.1, 0.3])
def test_noise_does_not_lead_to_a_slower_tile(noise: float) -> None:
    (outcome,) = FakeMachine(noise=noise).tune([task_of()]).outcomes
    assert cost_of(outcome.tile) <= cost_of(START)


def test_noise_alone_changes_nothing() -> None:
    machine = FakeMachine(cost=lambda tile: 1e-3, noise=0.1)
    (outcome,) = machine.tune([task_of()]).outcomes
    assert outcome.tile == START
    assert outcome.speedup == 1.0


def test_every_role_of_a_task_gets_its_record() -> None:
    machine = FakeMachine()
    machine.tune([task_of(roles=("qkv", "o", "gate_up"))])
    assert [record.key.n for record in machine.saved] == [1024, 1025, 1026]
    assert {record.tile for record in machine.saved} == {BEST}
    assert {record.machine for record in machine.saved} == {MACHINE.fingerprint}


def test_the_budget_is_kept_and_shared_by_weight() -> None:
    tasks = [task_of(rows, weight) for rows, weight in ((8, 1.0), (32, 3.0), (128, 1.0))]
    machine = FakeMachine(noise=0.1, sample_seconds=0.1)
    summary = machine.tune(tasks, budget=60.0)
    assert [outcome.task.rows for outcome in summary.outcomes] == [32, 8, 128]
    assert summary.seconds == machine.now
    assert summary.seconds < 1.5 * 60.0


def test_no_budget_tunes_nothing() -> None:
    machine = FakeMachine()
    assert machine.tune([task_of()], budget=0.0).outcomes == ()
    assert machine.num_samples == 0


@pytest.mark.parametrize("interrupt_at", [0, 5, 100])
def test_an_interrupted_run_keeps_what_was_found_and_is_resumed(interrupt_at: int) -> None:
    tasks = [task_of(8, 2.0), task_of(32, 1.0)]
    first = FakeMachine()
    first.tune(tasks[:1])
    cut = FakeMachine(interrupt_at=first.num_samples + interrupt_at)
    summary = cut.tune(tasks)
    assert summary.is_interrupted
    assert [outcome.task.rows for outcome in summary.outcomes] == [8]
    assert cut.saved == first.saved
    again = FakeMachine().tune(tasks, records=cut.saved)
    assert not again.is_interrupted
    assert [outcome.task.rows for outcome in again.outcomes] == [32, 8]


def test_a_known_record_is_where_a_later_run_starts() -> None:
    machine = FakeMachine()
    machine.tune([task_of()])
    again = FakeMachine()
    again.tune([task_of()], records=machine.saved)
    assert again.heard[0].tile == BEST


def test_a_wrong_kernel_is_dropped_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    machine = FakeMachine(wrong=lambda tile: tile == BEST)
    (outcome,) = machine.tune([task_of()]).outcomes
    assert outcome.tile == START
    assert [record.tile for record in machine.saved] == [START]
    assert "is wrong and its record is dropped" in caplog.text


def test_nothing_is_recorded_where_even_the_default_is_wrong() -> None:
    machine = FakeMachine(wrong=lambda tile: True)
    assert machine.tune([task_of()]).outcomes == ()
    assert machine.saved == []


def test_the_fast_start_runs_small_on_one_core() -> None:
    machine = FakeMachine()
    machine.tune([task_of()])
    resident = {trial for trial in machine.timed if trial.cpus == (0,)}
    assert resident
    assert {trial.layout.n for trial in resident} == {LAYOUT.panel}
    assert {trial.layout for trial in machine.timed - resident} == {LAYOUT}


@pytest.mark.parametrize(
    ("rows", "text"), [(1, "2.1 GB/s, 21% of the limit"), (512, "1074 GFLOP/s, 107% of the limit")]
)
def test_the_rate_is_told_beside_its_nearer_limit(rows: int, text: str) -> None:
    seconds = 2e-3
    assert Progress(task_of(rows), START, seconds, TaskLimits(1000.0, 10.0)).rate_text() == text
