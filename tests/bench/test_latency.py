"""The whole benchmark on a tiny model: every cell is measured and the file holds what it must."""

import json
from functools import partial
from pathlib import Path

import pytest

import bench.barriers
import bench.latency
from bench.latency import Cells
from sandwich.cli import main
from schedules.meters import PeakMeter, ReadMeter

TINY = ["bench", "latency", "--random", "tiny"]


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Meters that take microseconds; their figures mean nothing."""
    monkeypatch.setattr(bench.latency, "ReadMeter", partial(ReadMeter, nbytes=1 << 20))
    monkeypatch.setattr(bench.latency, "PeakMeter", partial(PeakMeter, num_turns=10))
    monkeypatch.setattr(bench.barriers, "NUM_SAMPLES", 3)
    monkeypatch.setattr(bench.latency, "last_level_cache_bytes", lambda machine: 0)


def test_every_cell_is_measured_and_written_down(tmp_path: Path) -> None:
    file = tmp_path / "latency.json"
    cells = ["--prefill", "3,40", "--batch", "1,3", "--context", "2,33", "--repeats", "2"]
    assert main([*TINY, *cells, "--steps", "5", "--dtype", "fp32", "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    assert {"commit", "seed", "plan", "machine"} <= result.keys()
    assert len(result["machine"]["fingerprint"]) == 12
    assert result["dtype"] == "float32"
    assert set(result["plan"]) >= {"prefill", "decode"}
    assert result["limits"]["read_gbps"] > 0
    assert result["limits"]["peak_gflops"] > 0
    assert result["barriers"].keys() == {"prefill", "decode"}
    for cost in result["barriers"].values():
        assert cost["per_step"] == 8 * 2 + 5  # of a layer, of a step
        assert cost["step_us"] == cost["per_step"] * cost["us"]
    assert [row["tokens"] for row in result["prefill"]] == [3, 40]
    for row in result["prefill"]:
        assert row["tok_per_s"] > 0
        assert row["peak_ratio"] == pytest.approx(row["gflops"] / row["peak_gflops"])
    pairs = [(row["batch"], row["context"]) for row in result["decode"]]
    assert pairs == [(1, 2), (1, 33), (3, 2), (3, 33)]
    for row in result["decode"]:
        assert row["bandwidth_ratio"] == pytest.approx(row["gbps"] / row["read_gbps"])
        assert 0 <= row["host_overhead_ratio"] <= 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--random", "no-such-shape"], "no-such-shape"),
        (["--random", "tiny", "smollm2"], "not both"),
        (["--prefill", "128,0"], "'0' is not a whole number from 1 up"),
        (["--random", "tiny", "--context", "100000"], "max-model-len"),
    ],
)
def test_a_mistake_is_one_line(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "latency", *flags]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_the_longest_sequence_fits_what_is_planned() -> None:
    cells = Cells(prefill=(700,), batches=(1, 4), contexts=(8, 100), num_repeats=1, num_steps=16)
    assert cells.max_model_len(max_num_batched_tokens=512) == 701
    assert cells.max_model_len(max_num_batched_tokens=1) > 4 * 100 + 16
