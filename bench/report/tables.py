"""Results -> tables: a title, the columns, and rows of text."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bench.report.files import Results
from bench.serving.figures import Goals, attainment

SCALES = tuple(2 ** (i / 8) for i in range(-32, 33))  # of an SLO, from a sixteenth to 16 times
WANTED = 0.9  # of the requests


@dataclass(frozen=True)
class Table:
    """Texts only. note: what a reader must know to read it."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""


def tables(results: Results) -> list[Table]:
    """Those for which there are results."""
    makers = (peers, servers, absent, serving, latency, limits, attention, gemm, throughput, others)
    return [table for make in makers for table in make(results) if table.rows]


def limits(results: Results) -> Iterator[Table]:
    """One core, and all of them."""
    rows = [
        (
            row["limit"],
            str(row["num_cores"]),
            f"{row['median']:.0f} {row['unit']}",
            f"{row['best']:.0f}",
            f"{row['spread']:.0%}",
        )
        for row in results.rows("limits")
    ]
    yield Table("Limits", ("limit", "cores", "median", "best", "spread"), rows)


def latency(results: Results) -> Iterator[Table]:
    """Prefill and decode of our engine, as parts of the limit beside them."""
    prefill, decode = [], []
    for result in results.of("latency"):
        what = (result["model"], bits(result))
        prefill += [
            (
                *what,
                str(row["tokens"]),
                f"{row['tok_per_s']:.0f}",
                f"{row['gflops']:.0f}",
                f"{row['peak_ratio']:.0%}",
            )
            for row in result["prefill"]
        ]
        decode += [
            (
                *what,
                str(row["batch"]),
                str(row["context"]),
                f"{row['tok_per_s']:.1f}",
                f"{row['gbps']:.1f}",
                f"{row['bandwidth_ratio']:.0%}",
                f"{row['host_overhead_ratio']:.1%}",
            )
            for row in result["decode"]
        ]
    columns = ("model", "weights", "tokens", "tok/s", "GFLOP/s", "of the peak")
    yield Table("Prefill", columns, prefill)
    shared = ("model", "weights", "batch", "context", "tok/s", "GB/s", "of the bandwidth", "host")
    yield Table("Decode", shared, decode)


def bits(result: dict[str, Any]) -> str:
    """How the weights of a result of our engine are stored."""
    quantization = str(result.get("quantization", "none"))
    return quantization if quantization != "none" else str(result.get("dtype", "bfloat16"))


def peers(results: Results) -> Iterator[Table]:
    """Work that is timed without a server; above 1 we are faster."""
    rows = []
    for row in results.rows("peers"):
        if "ours_tok_per_s" in row:
            rates = [f"{row[f'{side}_tok_per_s']:.1f} tok/s" for side in ("ours", "peer")]
        elif "ours_seconds" in row:
            medians = (statistics.median(row[f"{side}_seconds"]) for side in ("ours", "peer"))
            rates = [f"{seconds:.2f} s" for seconds in medians]
        else:
            continue
        rows.append((*_key(row), *rates, *_ratio(row)))
    columns = ("model", "weights", "peer", "work", "ours", "theirs", "ratio", "middle half")
    note = "A ratio above 1 is in our favour; the same bits, in turns, pair by pair."
    yield Table("Beside other engines", columns, rows, note)


def servers(results: Results) -> Iterator[Table]:
    """The same load on both servers."""
    rows = []
    for row in results.rows("peers"):
        if "runs" not in row:
            continue
        ours, theirs = (middle(row["runs"][side]) for side in ("ours", "peer"))
        rows.append(
            (
                *_key(row),
                *_ratio(row),
                *(
                    f"{ours[m]:.{digits}f} / {theirs[m]:.{digits}f}"
                    for m, digits in (
                        ("output_throughput", 0),
                        ("request_goodput", 2),
                        ("median_ttft_ms", 0),
                        ("p99_ttft_ms", 0),
                        ("median_tpot_ms", 1),
                    )
                ),
                " / ".join(tightest(run, row["goals"]) for run in (ours, theirs)),
                f"{row['ours_memory_bytes'] / 1e9:.2f} / {row['peer_memory_bytes'] / 1e9:.2f}",
            )
        )
    key = ("model", "weights", "peer", "load", "throughput ratio", "middle half")
    figures = ("tok/s", "goodput /s", "TTFT ms", "TTFT p99", "TPOT ms", "SLO scale", "GB held")
    note = "Ours / theirs. SLO scale: times which the goals are kept by 90 % of the requests."
    yield Table("Servers under the same load", (*key, *figures), rows, note)


def tightest(run: dict[str, Any], goals: Goals) -> str:
    """The smallest multiple of the goals that WANTED of the requests keep."""
    asked = run["completed"] + run["failed"]
    kept = (
        scale
        for scale in SCALES
        if attainment(run["requests"], scaled(goals, scale), asked) >= WANTED
    )
    found = next(kept, None)
    return "over 16" if found is None else f"{found:.2f}"


def scaled(goals: Goals, scale: float) -> Goals:
    """Goals that are so many times as long."""
    return {metric: most * scale for metric, most in goals.items()}


def middle(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The run of median throughput."""
    return sorted(runs, key=lambda run: run["output_throughput"])[len(runs) // 2]


def serving(results: Results) -> Iterator[Table]:
    """Our own server at several rates."""
    rows = [
        (
            run["model_id"],
            run["dataset_name"],
            str(run["request_rate"]),
            f"{run['output_throughput']:.1f}",
            f"{run.get('request_goodput', 0):.2f}",
            f"{run['median_ttft_ms']:.0f} / {run['p99_ttft_ms']:.0f}",
            f"{run['median_tpot_ms']:.1f} / {run['p99_tpot_ms']:.1f}",
        )
        for result in results.of("serve")
        for run in result.get("runs", [result])
    ]
    columns = ("model", "dataset", "rate", "tok/s out", "goodput /s", "TTFT ms", "TPOT ms")
    yield Table("Our server", columns, rows, "Latencies: median / 99th percentile.")


def absent(results: Results) -> Iterator[Table]:
    """Peers that could not be had, in their own words."""
    rows = [(*_key(row), row["absent"]) for row in results.rows("peers") if "absent" in row]
    yield Table("Absent", ("model", "weights", "peer", "work", "words"), rows)


def attention(results: Results) -> Iterator[Table]:
    """Worst and median share of the limit by phase and head size."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in results.rows("attention"):
        groups.setdefault((row["phase"], row["head_dim"]), []).append(row)
    rows = []
    for (phase, head_dim), some in sorted(groups.items()):
        worst = min(some, key=lambda row: row["limit_ratio"])
        rows.append(
            (
                phase,
                str(head_dim),
                f"{statistics.median(row['limit_ratio'] for row in some):.0%}",
                f"{worst['limit_ratio']:.0%}",
                f"{worst['group']} to a KV head, {worst['context']} keys, batch {worst['batch']}",
            )
        )
    columns = ("phase", "head", "of the limit, median", "worst", "where")
    yield Table("Attention", columns, rows)


def gemm(results: Results) -> Iterator[Table]:
    """By type of the weights."""
    rows = [
        (
            dtype,
            "" if found["geomean_ratio"] is None else f"{found['geomean_ratio']:.2f}",
            f"{found['num_behind']} of {found['num_cells']}",
        )
        for result in results.of("gemm")
        for dtype, found in result["summary"].items()
    ]
    columns = ("weights", "geometric mean over the better peer", "cells behind")
    yield Table("Matrix products", columns, rows)


def throughput(results: Results) -> Iterator[Table]:
    """Without a server."""
    rows = [
        (
            r["model"],
            bits(r),
            f"{r['num_prompts']} of {r['input_len']} in, {r['output_len']} out",
            f"{r['output_tok_per_s']:.1f}",
            f"{r['total_tok_per_s']:.1f}",
        )
        for r in results.of("throughput")
    ]
    yield Table("Throughput", ("model", "weights", "requests", "out tok/s", "all tok/s"), rows)


def others(results: Results) -> Iterator[Table]:
    """Starts, tuning, and a busy neighbour."""
    rows = [
        (
            f"start to first token, {r['model']} {r['format']}",
            f"{r['warm_seconds']:.2f} s warm, {r['cold_seconds']:.2f} s cold",
        )
        for r in results.of("startup")
    ]
    rows += [
        (f"tuning {r['model']}, {r['seconds']:.0f} s", f"{r['geometric_mean']:.3f} x the defaults")
        for r in results.of("tune")
        if r["geometric_mean"]
    ]
    rows += [
        (
            f"{phase} beside a process that spins on one core",
            f"{row['kept_ratio']:.2f} of the speed ({r['left_by_the_machine']:.2f} is left)",
        )
        for r in results.of("noise")
        for phase, row in r["phases"].items()
    ]
    yield Table("Others", ("what", "measured"), rows)


def _key(row: dict[str, Any]) -> tuple[str, str, str, str]:
    return row["model"], row["format"], row["peer"], row["work"]


def _ratio(row: dict[str, Any]) -> tuple[str, str]:
    low, high = row["ratio_quartiles"]
    return f"{row['ratio']:.2f}", f"{low:.2f} to {high:.2f}"
