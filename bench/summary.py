"""Times -> rates, ratios and tables. Knows nothing of how the times were taken."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.driver import StepTime
from bench.work import StepWork


def prefill_row(
    num_tokens: int, seconds: Sequence[float], work: StepWork, peak_gflops: float
) -> dict[str, Any]:
    """Rates of the median prompt of this length."""
    median = statistics.median(seconds)
    gflops = work.prefill_flops(num_tokens) / median / 1e9
    return {
        "tokens": num_tokens,
        "seconds": median,
        "tok_per_s": num_tokens / median,
        "gflops": gflops,
        "peak_ratio": gflops / peak_gflops,
    }


def decode_row(
    context: int, steps: Sequence[StepTime], work: StepWork, read_gbps: float
) -> dict[str, Any]:
    """Rates of the median step; tokens per second are those of all sequences together."""
    batch = len(steps[0].contexts)
    seconds = statistics.median(step.seconds for step in steps)
    gbps = statistics.median(work.decode_bytes(s.contexts) / s.seconds for s in steps) / 1e9
    return {
        "batch": batch,
        "context": context,
        "step_seconds": seconds,
        "tok_per_s": batch / seconds,
        "gbps": gbps,
        "bandwidth_ratio": gbps / read_gbps,
        "host_overhead_ratio": statistics.median(step.host_overhead_ratio for step in steps),
    }


def show(result: dict[str, Any], console: Console) -> None:
    """Print the limits, then a table of each phase."""
    limits = result["limits"]
    console.print(
        f"limits: read {limits['read_gbps']:.1f} GB/s (best {limits['read_gbps_best']:.1f}), "
        f"{result['dtype']} peak {limits['peak_gflops']:.0f} GFLOP/s "
        f"(best {limits['peak_gflops_best']:.0f})",
        highlight=False,
    )
    prefill = _table("prefill", ("tokens", "tok/s", "GFLOP/s", "of peak"))
    for row in result["prefill"]:
        prefill.add_row(
            str(row["tokens"]),
            f"{row['tok_per_s']:.1f}",
            f"{row['gflops']:.0f}",
            f"{row['peak_ratio']:.1%}",
        )
    decode = _table("decode", ("batch", "context", "tok/s", "GB/s", "of read", "host"))
    for row in result["decode"]:
        decode.add_row(
            str(row["batch"]),
            str(row["context"]),
            f"{row['tok_per_s']:.1f}",
            f"{row['gbps']:.1f}",
            f"{row['bandwidth_ratio']:.1%}",
            f"{row['host_overhead_ratio']:.1%}",
        )
    console.print(prefill, decode)


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    return table
