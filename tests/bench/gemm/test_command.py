"""The GEMM benchmark on a tiny shape: cells, rules, peers, refusals, file and picture."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

import bench.gemm.command
import bench.gemm.matrix
import bench.gemm.peer
import bench.gemm.picture
import bench.gemm.shapes
import bench.gemm.turns
from bench.gemm.matrix import Cores, Matrix
from bench.gemm.plans import DECODE_ROWS, tiles_of
from bench.gemm.shapes import FORMATS, ROLES
from codegen.gemm.program import GemmProgram
from codegen.layout.panels import PanelLayout
from codegen.spec import GemmTile, TileRanges, WeightFormat
from platforms.isa import select_isa
from sandwich.cli import main
from sandwich.models.presets import preset
from schedules.tiles.default_plans import default_plans

TINY = ["bench", "gemm", "--models", "tiny", "--repeats", "2", "--cell-seconds", "0"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model, meters and turns of microseconds; the figures mean nothing."""
    monkeypatch.setattr(bench.gemm.command, "READ_BYTES", 1 << 20)
    monkeypatch.setattr(bench.gemm.command, "PEAK_TURNS", 10)
    monkeypatch.setattr(bench.gemm.command, "last_level_cache_bytes", lambda machine: 0)
    monkeypatch.setattr(bench.gemm.matrix, "MIN_LLC_BYTES", 1 << 14)
    monkeypatch.setattr(bench.gemm.turns, "TURN_SECONDS", 0.0)
    monkeypatch.setitem(bench.gemm.shapes.SHAPES, "tiny", preset("tiny").shape(1))
    monkeypatch.setattr(bench.gemm.peer, "TRIAL_SECONDS", 0.0)
    monkeypatch.setattr(bench.gemm.peer, "WARM_SECONDS", 0.05)
    monkeypatch.setattr(bench.gemm.turns, "IDLE_STEP_SECONDS", 0.0)


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
    assert bench.gemm.command.present_peers(("onednn", "openblas"), said.append) == ("openblas",)
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


def matrix(max_rows: int, llc_bytes: int = 0, peers: tuple[str, ...] = ()) -> Matrix:
    isa = select_isa()
    layout = PanelLayout(64, 64, WeightFormat("float32"), 2 * isa.lanes, isa.lanes)
    return Matrix("tiny", "o", layout, (1, max_rows), peers, Cores(isa.name, (0,), llc_bytes))


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
    plans = default_plans(select_isa(), (0,), preset("tiny").shape(1))
    pair = replace(
        plans,
        decode=replace(plans.decode, tiles=tuple((role, decode) for role in ROLES)),
        prefill=replace(plans.prefill, tiles=tuple((role, prefill) for role in ROLES)),
    )
    assert tiles_of(pair, "o") == joined


@pytest.mark.parametrize(("llc_bytes", "num_copies"), [(0, 4), (1 << 14, 4), ((1 << 14) + 1, 5)])
def test_the_copies_of_a_matrix_exceed_the_caches(llc_bytes: int, num_copies: int) -> None:
    assert matrix(1, llc_bytes).problem().num_copies == num_copies  # of 16 KiB


def test_a_matrix_says_how_much_memory_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory:
        available = 1 << 20

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    monkeypatch.setattr(bench.gemm.matrix, "MIN_LLC_BYTES", 1 << 20)
    assert matrix(1).missing_bytes() > 3 << 20  # four times the caches
    assert matrix(1, peers=("openblas",)).missing_bytes() > 7 << 20
    Memory.available = 1 << 30
    assert matrix(1).missing_bytes() == 0


def test_a_matrix_that_memory_does_not_hold_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(Matrix, "missing_bytes", lambda self: 3 << 30 if self.role == "down" else 0)
    file = tmp_path / "gemm.json"
    selection = ["--m", "1", "--dtypes", "fp32", "--peers", "none", "--json", str(file)]
    assert main([*TINY, *selection, "--roles", "down"]) == 0
    assert not file.exists()
    assert main([*TINY, *selection, "--roles", "o,down"]) == 0
    assert [c["role"] for c in json.loads(file.read_text())["cells"]] == ["o"]
    assert "left out: it needs 3.2 GB more memory than is free" in capsys.readouterr().err


def measured(file: Path) -> list[tuple[str, int, float]]:
    cells = json.loads(file.read_text())["cells"]
    return [(c["role"], c["m"], c["ours_gflops"]) for c in cells]


def test_an_interrupted_run_keeps_its_cells_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "gemm.json"
    command = [*TINY, "--dtypes", "fp32", "--peers", "none", "--m", "1,3", "--json", str(file)]
    run, num_runs = GemmProgram.run, 0

    def interrupted(self: GemmProgram, num_rows: int, copy: int) -> None:
        if num_rows == 3:
            raise KeyboardInterrupt
        run(self, num_rows, copy)

    with monkeypatch.context() as patch:
        patch.setattr(GemmProgram, "run", interrupted)
        assert main([*command, "--roles", "o"]) == 130
    first = measured(file)
    assert [key[:2] for key in first] == [("o", 1)]

    def counted(self: GemmProgram, num_rows: int, copy: int) -> None:
        nonlocal num_runs
        num_runs += 1
        assert self.spec.layout.k != 64 or num_rows == 3  # of `o`, one cell was missing
        run(self, num_rows, copy)

    monkeypatch.setattr(GemmProgram, "run", counted)
    assert main([*command, "--roles", "down,o", "--resume"]) == 0
    done = measured(file)
    assert [key[:2] for key in done] == [("o", 1), ("o", 3), ("down", 1), ("down", 3)]
    assert done[0] == first[0]
    num_runs = 0
    assert main([*command, "--roles", "o", "--resume"]) == 0
    assert num_runs == 0
    assert measured(file) == done


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "name it with --json"),
        ("{", "is no result of `sandwich bench gemm`"),
        ('{"cells": [{"dtype": "float32"}], "machine": {}, "tuning": {}}', "is no result of"),
        ('{"cells": [], "machine": {"isa": "none"}, "tuning": {}}', "was measured elsewhere"),
    ],
)
def test_what_cannot_be_gone_on_with_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, text: str
) -> None:
    file = tmp_path / "gemm.json"
    if content is not None:
        file.write_text(content)
    assert main([*TINY, "--resume", *(["--json", str(file)] if content else [])]) == 2
    assert text in capsys.readouterr().err
    assert content is None or file.read_text() == content
