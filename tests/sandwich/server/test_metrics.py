"""Metrics: exact numbers after known traffic."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

from tests.sandwich.server.conftest import MODEL, PATIENCE_S, Rig, StartRig

PREFIX = "sandwich:"
HISTOGRAMS = (
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "e2e_request_latency_seconds",
    "request_queue_time_seconds",
    "request_prefill_time_seconds",
    "request_decode_time_seconds",
)


async def test_known_traffic_gives_exact_counts(rig: Rig) -> None:
    create = rig.client.completions.create
    await create(model=MODEL, prompt=[1] * 20, max_tokens=5)  # 2 prefill steps, 4 decode steps
    await create(model=MODEL, prompt=[1] * 3, max_tokens=1)  # 1 prefill step
    await create(model=MODEL, prompt="hello", max_tokens=50, stop="8")  # ended by its text
    metrics = await rig.metrics()

    def value(name: str) -> float:
        return metrics[PREFIX + name]

    assert value("prompt_tokens_total") == 20 + 3 + 6
    assert value('request_success_total{finished_reason="length"}') == 2
    assert value('request_success_total{finished_reason="stop"}') == 1
    assert value('request_success_total{finished_reason="abort"}') == 0
    assert value('request_success_total{finished_reason="error"}') == 0
    assert value('steps_total{phase="prefill"}') == 4
    assert value("prefix_cache_queries_total") == 20 + 3 + 6
    assert value("prefix_cache_hits_total") == 2
    assert value('step_tokens_total{phase="prefill"}') == 29 - 2
    num_decode_steps = value('steps_total{phase="decode"}')
    assert value('step_tokens_total{phase="decode"}') == num_decode_steps
    assert value("generation_tokens_total") == 3 + num_decode_steps
    assert value("num_preemptions_total") == 0
    assert value("plan_switches_total") == 3  # prefill, decode, prefill, decode
    assert value('step_time_seconds_total{phase="prefill"}') > 0
    assert value('executor_time_seconds_total{phase="decode"}') > 0
    for name in HISTOGRAMS:
        if name != "inter_token_latency_seconds":
            assert value(f"{name}_count") == 3, name
    assert value("inter_token_latency_seconds_count") == num_decode_steps
    assert value("num_requests_running") == value("num_requests_waiting") == 0
    assert value("kv_cache_usage_perc") == 0


async def test_plan_switches_are_a_histogram(rig: Rig) -> None:
    for seconds in (3e-6, 4e-5, 4.5e-5, 1.0):
        rig.bridge.stats.plan_switches.add(seconds)
    metrics = await rig.metrics()
    name = PREFIX + "plan_switch_seconds"
    assert metrics[f'{name}_bucket{{le="5e-06"}}'] == 1
    assert metrics[f'{name}_bucket{{le="3e-05"}}'] == 1
    assert metrics[f'{name}_bucket{{le="5e-05"}}'] == 3
    assert metrics[f'{name}_bucket{{le="+Inf"}}'] == metrics[f"{name}_count"] == 4
    assert metrics[f"{name}_sum"] == 3e-6 + 4e-5 + 4.5e-5 + 1.0


async def test_gauges_show_what_runs_and_what_waits(start: StartRig) -> None:
    rig = await start()
    rig.executor.hold()
    calls = []
    for _ in range(6):
        request = rig.client.completions.create(model=MODEL, prompt=[1] * 8, max_tokens=20)
        calls.append(asyncio.create_task(request))
    await rig.submitted(6)
    rig.executor.allow(5)  # prefill 1, decode, prefill 2, decode, prefill 1
    await rig.executor.entered(6)
    metrics = await rig.metrics()
    assert metrics[PREFIX + "num_requests_running"] == 4  # seats
    assert metrics[PREFIX + "num_requests_waiting"] == 2
    assert metrics[PREFIX + "kv_cache_usage_perc"] > 0
    rig.executor.allow()
    await asyncio.wait_for(asyncio.gather(*calls), PATIENCE_S)


async def test_clients_that_leave_are_counted_apart(rig: Rig) -> None:
    rig.executor.hold()
    stream = await rig.client.completions.create(
        model=MODEL, prompt="hello", max_tokens=50, stream=True
    )
    await rig.executor.entered(1)
    await stream.close()
    await asyncio.wait_for(rig.bridge.wait_until_empty(), PATIENCE_S)
    rig.executor.allow()
    await rig.check_nothing_is_left()
    metrics = await rig.metrics()
    assert metrics[PREFIX + 'request_success_total{finished_reason="abort"}'] == 1
    assert metrics[PREFIX + 'request_success_total{finished_reason="length"}'] == 1


async def test_every_request_ends_once_whatever_happens_to_it(start: StartRig) -> None:
    rig = await start(max_num_queued_reqs=60)
    rig.executor.failing_runs = frozenset({5})
    rig.executor.hold()
    staying: list[asyncio.Task[Any]] = []
    leaving: list[asyncio.Task[Any]] = []
    for i in range(10):
        fields = {"prompt": ["a" * i, "b"], "n": 1 + i % 3, "stop": "4", "max_tokens": 1 + i}
        task = asyncio.create_task(rig.post("/v1/completions", fields))
        (leaving if i % 4 == 0 else staying).append(task)
    await rig.submitted(10)
    num_requests = rig.bridge.num_places_taken
    for call in leaving:
        call.cancel()
    rig.executor.allow()
    await asyncio.wait_for(asyncio.gather(*leaving, return_exceptions=True), PATIENCE_S)
    await asyncio.wait_for(asyncio.gather(*staying), PATIENCE_S)
    await rig.check_nothing_is_left()
    metrics = await rig.metrics()
    ends = sum(value for name, value in metrics.items() if "request_success_total" in name)
    assert ends == num_requests + 1


async def test_a_stop_string_in_the_last_token_is_a_stop(rig: Rig) -> None:
    answer = await rig.client.completions.create(
        model=MODEL, prompt="hello", max_tokens=3, stop="78"
    )
    assert answer.choices[0].finish_reason == "stop"
    metrics = await rig.metrics()
    assert metrics[PREFIX + 'request_success_total{finished_reason="stop"}'] == 1


async def test_failures_are_counted_apart(rig: Rig) -> None:
    rig.executor.failing_runs = frozenset({0})
    assert (await rig.post("/v1/completions", {"prompt": "x"}))[0] == 500
    metrics = await rig.metrics()
    assert metrics[PREFIX + 'request_success_total{finished_reason="error"}'] == 1


async def test_two_servers_do_not_share_their_metrics(start: StartRig) -> None:
    first, second = await start(), await start()
    await first.client.completions.create(model=MODEL, prompt="x", max_tokens=1)
    assert (await first.metrics())[PREFIX + "generation_tokens_total"] == 1
    assert (await second.metrics())[PREFIX + "generation_tokens_total"] == 0


async def test_the_exposition_is_prometheus_text(rig: Rig) -> None:
    async with rig.http.get(rig.url + "/metrics") as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=")
        text = await response.text()
    assert "# TYPE sandwich:prompt_tokens_total counter" in text or (
        "# TYPE sandwich:prompt_tokens counter" in text
    )
    assert "# TYPE sandwich:time_to_first_token_seconds histogram" in text
    assert "_created" not in text


async def test_every_metric_of_the_dashboard_is_there(rig: Rig, checkout: Path) -> None:
    dashboard = json.loads((checkout / "deploy" / "grafana.json").read_text())
    texts = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    texts += [variable["query"] for variable in dashboard["templating"]["list"]]
    wanted = {name for text in texts for name in re.findall(r"sandwich:\w+", text)}
    await rig.client.completions.create(model=MODEL, prompt="x", max_tokens=2)
    shown = {name.partition("{")[0] for name in await rig.metrics()}
    assert len(wanted) > 15
    assert wanted <= shown
