"""Prometheus metrics: the one writer of their names. The suffixes are those of vLLM.

Counters and gauges of the engine are read from its statistics when somebody asks; histograms are
filled from the events that leave it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import (
    CollectorRegistry,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from sandwich.engine.stats import Durations
from sandwich.requests.request import Request, RequestTimings, TokenEvent
from sandwich.server.bridge import AsyncEngine

PREFIX = "sandwich:"

_SHORT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5)
_LONG_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600, 1800)

# They would be a second series per histogram that says when the process began.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """The metrics of one server, in a registry of its own. Used on the loop's thread only."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._first_token = self._histogram(
            "time_to_first_token", "arrival to first token", _LONG_S
        )
        self._inter_token = self._histogram("inter_token_latency", "token to token", _SHORT_S)
        self._e2e = self._histogram("e2e_request_latency", "arrival to end", _LONG_S)
        self._queue = self._histogram("request_queue_time", "arrival to first step", _LONG_S)
        self._prefill = self._histogram(
            "request_prefill_time", "first step to first token", _LONG_S
        )
        self._decode = self._histogram("request_decode_time", "first token to last", _LONG_S)
        self.last_time_to_first_token: float | None = None  # seconds, of the latest one
        self._last_token_times: dict[str, float] = {}
        self._ends: dict[str, int] = dict.fromkeys(("stop", "length", "abort", "error"), 0)

    def watch(self, bridge: AsyncEngine) -> None:
        """Show the engine behind `bridge` from now on."""
        self._registry.register(_EngineCollector(bridge, self._ends))

    def text(self) -> bytes:
        """The exposition, in Prometheus' text format."""
        return generate_latest(self._registry)

    def on_event(self, request: Request, event: TokenEvent, now: float) -> None:
        """As `bridge.Observer`."""
        if num_tokens := len(event.token_ids):
            last = self._last_token_times.get(event.request_id)
            if last is None:
                self.last_time_to_first_token = now - request.arrival_time
                self._first_token.observe(self.last_time_to_first_token)
                last, num_tokens = now, num_tokens - 1
            for _ in range(num_tokens):
                self._inter_token.observe((now - last) / num_tokens)
            self._last_token_times[event.request_id] = now
        if event.finish_reason is not None:
            self._last_token_times.pop(event.request_id, None)
            if event.timings is not None:
                self._observe(event.timings)

    def on_end(self, reason: str) -> None:
        """As `bridge.Observer`."""
        self._ends[reason] += 1

    def _observe(self, timings: RequestTimings) -> None:
        self._e2e.observe(timings.finished - timings.arrival)
        if timings.first_scheduled is None:
            return
        self._queue.observe(timings.first_scheduled - timings.arrival)
        if timings.first_token is not None and timings.last_token is not None:
            self._prefill.observe(timings.first_token - timings.first_scheduled)
            self._decode.observe(timings.last_token - timings.first_token)

    def _histogram(self, name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(
            f"{PREFIX}{name}_seconds", f"Seconds, {what}", registry=self._registry, buckets=buckets
        )


class _EngineCollector(Collector):
    """Reads the engine's own statistics, so that nothing is counted twice."""

    def __init__(self, bridge: AsyncEngine, ends: dict[str, int]) -> None:
        self._bridge = bridge
        self._ends = ends

    def collect(self) -> Iterator[Metric]:
        stats = self._bridge.stats
        num_running = stats.num_running
        num_waiting = max(self._bridge.num_places_taken - num_running, 0)
        yield _gauge("num_requests_running", "Requests in the batch", num_running)
        yield _gauge("num_requests_waiting", "Requests accepted, not yet running", num_waiting)
        yield _gauge("kv_cache_usage_perc", "KV cache in use, 1 is all", stats.kv_cache_usage)
        yield _counter(
            "prompt_tokens", "Prompt tokens, also those found in the cache", stats.num_prompt_tokens
        )
        yield _counter("generation_tokens", "Tokens generated", stats.num_generated_tokens)
        yield _counter(
            "prefix_cache_queries", "Tokens looked up in the prefix cache", stats.num_prefix_queries
        )
        yield _counter(
            "prefix_cache_hits", "Tokens found there, not computed again", stats.num_prefix_hits
        )
        if (store := stats.store) is not None:
            yield _counter("kv_offload_saved_blocks", "Evicted blocks kept", store.num_saved)
            yield _counter("kv_offload_restored_blocks", "Blocks taken back", store.num_restored)
        yield _counter("num_preemptions", "Requests put back", stats.num_preemptions)
        yield _counter("plan_switches", "Changes of the phase", stats.num_phase_switches)
        yield _durations(
            "plan_switch_seconds",
            "Seconds from one phase's native call to the other's",
            stats.plan_switches,
        )
        ends = _counter("request_success", "Ended requests by reason", labels=["finished_reason"])
        for reason, count in self._ends.items():
            ends.add_metric([reason], count)
        yield ends
        yield from self._phases()

    def _phases(self) -> Iterator[Metric]:
        steps = _counter("steps", "Engine steps", labels=["phase"])
        tokens = _counter("step_tokens", "Tokens computed", labels=["phase"])
        step_time = _counter("step_time_seconds", "Seconds in steps", labels=["phase"])
        run_time = _counter("executor_time_seconds", "Seconds in kernels", labels=["phase"])
        for kind, stats in self._bridge.stats.steps.items():
            steps.add_metric([kind.value], stats.num_steps)
            tokens.add_metric([kind.value], stats.num_tokens)
            step_time.add_metric([kind.value], stats.step_seconds)
            run_time.add_metric([kind.value], stats.run_seconds)
        yield from (steps, tokens, step_time, run_time)


def _durations(name: str, what: str, durations: Durations) -> HistogramMetricFamily:
    bounds = (*map(str, durations.bounds), "+Inf")
    buckets = list(zip(bounds, accumulate(durations.counts), strict=True))
    return HistogramMetricFamily(PREFIX + name, what, buckets, durations.total_seconds)


def _gauge(name: str, what: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, what, value=value)


def _counter(
    name: str, what: str, value: float | None = None, labels: list[str] | None = None
) -> CounterMetricFamily:
    return CounterMetricFamily(PREFIX + name, what, value=value, labels=labels)
