"""bench mixed, over the null executor: what is measured of an arrival, and the whole run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.driver import BenchmarkError
from bench.mixed import STEPS_ALONE, Arrival, Streams, mode_row
from sandwich.cli import main
from sandwich.engine.engine import Engine
from sandwich.executor.base import ExecutorLimits
from sandwich.executor.null import NullExecutor
from schedules.mixed.cost import MixedLoad, MixedPrediction
from schedules.mixed.plan import MixedMode, MixedPlan

LOAD = MixedLoad(batch=2, context=5, prompt=20)
LIMITS = ExecutorLimits(
    block_size=4,
    num_blocks=64,
    max_num_seqs=3,
    max_num_batched_tokens=16,
    max_model_len=128,
    vocab_size=50,
)


@pytest.mark.parametrize(
    ("plan", "num_before", "num_after"),
    [
        (MixedPlan(MixedMode.TURNS, 8), 2, 1),  # prefill, decode, prefill, decode, prefill; decode
        (MixedPlan(MixedMode.RIDE, 8), 3, 0),
        (MixedPlan(MixedMode.CORUN, 8, (0,), (1,)), 3, 1),  # decode beside each of three chunks
    ],
)
def test_an_arrival_has_the_gaps_of_every_stream_until_the_prompt_is_in(
    plan: MixedPlan, num_before: int, num_after: int
) -> None:
    streams = Streams(Engine(NullExecutor(LIMITS)), LOAD, max_tokens=100, seed=0)
    for _ in range(2):
        arrival = streams.arrive(plan, LOAD.prompt)
        assert arrival.num_steps == num_before
        assert len(arrival.gaps_s) == LOAD.batch * (num_before + num_after)
        assert min(arrival.gaps_s) > 0
        assert 0 < arrival.alone_s < arrival.ttft_s


def test_streams_that_end_or_fail_are_noticed() -> None:
    streams = Streams(Engine(NullExecutor(LIMITS)), LOAD, max_tokens=STEPS_ALONE, seed=0)
    with pytest.raises(BenchmarkError, match="ended early"):
        streams.arrive(MixedPlan(), LOAD.prompt)
    failing = Engine(NullExecutor(LIMITS, failing_runs=[0]))
    with pytest.raises(BenchmarkError, match="injected failure"):
        Streams(failing, LOAD, max_tokens=4, seed=0)


def test_a_request_takes_its_prompt_and_the_decode_steps_that_did_not_fit_beside_it() -> None:
    arrivals = [
        Arrival(0.5, (0.1, 0.3), num_steps=14, alone_s=0.01),
        Arrival(0.6, (0.2, 0.2), num_steps=200, alone_s=0.01),
        Arrival(0.9, (0.2, 0.2), num_steps=14, alone_s=0.01),
    ]
    load = MixedLoad(batch=2, reply=128)
    row = mode_row(MixedPrediction(MixedPlan(MixedMode.RIDE, 64), 2e5, 7e5, 8e5), arrivals, load)
    assert row["ttft_ms"] == 600
    assert row["request_ms"] == 1000  # the median of 500 + 50 * 10, 600 and 900 + 50 * 10
    assert row["tpot_ms"]["p50"] == 200
    assert row["predicted"] == {"tpot_ms": 200, "ttft_ms": 700, "request_ms": 800}


def test_the_whole_run_writes_and_prints_every_mode(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mixed.json"
    load = ["--streams", "2", "--context", "9", "--prompt", "40", "--rounds", "1"]
    flags = ["--random", "tiny", "--executor", "null", *load]
    assert main(["bench", "mixed", *flags, "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    modes = {row["mode"]: row for row in result["modes"]}
    assert {"turns", "ride"} <= modes.keys()
    assert result["chosen"] == result["modes"][0]["mode"]
    assert result["loss"] >= 0
    assert all(row["tpot_ms"]["p50"] <= row["tpot_ms"]["p99"] for row in result["modes"])
    text = capsys.readouterr().out
    assert "TPOT p50" in text
    assert "chosen: " in text
