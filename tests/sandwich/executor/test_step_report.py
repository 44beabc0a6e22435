"""What is said of a step's operators."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from codegen.spec import ProgramSpec, WeightFormat
from codegen.step.arguments import argument_specs
from sandwich.executor.step_report import operator_ns, step_report
from tests.codegen.conftest import make_spec


def ticks_of(spec: ProgramSpec, **nanoseconds: int) -> np.ndarray:
    """What the timers of a program hold after a step of so many nanoseconds by operator."""
    count = argument_specs(replace(spec, has_timers=True))["workspace"]["ticks"].shape
    ticks = np.arange(*count, dtype=np.int64)
    slots = {name: int(slot) for name, slot in operator_ns(spec, ticks).items()}
    ticks[:] = 0
    for name, value in nanoseconds.items():
        ticks[slots[name]] = value
    return ticks


def test_operators_that_ran_have_a_line_with_the_true_bytes_of_their_weights() -> None:
    spec = make_spec("generic", "float32", vocab_size=1000, hidden_size=200)
    ticks = ticks_of(spec, embed=1000, lm_head=3000)
    embed, head = step_report(spec, ticks, num_tokens=7, num_logits=2)
    assert "embed" in embed
    assert "25.0%" in embed
    flops, nbytes = 2 * 2 * 1000 * 200, 4 * 1000 * 200
    assert f"{flops / 3000:.0f} GFLOP/s" in head
    assert f"{nbytes / 3000:.1f} GB/s" in head


def test_scales_are_bytes_too() -> None:
    weights = WeightFormat("int8", activations="int8", group=32)
    spec = make_spec("generic", "float32", hidden_size=256, num_layers=5)
    quantized = type(spec)(**(vars(spec) | {"weights": weights}))
    ticks = ticks_of(quantized, qkv=1000)
    [line] = step_report(quantized, ticks, num_tokens=1, num_logits=1)
    columns = (spec.shape.num_heads + 2 * spec.shape.num_kv_heads) * spec.shape.head_dim
    padded = -(-columns // 4) * 4
    assert f"{5 * padded * (256 + 4 * 8) / 1000:.1f} GB/s" in line
