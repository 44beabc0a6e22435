"""Results -> pictures, as SVG texts. matplotlib is an extra, imported only to draw."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from bench.report.files import Results
from bench.report.tables import SCALES, bits, middle, scaled
from bench.serving.figures import attainment

OURS, PEER, GREY = "#1b6ca8", "#d1495b", "#666666"
COLOUR_LIMIT = 2.0  # ratios from 1/2 to 2 have different colours
Picture = tuple[str, str]  # title, SVG


def pictures(results: Results) -> list[Picture]:
    """Those for which there are results."""
    makers = (heat_maps, goodput, attainments, percentiles, roofline, attention)
    return [picture for make in makers for picture in make(results)]


def svg(size: tuple[float, float], paint: Callable[[Any], None]) -> str:
    """A picture with one pair of axes, or as many as `paint` makes of the figure it gets."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "path", "svg.hashsalt": "sandwich", "font.size": 9}):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def heat_maps(results: Results) -> Iterator[Picture]:
    """For each model and peer: ratios by format and work.

    A load that does not keep its server busy says nothing by its throughput, and is left out.
    """
    rows = [
        row for row in results.rows("peers") if "ratio" in row and row.get("rate", "inf") == "inf"
    ]
    for model, peer in sorted({(row["model"], row["peer"]) for row in rows}):
        some = [row for row in rows if (row["model"], row["peer"]) == (model, peer)]
        formats = list(dict.fromkeys(row["format"] for row in some))
        works = list(dict.fromkeys(row["work"] for row in some))
        ratios = {(row["work"], row["format"]): row["ratio"] for row in some}
        grid = [[ratios.get((work, f), math.nan) for f in formats] for work in works]

        def paint(
            figure: Any,
            grid: list[list[float]] = grid,
            works: list[str] = works,
            formats: list[str] = formats,
        ) -> None:
            axes = figure.subplots()
            limit = math.log2(COLOUR_LIMIT)
            image = axes.imshow(np.log2(grid), cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
            for (y, x), ratio in np.ndenumerate(grid):
                if not math.isnan(ratio):
                    dark = abs(math.log2(ratio)) > 0.55 * limit
                    colour = "white" if dark else "black"
                    axes.text(x, y, f"{ratio:.2f}", ha="center", va="center", color=colour)
            axes.set_xticks(range(len(formats)), formats)
            axes.set_yticks(range(len(works)), works)
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
            bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=25, extend="both")
            bar.set_ticks([-1, 0, 1], labels=["1/2", "1", "2"])
            bar.outline.set_visible(False)

        size = (4.2 + 0.8 * len(formats), 1.0 + 0.34 * len(works))
        yield f"{model}: ratio over {peer} (blue: we are faster)", svg(size, paint)


def goodput(results: Results) -> Iterator[Picture]:
    """For each model, format and peer: requests a second within the goals, over the rate asked."""
    for title, rows in _served(results):
        points = sorted((_rate(row), row) for row in rows if not math.isinf(_rate(row)))
        if len(points) < 2:
            continue

        def paint(figure: Any, points: list[tuple[float, dict[str, Any]]] = points) -> None:
            axes = figure.subplots()
            rates = [rate for rate, _ in points]
            for side, name, colour in _sides(points[0][1]):
                values = [_median(row["runs"][side], "request_goodput") for _, row in points]
                axes.plot(rates, values, color=colour, marker="o", label=name)
            axes.set_xlabel("conversations that begin in a second")
            axes.set_ylabel("goodput, requests a second")
            axes.set_ylim(bottom=0)
            _tidy(axes)

        yield f"{title}: goodput against rate", svg((5.2, 3.2), paint)


def attainments(results: Results) -> Iterator[Picture]:
    """For each load: the share of requests within the goals, as these are tightened or relaxed."""
    for title, rows in _served(results):

        def paint(figure: Any, rows: list[dict[str, Any]] = rows) -> None:
            for axes, row in zip(
                figure.subplots(1, len(rows), squeeze=False)[0], rows, strict=True
            ):
                for side, name, colour in _sides(row):
                    run = middle(row["runs"][side])
                    asked = run["completed"] + run["failed"]
                    shares = [
                        100 * attainment(run["requests"], scaled(row["goals"], scale), asked)
                        for scale in SCALES
                    ]
                    axes.plot(SCALES, shares, color=colour, label=name)
                axes.axhline(90, color=GREY, linewidth=0.8, linestyle=":")
                axes.set_xscale("log", base=2)
                axes.xaxis.set_major_formatter("{x:g}")
                goals = ", ".join(f"{k.upper()} {v:g} ms" for k, v in row["goals"].items())
                axes.set_xlabel(f"scale of the SLO ({goals})")
                axes.set_ylabel("requests within it, %")
                axes.set_title(row["work"], size=8, loc="left")
                axes.set_ylim(0, 103)
                _tidy(axes)

        yield f"{title}: attainment against SLO scale", svg((4.6 * len(rows), 3.2), paint)


def percentiles(results: Results) -> Iterator[Picture]:
    """For each load: the distributions of TTFT and of TPOT."""
    for title, rows in _served(results):

        def paint(figure: Any, rows: list[dict[str, Any]] = rows) -> None:
            grid = figure.subplots(2, len(rows), squeeze=False)
            for column, row in enumerate(rows):
                for line, metric in enumerate(("ttft_ms", "tpot_ms")):
                    axes = grid[line][column]
                    for side, name, colour in _sides(row):
                        runs = row["runs"][side]
                        values = [q[metric] for run in runs for q in run["requests"]]
                        known = sorted(v for v in values if v is not None)
                        at = np.linspace(0, 100, len(known))
                        axes.plot(at, known, color=colour, label=name)
                    axes.set_yscale("log")
                    axes.yaxis.set_major_formatter("{x:g}")
                    axes.yaxis.set_minor_formatter("{x:g}")
                    axes.tick_params(axis="y", which="minor", labelsize=7)
                    axes.set_ylabel(metric.replace("_ms", ", ms").upper().replace("MS", "ms"))
                    axes.set_xlabel("percentile of the requests")
                    if line == 0:
                        axes.set_title(row["work"], size=8, loc="left")
                    _tidy(axes)

        yield f"{title}: percentiles", svg((4.6 * len(rows), 5.4), paint)


def roofline(results: Results) -> Iterator[Picture]:
    """Whole steps of our engine under the limits that were measured in the same run."""
    found = results.of("latency")
    if not found:
        return

    def paint(figure: Any) -> None:
        axes = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
        for each, result in zip(axes, found, strict=True):
            _roofs(each, result)

    yield "Rooflines of whole steps", svg((3.6 * len(found) + 0.6, 3.6), paint)


def _roofs(axes: Any, result: dict[str, Any]) -> None:
    peak, read = result["limits"]["peak_gflops"], result["limits"]["read_gbps"]
    prefill = [(row["intensity"], row["gflops"]) for row in result["prefill"]]
    decode = [(row["intensity"], row["gbps"] * row["intensity"]) for row in result["decode"]]
    known = [x for x, _ in prefill + decode]
    ends = min(known) / 1.6, max([*known, peak / read]) * 1.6
    xs = (ends[0], peak / read, ends[1])
    axes.plot(xs, [min(peak, read * x) for x in xs], color="#333333", linewidth=1.5)
    for points, name, colour in ((prefill, "prefill", OURS), (decode, "decode", PEER)):
        axes.scatter(*zip(*points, strict=True), s=24, color=colour, label=name, alpha=0.8)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    title = f"{result['model']} {bits(result)}: {peak:.0f} GFLOP/s, {read:.0f} GB/s"
    axes.set_title(title, size=8, loc="left")
    axes.set_xlabel("operations per byte")
    axes.set_ylabel("GFLOP/s")
    _tidy(axes)


def attention(results: Results) -> Iterator[Picture]:
    """Share of the limit over the number of keys, by group."""
    rows = [row for row in results.rows("attention") if row["batch"] == 1]
    if not rows:
        return
    dims = sorted({row["head_dim"] for row in rows})

    def paint(figure: Any) -> None:
        grid = figure.subplots(2, len(dims), squeeze=False, sharex=True, sharey=True)
        for line, phase in enumerate(("prefill", "decode")):
            for column, head_dim in enumerate(dims):
                axes = grid[line][column]
                some = [r for r in rows if (r["phase"], r["head_dim"]) == (phase, head_dim)]
                for group in sorted({r["group"] for r in some}):
                    mine = sorted(
                        (r["context"], r["limit_ratio"]) for r in some if r["group"] == group
                    )
                    xs, ys = zip(*mine, strict=True)
                    axes.plot(xs, [100 * y for y in ys], "o-", markersize=3, label=f"group {group}")
                axes.set_xscale("log", base=2)
                axes.xaxis.set_major_formatter("{x:g}")
                axes.set_ylim(0, 110)
                axes.set_title(f"{phase}, heads of {head_dim}", size=8, loc="left")
                _tidy(axes)
        figure.supxlabel("keys", size=9)
        figure.supylabel("of the peak (prefill), of the bandwidth (decode), %", size=9)

    yield "Attention", svg((2.6 * len(dims) + 0.6, 5.0), paint)


def _served(results: Results) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Rows of servers under load, by model, format and peer."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in results.rows("peers"):
        if "runs" in row:
            title = f"{row['model']} {row['format']}, beside {row['peer']}"
            groups.setdefault(title, []).append(row)
    yield from groups.items()


def _sides(row: dict[str, Any]) -> Sequence[tuple[str, str, str]]:
    return (("ours", "sandwich", OURS), ("peer", row["peer"], PEER))


def _rate(row: dict[str, Any]) -> float:
    return float(row["rate"])


def _median(runs: list[dict[str, Any]], metric: str) -> float:
    return float(statistics.median(run[metric] for run in runs))


def _tidy(axes: Any) -> None:
    axes.grid(which="major", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
