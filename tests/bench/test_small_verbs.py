"""limits, attention, noise and throughput on tiny models: every figure is there and follows."""

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

import bench.attention
import bench.limits
import bench.noise
from bench.attention import Case, attention_model
from bench.conditions import Conditions
from bench.noise import spinning
from bench.store import Store
from bench.throughput import rates
from codegen.spec import Phase
from sandwich.cli import main
from sandwich.errors import ConfigError
from schedules.meters import PeakMeter, ReadMeter


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Meters that take microseconds; their figures mean nothing."""
    for module in (bench.limits, bench.attention):
        monkeypatch.setattr(module, "ReadMeter", partial(_small_read, nbytes=1 << 20))
        monkeypatch.setattr(module, "PeakMeter", _small_peak)
        monkeypatch.setattr(module, "last_level_cache_bytes", lambda machine: 0)


def _small_read(isa: Any, cpus: Any, llc: int, _: int = 0, nbytes: int = 0) -> ReadMeter:
    return ReadMeter(isa, cpus, llc, nbytes)


def _small_peak(isa: Any, dtype: str, cpus: Any, num_turns: int = 0) -> PeakMeter:
    return PeakMeter(isa, dtype, cpus, num_turns=10)


def result(folder: Path, *command: str) -> dict[str, Any]:
    file = folder / "result.json"
    assert main(["bench", *command, "--json", str(file)]) == 0
    found: dict[str, Any] = json.loads(file.read_text())
    assert found.keys() >= {"commit", "machine", "conditions"}
    return found


def test_limits_of_one_core_and_of_all(tmp_path: Path) -> None:
    found = result(tmp_path, "limits", "--repeats", "3")
    num_cores = {row["num_cores"] for row in found["rows"]}
    assert num_cores == {1, len(found["machine"]["cpus"])}
    assert len(found["rows"]) == 4 * len(num_cores)
    assert all(0 < row["median"] <= row["best"] for row in found["rows"])


def test_attention_of_every_shape_and_phase(tmp_path: Path) -> None:
    flags = ["--head-dims", "16", "--groups", "3", "--batches", "1,2", "--repeats", "2"]
    found = result(tmp_path, "attention", *flags, "--contexts", "5,40")
    rows = found["rows"]
    assert len(rows) == 2 + 4
    for row in rows:
        assert row["limit_ratio"] > 0
        assert ("gemm_ratio" in row) == (row["phase"] == "prefill")
    again = result(tmp_path, "attention", *flags, "--contexts", "5,40", "--resume")
    assert again["rows"] == rows


def test_the_work_of_attention_is_counted() -> None:
    shape = attention_model(head_dim=8, group=3, max_context=100).shape(100)
    per_key = 4 * 4 * 6 * 8  # multiply-adds with K and V, layers, heads, values
    assert Case(Phase.PREFILL, 10).flops(shape) == per_key * 55
    assert Case(Phase.DECODE, 10, batch=2).flops(shape) == per_key * 20
    assert Case(Phase.DECODE, 10, batch=2).nbytes(shape, "bfloat16") == 2 * 2 * 4 * 2 * 8 * 20
    assert Case(Phase.PREFILL, 1000).chunk == 512
    assert Case(Phase.PREFILL, 513).flops(shape) == per_key * (sum(range(2, 514)))


def test_noise_is_measured_in_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.noise, "PROMPT", 20)
    monkeypatch.setattr(bench.noise, "CONTEXT", 8)
    monkeypatch.setattr(bench.noise, "STEPS", 2)
    found = result(tmp_path, "noise", "--random", "tiny", "--rounds", "2")
    assert found["phases"].keys() == {"prefill", "decode"}
    assert all(row["kept_ratio"] > 0 for row in found["phases"].values())


def test_the_neighbour_spins_where_it_is_told_to_and_ends() -> None:
    cpu = max(os.sched_getaffinity(0))
    before = {child.pid for child in psutil.Process().children()}
    with spinning(cpu):
        [child] = [c for c in psutil.Process().children() if c.pid not in before]
        assert child.cpu_affinity() == [cpu]
    assert not child.is_running()


def test_throughput_counts_all_tokens(tmp_path: Path) -> None:
    sizes = ["--num-prompts", "5", "--input-len", "9", "--output-len", "4", "--repeats", "2"]
    found = result(tmp_path, "throughput", "--random", "tiny", *sizes)
    assert found["output_tok_per_s"] > 0
    assert found["total_tok_per_s"] == pytest.approx(found["output_tok_per_s"] * 13 / 4)
    assert rates([2.0, 1.0, 4.0], 10, 30, 20)["requests_per_s"] == 5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, []),
        ({"busy_share": 0.5}, ["other processes use 50%"]),
        ({"steal_share": 0.2}, ["the hypervisor takes 20%"]),
        ({"mhz": 1000.0}, ["the clock is at 1000 of 3000"]),
        ({"mhz": 1000.0, "max_mhz": None}, []),
    ],
)
def test_a_busy_machine_is_said_to_be_one(changes: dict[str, Any], words: list[str]) -> None:
    quiet = {"load_1min": 0.1, "busy_share": 0.0, "steal_share": 0.0, "mhz": 2900.0}
    complaints = Conditions(**({"max_mhz": 3000.0} | quiet | changes)).complaints()
    assert len(complaints) == len(words)
    assert all(word in said for word, said in zip(words, complaints, strict=True))


def test_a_store_goes_on_with_its_own_file_alone(tmp_path: Path) -> None:
    header = {"benchmark": "x", "machine": {"fingerprint": "a"}, "commit": "1"}
    file = tmp_path / "x.json"
    store = Store.open(file, header, ("k",), resume=True)
    store.add({"k": 1, "v": 1})
    store.add({"k": 1, "v": 2})
    store.add({"k": 2, "v": 3})
    again = Store.open(file, header, ("k",), resume=True)
    assert [(row["k"], row["v"]) for row in again.rows] == [(1, 2), (2, 3)]
    assert again.holds(k=1)
    again.drop(k=1)
    assert not again.holds(k=1)
    assert Store.open(file, header, ("k",), resume=False).rows == []
    for other in ({"benchmark": "y"}, {"machine": {"fingerprint": "b"}}):
        with pytest.raises(ConfigError, match="another"):
            Store.open(file, header | other, ("k",), resume=True)
    file.write_text("[]")
    with pytest.raises(ConfigError, match="no result"):
        Store.open(file, header, ("k",), resume=True)
