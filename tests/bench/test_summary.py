"""Rates and ratios agree with counts done by hand; noise moves a median little."""

import io

import pytest
from rich.console import Console

from bench.driver import StepTime
from bench.summary import DecodeTimes, PrefillTimes, decode_row, prefill_row, show
from bench.work import StepWork
from codegen.spec import ModelShape, WeightFormat

SHAPE = ModelShape(
    num_layers=1,
    hidden_size=8,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    intermediate_size=8,
    vocab_size=16,
    rms_norm_eps=1e-5,
    qkv_bias=False,
    o_bias=False,
    mlp_bias=False,
    tied_embeddings=True,
    max_model_len=64,
)
BF16 = WeightFormat("bfloat16")
WORK = StepWork(SHAPE, BF16, BF16, "bfloat16")


def test_a_prefill_row_is_of_the_median_prompt() -> None:
    row = prefill_row(PrefillTimes(4, [1.0, 2.0, 60.0], [1e-9, 1e-6, 2e-6]), WORK)
    assert row["tok_per_s"] == 2.0
    assert row["gflops"] == WORK.prefill_flops(4) / 2e9
    assert row["peak_ratio"] == pytest.approx(row["gflops"] / 1e-6)


def test_a_decode_row_counts_all_sequences_and_the_contexts_as_they_were() -> None:
    steps = [StepTime(seconds, 0.9 * seconds, (10, 12)) for seconds in (1.0, 2.0, 60.0)]
    row = decode_row(DecodeTimes(2, 9, steps, [1e-6]), WORK)
    assert (row["batch"], row["context"], row["tok_per_s"]) == (2, 9, 1.0)
    assert row["gbps"] == pytest.approx(WORK.decode_bytes([10, 12]) / 2e9)
    assert row["bandwidth_ratio"] == pytest.approx(row["gbps"] / 1e-6)
    assert row["host_overhead_ratio"] == pytest.approx(0.1)


def test_the_tables_show_every_row() -> None:
    step = StepTime(0.5, 0.4, (10,))
    limits = dict.fromkeys(("read_gbps", "read_gbps_best", "peak_gflops", "peak_gflops_best"), 40.0)
    result = {
        "limits": {"peak_dtype": "bfloat16"} | limits,
        "barriers": {"decode": {"us": 0.25, "per_step": 133, "step_us": 33.25}},
        "prefill": [prefill_row(PrefillTimes(777, [1.0], [1.0]), WORK)],
        "decode": [decode_row(DecodeTimes(1, 999, [step], [1.0]), WORK)],
    }
    out = io.StringIO()
    show(result, Console(file=out, width=100))
    assert "777" in out.getvalue()
    assert "999" in out.getvalue()
    assert "133 in a decode step, 0.250 us each, 33.2 us in all" in out.getvalue()
    assert "20.0%" in out.getvalue()  # host overhead
