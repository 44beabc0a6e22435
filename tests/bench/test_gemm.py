"""The GEMM benchmark on a tiny shape: cells, rules, peers, refusals, file and picture."""

import importlib.util
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import bench.gemm
import bench.gemm_peer
import bench.gemm_picture
from bench.gemm import FORMATS, Selection, take_turns
from bench.gemm_contest import Contestant, Problem
from bench.gemm_peer import pin_workers
from bench.gemm_peers import PEERS
from bench.gemm_plans import DECODE_ROWS, tiles_of
from bench.gemm_summary import CellTimes, PeerTimes, cell_row, show, summary_of
from codegen.gemm_program import GemmProgram
from codegen.panels import PanelLayout
from codegen.spec import GEMM_ROLES, GemmTile, TileRanges, WeightFormat
from platforms.isa import select_isa
from sandwich.cli import main
from sandwich.models.presets import preset
from schedules.meters import PeakMeter, ReadMeter
from schedules.plan import default_plans

TINY = ["bench", "gemm", "--models", "tiny", "--repeats", "2", "--cell-seconds", "0"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model, meters and turns of microseconds; the figures mean nothing."""
    monkeypatch.setattr(bench.gemm, "ReadMeter", partial(ReadMeter, nbytes=1 << 20))
    monkeypatch.setattr(bench.gemm, "PeakMeter", partial(PeakMeter, num_turns=10))
    monkeypatch.setattr(bench.gemm, "last_level_cache_bytes", lambda machine: 0)
    monkeypatch.setattr(bench.gemm, "MIN_LLC_BYTES", 1 << 14)
    monkeypatch.setattr(bench.gemm, "SAMPLE_SECONDS", 0.0)
    monkeypatch.setitem(bench.gemm.SHAPES, "tiny", preset("tiny").shape(1))
    monkeypatch.setattr(bench.gemm_peer, "TRIAL_SECONDS", 0.0)
    monkeypatch.setattr(bench.gemm_peer, "WARM_SECONDS", 0.05)
    monkeypatch.setattr(bench.gemm, "IDLE_STEP_SECONDS", 0.0)


def without(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == library else find_spec(name)
    )


def test_every_cell_is_measured_beside_the_better_peer(tmp_path: Path) -> None:
    file, picture = tmp_path / "gemm.json", tmp_path / "gemm.svg"
    has_matplotlib = importlib.util.find_spec("matplotlib") is not None
    drawn = ["--picture", str(picture)] if has_matplotlib else []
    assert main([*TINY, "--m", "33,1", "--roles", "down", "--json", str(file), *drawn]) == 0
    result = json.loads(file.read_text())
    cells = result["cells"]
    assert len(cells) == len(FORMATS) * 2  # x M
    assert [c["m"] for c in cells[:2]] == [1, 33]
    assert {c["peer"] for c in cells if c["dtype"] != "float32"} == {"onednn"}
    assert {p["peer"] for c in cells if c["dtype"] == "float32" for p in c["peers"]} == {
        "onednn",
        "openblas",
    }
    assert all(c["ratio"] == min(p["ratio"] for p in c["peers"]) > 0 for c in cells)
    assert all(p["peer_setting"] in p["trial_gflops"] for c in cells for p in c["peers"])
    assert result["machine"]["fingerprint"]
    assert picture.exists() == has_matplotlib


@pytest.mark.parametrize("dtype", ["bf16", "fp32", "int4"])
def test_without_peers_there_are_rates_and_limits_but_no_ratio(
    tmp_path: Path, dtype: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "gemm.json"
    selection = ["--m", "1,33", "--roles", "gate_up", "--dtypes", dtype, "--peers", "none"]
    assert main([*TINY, *selection, "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    assert [(c["m"], c["n"], c["k"]) for c in result["cells"]] == [(1, 320, 64), (33, 320, 64)]
    for cell in result["cells"]:
        assert cell["ours_gflops"] > 0
        assert cell["ours_gbps"] > 0
        assert cell["limit_ratio"] > 0
        assert cell["peer"] is cell["ratio"] is None
    assert "gate_up" in capsys.readouterr().out


def test_openblas_takes_part_in_float32_only(tmp_path: Path) -> None:
    file = tmp_path / "gemm.json"
    selection = ["--m", "2", "--roles", "o", "--peers", "openblas", "--json", str(file)]
    assert main([*TINY, *selection]) == 0
    peers = {c["dtype"]: c["peer"] for c in json.loads(file.read_text())["cells"]}
    assert {dtype: peer for dtype, peer in peers.items() if peer} == {"float32": "openblas"}


def test_a_peer_whose_library_is_missing_is_named_and_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without(monkeypatch, "torch")
    said: list[str] = []
    assert bench.gemm.present_peers(("onednn", "openblas"), said.append) == ("openblas",)
    assert said == ["onednn is left out: torch is not installed (pip install torch)"]


def test_a_picture_that_cannot_be_drawn_is_refused_before_measuring(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without(monkeypatch, "matplotlib")
    assert main([*TINY, "--picture", "a.svg"]) == 2
    assert "pip install 'sandwich-llm[plot]'" in capsys.readouterr().err
    assert main([*TINY, "--picture", "a.gif"]) == 2
    assert "must end in .svg or .png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "value", "text"),
    [
        ("--models", "gpt-2", "'gpt-2' is not one of llama-3.2-1b"),
        ("--roles", "qkv,none", "'none' is not one of qkv"),
        ("--peers", "mkl", "'mkl' is not one of onednn, openblas"),
        ("--dtypes", "int2", "'int2' is not one of bf16, fp32"),
        ("--m", "0", "not a whole number from 1 up"),
    ],
)
def test_a_name_that_is_not_known_is_refused(
    flag: str, value: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TINY, flag, value]) == 2
    assert text in capsys.readouterr().err


def test_a_wrong_result_ends_the_benchmark(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(GemmProgram, "run", lambda self, num_rows, copy: None)
    assert main([*TINY, "--m", "3", "--dtypes", "fp32", "--roles", "o", "--peers", "none"]) == 1
    assert "the float32 GEMM of 3 x 64 x 64 is wrong" in capsys.readouterr().err


def matrix(max_rows: int, llc_bytes: int = 0) -> bench.gemm.Matrix:
    isa = select_isa()
    layout = PanelLayout(64, 64, WeightFormat("float32"), 2 * isa.lanes, isa.lanes)
    selection = Selection((), (), (), (1, max_rows), (), 1, 0.0)
    cores = bench.gemm.Cores(isa.name, (0,), llc_bytes)
    return bench.gemm.Matrix("tiny", "o", layout, (), selection, cores)


A, B, C, D = (GemmTile(mr) for mr in (1, 2, 3, 4))


@pytest.mark.parametrize(
    ("decode", "prefill", "joined"),
    [
        (((99, A),), ((99, B),), ((DECODE_ROWS, A), (99, B))),
        (((1, A),), ((1, B), (99, C)), ((DECODE_ROWS, A), (99, C))),
        (((1, A), (99, B)), ((40, C), (99, D)), ((1, A), (DECODE_ROWS, B), (40, C), (99, D))),
    ],
)
def test_few_rows_have_the_tiles_of_decode_and_more_those_of_prefill(
    decode: TileRanges, prefill: TileRanges, joined: TileRanges
) -> None:
    plans = default_plans(select_isa(), (0,), 1)
    pair = replace(
        plans,
        decode=replace(plans.decode, tiles=tuple((role, decode) for role in GEMM_ROLES)),
        prefill=replace(plans.prefill, tiles=tuple((role, prefill) for role in GEMM_ROLES)),
    )
    assert tiles_of(pair, "o") == joined


@pytest.mark.parametrize(("llc_bytes", "num_copies"), [(0, 4), (1 << 14, 4), ((1 << 14) + 1, 5)])
def test_the_copies_of_a_matrix_exceed_the_caches(llc_bytes: int, num_copies: int) -> None:
    assert matrix(1, llc_bytes).problem().num_copies == num_copies  # of 16 KiB


class Fake(Contestant):
    """Writes down when it was called."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self._log = name, log  # type: ignore[misc]

    def prepare(self, num_rows: int) -> None:
        pass

    def seconds(self, num_calls: int) -> float:
        self._log.append(self.name)
        return 1.0

    def close(self) -> None:
        pass


@pytest.mark.parametrize(("cell_seconds", "num_rounds"), [(0.0, 2), (1e9, 3)])
def test_turns_alternate_until_the_rounds_or_the_time_are_over(
    cell_seconds: float, num_rounds: int
) -> None:
    log: list[str] = []
    selection = Selection((), (), (), (1,), (), 3, cell_seconds)
    times = take_turns([Fake("a", log), Fake("b", log)], [], selection)
    assert times == {"a": [1.0] * num_rounds, "b": [1.0] * num_rounds}
    assert "".join(log) == "ab" + "abbaab"[: 2 * num_rounds]


def cell(m: int, **peers: tuple[float, ...]) -> CellTimes:
    problem = Problem(PanelLayout(1000, 500, WeightFormat("bfloat16"), 64, 16), 1, m)
    rivals = {
        name: PeerTimes("packed", times, {"packed": times[0]}) for name, times in peers.items()
    }
    return CellTimes("tiny", "o", m, problem, (0.001, 0.002, 0.004), rivals)


def test_a_row_has_the_nearer_limit_and_the_better_peer() -> None:
    row = cell_row(cell(4, slow=(0.01,) * 3, fast=(0.001, 0.004, 0.004)), 2.0, 1000.0)
    assert row["ours_gflops"] == pytest.approx(2 * 4 * 1000 * 500 / 0.002 / 1e9)
    assert row["ours_gbps"] == pytest.approx(1000 * 500 * 2 / 0.002 / 1e9)
    assert (row["limit"], row["limit_ratio"]) == ("read", pytest.approx(0.25))
    assert (row["peer"], row["ratio"]) == ("fast", 1.0)  # of 1, 2, 1
    assert [p["ratio"] for p in row["peers"]] == [5.0, 1.0]
    assert cell_row(cell(4), 2.0, 4.0)["limit"] == "peak"


class Limit:
    """A meter that was read."""

    median = best = 10.0


def result_of(cells: list[dict[str, Any]]) -> dict[str, Any]:
    limit: Any = Limit()
    machine = {"cpu_model": "a CPU", "cpus": [0, 1], "isa": "avx2"}
    return {"machine": machine, **summary_of(cells, limit, {"bfloat16": limit})}


def test_the_summary_names_the_mean_and_the_worst_cell() -> None:
    cells = [
        cell_row(cell(m, fast=(seconds,) * 3), 2.0, 9.0) for m, seconds in ((1, 0.001), (2, 0.004))
    ]
    summary = result_of(cells)["summary"]["bfloat16"]
    assert summary["geomean_ratio"] == pytest.approx(1.0)
    assert (summary["num_behind"], summary["worst"]["m"]) == (1, 1)


def test_the_table_and_the_picture_show_cells_without_a_peer_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    result = result_of([cell_row(cell(1), 2.0, 9.0), cell_row(cell(8, fast=(0.1,) * 3), 2.0, 9.0)])
    show(result, Console(width=80))
    assert "fast packed" in capsys.readouterr().out
    pytest.importorskip("matplotlib")
    bench.gemm_picture.draw(result, str(tmp_path / "a.png"))
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
