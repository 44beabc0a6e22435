"""Draws the result of the GEMM benchmark: a heat map of ratios and a roofline for each dtype.

matplotlib is an extra (`plot`), imported only to draw.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sandwich.errors import ConfigError

FORMATS = (".svg", ".png")
COLOUR_LIMIT = 2.0  # ratios from 1/2 to 2 have different colours
CELL, NAMES, ROOFLINE, MARGIN = (0.52, 0.3), 3.2, (5.6, 3.6), 1.1  # inches, width before height
OURS, PEER = "#1b6ca8", "#d1495b"


def require_matplotlib(path: str) -> None:
    """ConfigError, before anything is measured, if the picture could not be drawn."""
    if Path(path).suffix not in FORMATS:
        raise ConfigError(f"--picture {path}: must end in {' or '.join(FORMATS)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(
            f"--picture {path}: matplotlib is not installed; pip install 'sandwich-llm[plot]'"
        )


def draw(result: dict[str, Any], path: str) -> None:
    """Draw the result of `sandwich bench gemm` into a .svg or .png file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    dtypes = list(result["summary"])
    by_dtype = [[c for c in result["cells"] if c["dtype"] == dtype] for dtype in dtypes]
    columns = max(len(_all_m(cells)) for cells in by_dtype)
    width = CELL[0] * columns + NAMES
    heights = [max(CELL[1] * len(_matrices(cells)) + MARGIN, ROOFLINE[1]) for cells in by_dtype]
    figure = Figure(figsize=(width + ROOFLINE[0], sum(heights) + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(
        len(dtypes),
        2,
        squeeze=False,
        gridspec_kw={"width_ratios": (width, ROOFLINE[0]), "height_ratios": heights},
    )
    for row, (dtype, cells) in zip(axes, zip(dtypes, by_dtype, strict=True), strict=True):
        _heat_map(figure, row[0], dtype, cells, result["summary"][dtype])
        _roofline(row[1], dtype, cells, result["limits"])
    machine = result["machine"]
    figure.suptitle(
        f"GEMM on {machine['cpu_model']}, {len(machine['cpus'])} cores, {machine['isa']}"
    )
    figure.savefig(path, dpi=150)


def _matrices(cells: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((c["model"], c["role"]) for c in cells))


def _all_m(cells: Sequence[dict[str, Any]]) -> list[int]:
    return sorted({c["m"] for c in cells})


def _heat_map(
    figure: Any, axes: Any, dtype: str, cells: Sequence[dict[str, Any]], summary: dict[str, Any]
) -> None:
    """Ratio over the better peer: blue where we are faster, red where we are slower."""
    matrices, all_m = _matrices(cells), _all_m(cells)
    ratios = {((c["model"], c["role"]), c["m"]): c["ratio"] for c in cells}
    grid = [[_log2(ratios.get((matrix, m))) for m in all_m] for matrix in matrices]
    limit = math.log2(COLOUR_LIMIT)
    image = axes.imshow(grid, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    for y, matrix in enumerate(matrices):
        for x, m in enumerate(all_m):
            ratio = ratios.get((matrix, m))
            if ratio is not None:
                is_dark = abs(math.log2(ratio)) > 0.55 * limit
                colour = "white" if is_dark else "black"
                axes.text(x, y, f"{ratio:.2f}", ha="center", va="center", size=8, color=colour)
    axes.set_xticks(range(len(all_m)), [str(m) for m in all_m])
    axes.set_yticks(range(len(matrices)), [f"{model} {role}" for model, role in matrices])
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("M")
    mean = summary["geomean_ratio"]
    title = f"{dtype}: not compared" if mean is None else f"{dtype}: {mean:.2f} x the better peer"
    axes.set_title(title, loc="left")
    bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=25, extend="both")
    bar.set_ticks([-1, 0, 1], labels=["1/2", "1", "2"])
    bar.outline.set_visible(False)


def _log2(ratio: float | None) -> float:
    return math.nan if ratio is None else math.log2(ratio)


def _roofline(
    axes: Any, dtype: str, cells: Sequence[dict[str, Any]], limits: dict[str, Any]
) -> None:
    """GFLOP/s over operations per byte of weights, under the two measured limits."""
    intensity = [c["ours_gflops"] / c["ours_gbps"] for c in cells]
    ends = (min(intensity) / 1.6, max(intensity) * 1.6)
    peak, read = limits["peak_gflops"][dtype], limits["read_gbps"]
    dots = {"s": 22, "alpha": 0.75, "linewidths": 0}
    ours = [c["ours_gflops"] for c in cells]
    axes.scatter(intensity, ours, color=OURS, marker="o", label="sandwich", **dots)
    peers = [(x, c["peer_gflops"]) for x, c in zip(intensity, cells, strict=True) if c["peer"]]
    if peers:
        axes.scatter(
            *zip(*peers, strict=True),
            color=PEER,
            marker="s",
            label="better peer",
            zorder=1.5,
            **dots,
        )
    best = (limits["peak_gflops_best"][dtype], limits["read_gbps_best"])
    _roof(axes, ends, *best, color="#999999", linewidth=1, linestyle=":", label="limits, best")
    _roof(axes, ends, peak, read, color="#333333", linewidth=1.5, label="limits, median")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    text = {"textcoords": "offset points", "size": 9}
    axes.annotate(
        f"peak {peak:.0f} GFLOP/s (best {best[0]:.0f})",
        (ends[1], best[0]),
        (0, 5),
        ha="right",
        **text,
    )
    high = 0.7 * min(best[0] / best[1], ends[1])
    axes.annotate(
        f"read {read:.0f} GB/s\n(best {best[1]:.0f})",
        (high, high * best[1]),
        (-8, -4),
        ha="right",
        **text,
    )
    axes.set_ylim(top=best[0] * 1.5)
    axes.grid(which="major", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("operations per byte of weights")
    axes.set_ylabel("GFLOP/s")
    axes.legend(frameon=False, loc="lower right")


def _roof(axes: Any, ends: tuple[float, float], peak: float, read: float, **style: Any) -> None:
    xs = (ends[0], min(max(peak / read, ends[0]), ends[1]), ends[1])
    axes.plot(xs, [min(peak, read * x) for x in xs], **style)
