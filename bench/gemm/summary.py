"""Times of GEMM cells -> rates, ratios and tables."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bench.gemm.contest import Problem

# Of a cell: those of its better peer.
PEER_FIELDS = (
    "peer",
    "peer_setting",
    "peer_gflops",
    "ratio",
    "ratio_quartiles",
)


@dataclass(frozen=True)
class PeerTimes:
    """Seconds per call with the best setting, round by round, and of one trial of every setting."""

    setting: str
    seconds: tuple[float, ...]
    trials: dict[str, float]


@dataclass(frozen=True)
class CellTimes:
    """Round by round of one cell: seconds of a call, ours and each peer's, and the limits.

    refusals: what peers said that could not multiply it.
    """

    model: str
    role: str
    m: int
    problem: Problem
    ours: tuple[float, ...]
    peers: dict[str, PeerTimes]
    read_gbps: tuple[float, ...]
    peak_gflops: tuple[float, ...]
    refusals: dict[str, str] = field(default_factory=dict)

    @property
    def flops(self) -> int:
        """Operations of a call; a multiply-add is two."""
        return 2 * self.m * self.problem.layout.n * self.problem.layout.k


def cell_row(cell: CellTimes) -> dict[str, Any]:
    """Rates of the median call, beside the nearer limit and the fastest peer.

    limit_ratio is the larger part of a limit that was reached: weights read once at the read
    bandwidth, or operations at the peak. It and a ratio over a peer are medians over the rounds of
    what was measured in one round.
    """
    layout = cell.problem.layout
    seconds = statistics.median(cell.ours)
    weight_gb = cell.problem.weight_bytes / 1e9
    of_read, of_peak = (
        statistics.median(amount / a / b for a, b in zip(cell.ours, limits, strict=True))
        for amount, limits in ((weight_gb, cell.read_gbps), (cell.flops / 1e9, cell.peak_gflops))
    )
    row: dict[str, Any] = {
        "model": cell.model,
        "role": cell.role,
        "dtype": layout.format.name,
        "m": cell.m,
        "n": layout.n,
        "k": layout.k,
        "ours_gflops": cell.flops / seconds / 1e9,
        "ours_gbps": weight_gb / seconds,
        "limit": "read" if of_read >= of_peak else "peak",
        "limit_ratio": max(of_read, of_peak),
        "read_gbps": statistics.median(cell.read_gbps),
        "read_gbps_best": max(cell.read_gbps),
        "peak_gflops": statistics.median(cell.peak_gflops),
        "peak_gflops_best": max(cell.peak_gflops),
        "rounds": len(cell.ours),
        **dict.fromkeys(PEER_FIELDS),
    }
    peers = [_peer_row(name, peer, cell) for name, peer in cell.peers.items()]
    best = min(peers, key=lambda peer: float(peer["ratio"]), default=row)
    chosen = {name: best[name] for name in PEER_FIELDS}
    return row | chosen | {"peers": peers, "refusals": cell.refusals}


def _peer_row(name: str, peer: PeerTimes, cell: CellTimes) -> dict[str, Any]:
    """A peer's rate and how many times as long as ours it took."""
    ratios = sorted(b / a for a, b in zip(cell.ours, peer.seconds, strict=True))
    quarter = len(ratios) // 4
    return {
        "peer": name,
        "peer_setting": peer.setting,
        "peer_gflops": cell.flops / statistics.median(peer.seconds) / 1e9,
        "ratio": statistics.median(ratios),
        "ratio_quartiles": [ratios[quarter], ratios[-1 - quarter]],
        "trial_gflops": {setting: cell.flops / t / 1e9 for setting, t in peer.trials.items()},
    }


def summary_of(cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The measured part of the result: limits, cells, and what they come to for each dtype."""
    by_dtype: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        by_dtype.setdefault(cell["dtype"], []).append(cell)
    return {
        "limits": {
            "read_gbps": statistics.median(c["read_gbps"] for c in cells),
            "read_gbps_best": max(c["read_gbps_best"] for c in cells),
            "peak_gflops": {
                dtype: statistics.median(c["peak_gflops"] for c in of_dtype)
                for dtype, of_dtype in by_dtype.items()
            },
            "peak_gflops_best": {
                dtype: max(c["peak_gflops_best"] for c in of_dtype)
                for dtype, of_dtype in by_dtype.items()
            },
        },
        "cells": list(cells),
        "summary": {dtype: _dtype_summary(of_dtype) for dtype, of_dtype in by_dtype.items()},
    }


def _dtype_summary(cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """geomean_at_limit: the mean ratio of a kernel that reaches the nearer limit in every cell."""
    compared = [c for c in cells if c["ratio"] is not None]
    if not compared:
        means = dict.fromkeys(("geomean_ratio", "geomean_at_limit"))
        return {**means, "worst": None, "num_cells": 0, "num_behind": 0}
    at_limit = [c["ratio"] / c["limit_ratio"] for c in compared]
    return {
        "geomean_ratio": statistics.geometric_mean(c["ratio"] for c in compared),
        "geomean_at_limit": statistics.geometric_mean(at_limit),
        "worst": min(compared, key=lambda c: float(c["ratio"])),
        "num_cells": len(compared),
        "num_behind": sum(c["ratio"] < 1 for c in compared),
    }


def show(result: dict[str, Any], console: Console) -> None:
    """Print the limits, a table of each dtype and model, and what it comes to."""
    limits = result["limits"]
    for dtype, summary in result["summary"].items():
        console.print(
            f"limits: read {limits['read_gbps']:.1f} GB/s (best {limits['read_gbps_best']:.1f}), "
            f"{dtype} peak {limits['peak_gflops'][dtype]:.0f} GFLOP/s "
            f"(best {limits['peak_gflops_best'][dtype]:.0f})",
            highlight=False,
        )
        cells = [c for c in result["cells"] if c["dtype"] == dtype]
        for model in dict.fromkeys(c["model"] for c in cells):
            of_model = [c for c in cells if c["model"] == model]
            console.print(_table(f"{dtype}, {model}", of_model))
        if summary["num_cells"]:
            console.print(summary_line(dtype, summary), highlight=False)


def summary_line(dtype: str, summary: dict[str, Any]) -> str:
    """One dtype's comparison with the better peer of each cell, for people."""
    worst = summary["worst"]
    return (
        f"{dtype}: {summary['geomean_ratio']:.2f} x the better peer (geometric mean of "
        f"{summary['num_cells']} cells; {summary['geomean_at_limit']:.2f} x at the limits), behind "
        f"in {summary['num_behind']}; worst {worst['ratio']:.2f} x at {worst['model']} "
        f"{worst['role']}, M {worst['m']} ({worst['peer']})"
    )


def _table(title: str, cells: Sequence[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("role", no_wrap=True)
    for column, width in (
        ("M", 4),
        ("GFLOP/s", 7),
        ("GB/s", 5),
        ("of limit", 9),
        ("peer", None),
        ("GFLOP/s", 7),
        ("ratio", 5),
    ):
        table.add_column(column, justify="right", no_wrap=True, min_width=width)
    previous = None
    for cell in cells:
        if previous not in (None, cell["role"]):
            table.add_section()
        table.add_row("" if cell["role"] == previous else cell["role"], *_figures(cell))
        previous = cell["role"]
    return table


def _figures(cell: dict[str, Any]) -> tuple[str, ...]:
    ours = (
        str(cell["m"]),
        f"{cell['ours_gflops']:.0f}",
        f"{cell['ours_gbps']:.1f}",
        f"{cell['limit_ratio']:.0%} {cell['limit']}",
    )
    if cell["ratio"] is None:
        return (*ours, "-", "-", "-")
    return (
        *ours,
        f"{cell['peer']} {cell['peer_setting']}",
        f"{cell['peer_gflops']:.0f}",
        f"{cell['ratio']:.2f}",
    )
