"""Inside the GEMM benchmark: turns, trials of settings, rows of the result and their summary."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import bench.gemm.peer
import bench.gemm.picture
import bench.gemm.turns
from bench.gemm.contest import Contestant, Problem, RefusedError
from bench.gemm.peer import pin_workers
from bench.gemm.peers import PEERS, OpenBlas
from bench.gemm.shapes import FORMATS
from bench.gemm.summary import CellTimes, PeerTimes, cell_row, show, summary_of
from bench.gemm.turns import LimitMeters, take_turns
from codegen.layout.panels import PanelLayout
from codegen.spec import WeightFormat


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting; the figures mean nothing."""
    monkeypatch.setattr(bench.gemm.turns, "IDLE_STEP_SECONDS", 0.0)
    monkeypatch.setattr(bench.gemm.peer, "WARM_SECONDS", 0.05)


class Fake(Contestant):
    """Writes down when it was called; samples a limit, too."""

    def __init__(self, name: str, log: list[str], seconds: float = 1.0) -> None:
        self.name, self._log, self._seconds = name, log, seconds  # type: ignore[misc]

    def prepare(self, num_rows: int) -> float:
        return 1.0

    def seconds(self, num_calls: int) -> float:
        self._log.append(self.name)
        return self._seconds

    def sample(self) -> float:
        return self.seconds(1)

    def close(self) -> None:
        pass


@pytest.mark.parametrize(("cell_seconds", "num_rounds"), [(0.0, 2), (1e9, 3)])
def test_turns_alternate_until_the_rounds_or_the_time_are_over(
    cell_seconds: float, num_rounds: int
) -> None:
    log: list[str] = []
    read: Any = Fake("r", log, 3.0)
    peak: Any = Fake("p", log, 4.0)
    turns = take_turns(
        [Fake("a", log), Fake("b", log)], 1, LimitMeters(read, peak), 3, cell_seconds
    )
    assert turns.seconds == {"a": (1.0,) * num_rounds, "b": (1.0,) * num_rounds}
    assert (turns.read_gbps, turns.peak_gflops) == ((3.0,) * num_rounds, (4.0,) * num_rounds)
    assert "".join(log) == "abrpbarpabrp"[: 4 * num_rounds]


@pytest.mark.parametrize(
    ("rounds", "setting", "seconds"),
    [
        # a cold one, one to count calls, three that are compared: a lucky one does not win
        ([(9, 9), (1, 1), (1.25, 1), (0.1, 1), (1.25, 1)], "b", 1.0),
        # calls of seconds have one trial
        ([(1.5, 2.0)], "a", 1.5),
    ],
)
def test_a_peer_takes_part_with_the_setting_that_wins_most_rounds(
    monkeypatch: pytest.MonkeyPatch,
    rounds: list[tuple[float, float]],
    setting: str,
    seconds: float,
) -> None:
    monkeypatch.setattr(bench.gemm.peer, "SLOW_SECONDS", 1.2 if len(rounds) == 1 else 10.0)
    peer: Any = object.__new__(OpenBlas)
    times = iter([time for pair in rounds for time in pair])
    peer._settings = lambda num_rows: ((name, lambda copy: None) for name in "ab")
    peer._timed = lambda num_calls: num_calls * next(times)
    assert peer._choose(1) == seconds == peer.trials[setting]
    assert peer.setting == setting
    assert next(times, None) is None


def refuse(*_: object) -> None:
    raise RuntimeError("bf16 needs the cpu support avx512bw\n  at some place in C++")


def test_a_setting_that_raises_does_not_take_part() -> None:
    peer: Any = object.__new__(OpenBlas)
    peer._settings = lambda num_rows: iter([("a", refuse), ("b", lambda copy: None)])
    peer._timed = lambda num_calls: 1.0 * num_calls
    assert peer._choose(1) == 1.0
    assert (peer.setting, list(peer.trials)) == ("b", ["b"])


def test_a_generator_of_settings_that_raises_ends_them() -> None:
    def settings(num_rows: int) -> Any:
        yield "a", lambda copy: None
        refuse()

    peer: Any = object.__new__(OpenBlas)
    peer._settings = settings
    peer._timed = lambda num_calls: 1.0 * num_calls
    assert peer._choose(1) == 1.0
    peer._settings = lambda num_rows: iter([("a", refuse)])
    with pytest.raises(RefusedError, match=r"^bf16 needs the cpu support avx512bw$"):
        peer._choose(1)


def test_a_peer_that_refuses_a_problem_says_why() -> None:
    class Refusing(OpenBlas):
        def _start(self, cpus: list[int]) -> bool:
            raise RuntimeError("could not create a primitive")

    problem = Problem(PanelLayout(32, 16, WeightFormat("float32"), 16, 16), 1, 1)
    with pytest.raises(RefusedError, match="could not create a primitive"):
        Refusing(problem, [0])


def test_a_contestant_that_refuses_is_absent_with_its_words() -> None:
    class Refusing(Fake):
        def prepare(self, num_rows: int) -> float:
            raise RefusedError(RuntimeError("no AVX-512"))

    log: list[str] = []
    read: Any = Fake("r", log, 3.0)
    peak: Any = Fake("p", log, 4.0)
    turns = take_turns([Fake("a", log), Refusing("b", log)], 1, LimitMeters(read, peak), 2, 1e9)
    assert (set(turns.seconds), turns.refusals) == ({"a"}, {"b": "no AVX-512"})


def cell(m: int, read: tuple[float, ...] = (2.0,) * 3, **peers: tuple[float, ...]) -> CellTimes:
    problem = Problem(PanelLayout(1000, 500, WeightFormat("bfloat16"), 64, 16), 1, m)
    rivals = {
        name: PeerTimes("packed", times, {"packed": times[0]}) for name, times in peers.items()
    }
    return CellTimes("tiny", "o", m, problem, (0.001, 0.002, 0.004), rivals, read, (1000.0,) * 3)


def test_a_row_has_the_nearer_limit_and_the_better_peer() -> None:
    row = cell_row(cell(4, slow=(0.01,) * 3, fast=(0.001, 0.004, 0.004)))
    assert row["ours_gflops"] == pytest.approx(2 * 4 * 1000 * 500 / 0.002 / 1e9)
    assert row["ours_gbps"] == pytest.approx(1000 * 500 * 2 / 0.002 / 1e9)
    assert (row["limit"], row["limit_ratio"]) == ("read", pytest.approx(0.25))
    assert (row["peer"], row["ratio"]) == ("fast", 1.0)  # of 1, 2, 1
    assert [p["ratio"] for p in row["peers"]] == [5.0, 1.0]
    assert cell_row(cell(4, read=(1000.0,) * 3))["limit"] == "peak"


def test_what_changes_from_round_to_round_cancels_out() -> None:
    row = cell_row(cell(1, read=(4.0, 2.0, 1.0), fast=(0.0015, 0.003, 0.006)))
    assert row["limit_ratio"] == pytest.approx(1000 * 500 * 2 / 0.001 / 4e9)
    assert (row["read_gbps"], row["read_gbps_best"]) == (2.0, 4.0)
    assert row["ratio_quartiles"] == [row["ratio"]] * 2 == [pytest.approx(1.5)] * 2


def test_quartiles_of_a_ratio_leave_out_the_rounds_at_both_ends() -> None:
    one = replace(
        cell(1, fast=(1.0, 2.0, 3.0, 4.0, 500.0)),
        ours=(1.0,) * 5,
        read_gbps=(1.0,) * 5,
        peak_gflops=(1.0,) * 5,
    )
    assert cell_row(one)["ratio_quartiles"] == [2.0, 4.0]


def result_of(cells: list[dict[str, Any]]) -> dict[str, Any]:
    machine = {"cpu_model": "a CPU", "cpus": [0, 1], "isa": "avx2"}
    return {"machine": machine, **summary_of(cells)}


def test_the_summary_names_the_mean_and_the_worst_cell() -> None:
    cells = [cell_row(cell(m, fast=(seconds,) * 3)) for m, seconds in ((1, 0.001), (2, 0.004))]
    summary = result_of(cells)["summary"]["bfloat16"]
    assert summary["geomean_ratio"] == pytest.approx(1.0)
    assert summary["geomean_at_limit"] == pytest.approx(4.0)  # we reach a quarter of the limit
    assert (summary["num_behind"], summary["worst"]["m"]) == (1, 1)


def test_the_limits_of_a_result_are_those_of_its_cells() -> None:
    rows = [cell_row(cell(1, read=(gbps,) * 2 + (9.0,))) for gbps in (1.0, 2.0, 5.0)]
    limits = summary_of(rows)["limits"]
    assert (limits["read_gbps"], limits["read_gbps_best"]) == (2.0, 9.0)
    assert limits["peak_gflops"] == limits["peak_gflops_best"] == {"bfloat16": 1000.0}


def test_the_table_and_the_picture_show_cells_without_a_peer_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    result = result_of([cell_row(cell(1)), cell_row(cell(8, fast=(0.1,) * 3))])
    show(result, Console(width=80))
    assert "fast packed" in capsys.readouterr().out
    pytest.importorskip("matplotlib")
    bench.gemm.picture.draw(result, str(tmp_path / "a.png"))
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("num_cpus", [1, 2])
def test_threads_are_pinned_only_if_there_is_one_for_each_cpu(
    monkeypatch: pytest.MonkeyPatch, num_cpus: int
) -> None:
    pinned: list[set[int]] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda tid, cpus: pinned.append(cpus))
    with ThreadPoolExecutor(1) as one_thread:
        done = one_thread.submit(pin_workers, [4, 5][:num_cpus], lambda: sum(range(10000)))
    assert done.result() == (num_cpus == 1)
    assert pinned == ([{4}] if num_cpus == 1 else [])


def test_every_format_has_a_peer() -> None:
    found = {name for peers in PEERS.values() for peer in peers for name in peer.formats}
    assert found == {weights.name for weights in FORMATS.values()}
