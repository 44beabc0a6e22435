"""Answers -> the figures of a serving benchmark, under the names that vLLM's result files have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.serving.client import Answer
from bench.serving.load import Run

METRICS = {"ttft": "Time to First Token", "tpot": "Time per Output Token (excl. 1st token)"} | {
    "itl": "Inter-token Latency",
    "e2el": "End-to-end Latency",
}
Goals = dict[str, float]  # metric -> the most milliseconds a good request may take


def figures(run: Run, percentiles: Sequence[float], goals: Goals) -> dict[str, Any]:
    """Everything that can be printed or drawn; `requests` has a row for each whole answer."""
    done = [answer for answer in run.answers if not answer.error]
    failed = [answer for answer in run.answers if answer.error]
    output = sum(a.num_tokens for a in done)
    total = output + sum(a.num_prompt_tokens for a in done)
    result: dict[str, Any] = {
        "duration": run.seconds,
        "completed": len(done),
        "failed": len(failed),
        "errors": Counter(a.error for a in failed),
        "without_usage": sum(not a.has_usage for a in done),
        "total_input_tokens": total - output,
        "total_cached_tokens": sum(a.num_cached_tokens for a in done),
        "total_output_tokens": output,
        "request_throughput": _rate(len(done), run.seconds),
        "output_throughput": _rate(output, run.seconds),
        "total_token_throughput": _rate(total, run.seconds),
        "max_output_tokens_per_s": _peak_tokens(done),
        "max_concurrent_requests": _peak_concurrency(done),
    }
    if goals:
        good = sum(is_good(a, goals) for a in done)
        result |= {"request_goodput": _rate(good, run.seconds), "good_requests": good}
    for metric in METRICS:
        values = [1e3 * v for a in done for v in values_of(a, metric)]
        result |= _statistics(metric, values, percentiles)
    result["requests"] = [_row(answer, done[0].sent) for answer in sorted(done, key=_sent)]
    return result


def values_of(answer: Answer, metric: str) -> list[float]:
    """Seconds: one, none, or one for each gap."""
    if metric == "itl":
        return answer.itls
    value = {"ttft": answer.ttft, "tpot": answer.tpot, "e2el": answer.e2e}[metric]
    return [] if value is None else [value]


def is_good(answer: Answer, goals: Goals) -> bool:
    """Whether no goal is missed; an answer of one token has no TPOT to miss."""
    return all(
        1e3 * value <= most for metric, most in goals.items() for value in values_of(answer, metric)
    )


def attainment(requests: Sequence[dict[str, Any]], goals: Goals, num_asked: int) -> float:
    """Share of the requests, those that failed among them, that met all goals (ms)."""
    met = sum(
        all(row[f"{m}_ms"] is None or row[f"{m}_ms"] <= most for m, most in goals.items())
        for row in requests
    )
    return met / num_asked if num_asked else 0.0


def _sent(answer: Answer) -> float:
    return answer.sent


def _row(answer: Answer, zero: float) -> dict[str, Any]:
    tpot = answer.tpot
    return {
        "kind": answer.kind,
        "sent": round(answer.sent - zero, 6),
        "input_len": answer.num_prompt_tokens,
        "output_len": answer.num_tokens,
        "cached_len": answer.num_cached_tokens,
        "ttft_ms": round(1e3 * answer.ttft, 3),
        "tpot_ms": None if tpot is None else round(1e3 * tpot, 3),
        "e2el_ms": round(1e3 * answer.e2e, 3),
    }


def _statistics(
    metric: str, values: Sequence[float], percentiles: Sequence[float]
) -> dict[str, Any]:
    """0 where there is nothing, as in vLLM's files."""
    at = values or [0.0]
    return {
        f"mean_{metric}_ms": float(np.mean(at)),
        f"median_{metric}_ms": float(np.median(at)),
        f"std_{metric}_ms": float(np.std(at)),
        **{f"p{p:g}_{metric}_ms": float(np.percentile(at, p)) for p in percentiles},
    }


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


def _peak_tokens(answers: Sequence[Answer]) -> int:
    """The most pieces of text that came within one second of the clock."""
    return max(Counter(int(t) for a in answers for t in a.times).values(), default=0)


def _peak_concurrency(answers: Sequence[Answer]) -> int:
    changes = sorted([(a.sent, 1) for a in answers] + [(a.times[-1], -1) for a in answers])
    return int(max(np.cumsum([change for _, change in changes]), default=0))


def block(result: dict[str, Any], metrics: Sequence[str], percentiles: Sequence[float]) -> str:
    """The result as text, in the form that vLLM's benchmark made known."""
    width = 50
    lines = [" Serving Benchmark Result ".center(width, "=")]

    def add(name: str, value: Any) -> None:
        shown = f"{value:<9.2f}" if isinstance(value, float) else str(value)
        lines.append(f"{name:<40} {shown}")

    add("Successful requests:", result["completed"])
    add("Failed requests:", result["failed"])
    if result.get("max_concurrency"):
        add("Maximum request concurrency:", result["max_concurrency"])
    if isinstance(result.get("request_rate"), float):
        add("Request rate configured (RPS):", result["request_rate"])
    for name, key in (
        ("Benchmark duration (s):", "duration"),
        ("Total input tokens:", "total_input_tokens"),
        ("Total generated tokens:", "total_output_tokens"),
        ("Request throughput (req/s):", "request_throughput"),
        ("Request goodput (req/s):", "request_goodput"),
        ("Output token throughput (tok/s):", "output_throughput"),
        ("Peak output token throughput (tok/s):", "max_output_tokens_per_s"),
        ("Peak concurrent requests:", "max_concurrent_requests"),
        ("Total token throughput (tok/s):", "total_token_throughput"),
    ):
        if key in result:
            add(name, result[key])
    for metric in metrics:
        lines.append(METRICS[metric].center(width, "-"))
        short = metric.upper()
        add(f"Mean {short} (ms):", result[f"mean_{metric}_ms"])
        add(f"Median {short} (ms):", result[f"median_{metric}_ms"])
        for p in percentiles:
            add(f"P{p:g} {short} (ms):", result[f"p{p:g}_{metric}_ms"])
    return "\n".join([*lines, "=" * width])
