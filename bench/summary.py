"""Times -> rates, ratios and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.driver import StepTime
from bench.work import StepWork


@dataclass
class PrefillTimes:
    """Prompts of one length, and the peak as it was between them."""

    num_tokens: int
    seconds: list[float] = field(default_factory=list)
    peak_gflops: list[float] = field(default_factory=list)


@dataclass
class DecodeTimes:
    """Steps of one batch from one context on, and the read bandwidth as it was between them."""

    batch: int
    context: int
    steps: list[StepTime] = field(default_factory=list)
    read_gbps: list[float] = field(default_factory=list)


def prefill_row(times: PrefillTimes, work: StepWork) -> dict[str, Any]:
    """Rates of the median prompt beside the median of the peak's samples."""
    seconds = median(times.seconds)
    flops = work.prefill_flops(times.num_tokens)
    gflops = flops / seconds / 1e9
    peak_gflops = median(times.peak_gflops)
    return {
        "tokens": times.num_tokens,
        "seconds": seconds,
        "tok_per_s": times.num_tokens / seconds,
        "gflops": gflops,
        "intensity": flops / work.decode_bytes([times.num_tokens]),
        "peak_gflops": peak_gflops,
        "peak_ratio": gflops / peak_gflops,
    }


def decode_row(times: DecodeTimes, work: StepWork) -> dict[str, Any]:
    """Rates of the median step beside the median of the bandwidth's samples.

    Tokens per second are those of all sequences together.
    """
    seconds = median(step.seconds for step in times.steps)
    gbps = median(work.decode_bytes(s.contexts) / s.seconds for s in times.steps) / 1e9
    last = times.steps[-1].contexts
    intensity = work.flops(last, num_logits=times.batch) / work.decode_bytes(last)
    read_gbps = median(times.read_gbps)
    return {
        "batch": times.batch,
        "context": times.context,
        "step_seconds": seconds,
        "tok_per_s": times.batch / seconds,
        "gbps": gbps,
        "intensity": intensity,
        "read_gbps": read_gbps,
        "bandwidth_ratio": gbps / read_gbps,
        "host_overhead_ratio": median(step.host_overhead_ratio for step in times.steps),
    }


def show(result: dict[str, Any], console: Console) -> None:
    """Print the limits, then a table of each phase."""
    limits = result["limits"]
    console.print(
        f"limits: read {limits['read_gbps']:.1f} GB/s (best {limits['read_gbps_best']:.1f}), "
        f"{limits['peak_dtype']} peak {limits['peak_gflops']:.0f} GFLOP/s "
        f"(best {limits['peak_gflops_best']:.0f})",
        highlight=False,
    )
    for phase, cost in result["barriers"].items():
        console.print(
            f"barriers: {cost['per_step']} in a {phase} step, {cost['us']:.3f} us each, "
            f"{cost['step_us']:.1f} us in all",
            highlight=False,
        )
    prefill = _table("prefill", ("tokens", "tok/s", "GFLOP/s", "peak", "of it"))
    for row in result["prefill"]:
        prefill.add_row(
            str(row["tokens"]),
            f"{row['tok_per_s']:.1f}",
            f"{row['gflops']:.0f}",
            f"{row['peak_gflops']:.0f}",
            f"{row['peak_ratio']:.1%}",
        )
    decode = _table("decode", ("batch", "context", "tok/s", "GB/s", "read", "of it", "host"))
    for row in result["decode"]:
        decode.add_row(
            str(row["batch"]),
            str(row["context"]),
            f"{row['tok_per_s']:.1f}",
            f"{row['gbps']:.1f}",
            f"{row['read_gbps']:.1f}",
            f"{row['bandwidth_ratio']:.1%}",
            f"{row['host_overhead_ratio']:.1%}",
        )
    console.print(prefill, decode)


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    return table
