"""Traces as a collector of OpenTelemetry gets them."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from sandwich.config import ServerConfig
from sandwich.errors import ConfigError
from sandwich.server.app import Server
from tests.sandwich.server.conftest import MODEL, Rig, StartRig

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"


class Collector:
    """Takes spans over HTTP."""

    def __init__(self) -> None:
        self.spans: dict[str, Any] = {}
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        export = ExportTraceServiceRequest()
        export.ParseFromString(await request.read())
        for resource in export.resource_spans:
            for scope in resource.scope_spans:
                self.spans |= {span.name: span for span in scope.spans}
        return web.Response(content_type="application/x-protobuf")


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    collector, app = Collector(), web.Application()
    app.router.add_post("/v1/traces", collector.take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    collector.url = f"http://{host}:{port}/v1/traces"
    yield collector
    await runner.cleanup()


def attributes(span: Any) -> dict[str, Any]:
    return {
        each.key: getattr(each.value, str(each.value.WhichOneof("value")))
        for each in span.attributes
    }


async def post(rig: Rig, body: dict[str, Any]) -> int:
    headers = {"traceparent": PARENT}
    url = rig.url + "/v1/completions"
    async with rig.http.post(url, json=body, headers=headers) as response:
        await response.read()
        return response.status


@pytest.mark.parametrize("streams", [False, True])
async def test_a_call_is_a_span_with_its_phases_in_the_clients_trace(
    start: StartRig, collector: Collector, streams: bool
) -> None:
    rig = await start(config=ServerConfig(port=0, otlp_traces_endpoint=collector.url))
    body = {"model": MODEL, "prompt": "hello", "max_tokens": 4, "stream": streams}
    assert await post(rig, body) == 200
    assert await rig.get("/version") == (200, {"version": "0.1.0"})
    await rig.server.stop()
    call = collector.spans["POST /v1/completions"]
    assert call.trace_id.hex() == TRACE_ID
    found = attributes(call)
    assert found["http.response.status_code"] == 200
    assert found["gen_ai.usage.input_tokens"] == 1 + len("hello")
    assert found["gen_ai.usage.output_tokens"] == 4
    assert set(collector.spans) == {"POST /v1/completions", "waiting", "prefill", "decode"}
    phases = [collector.spans[name] for name in ("waiting", "prefill", "decode")]
    assert all(phase.parent_span_id == call.span_id for phase in phases)
    for first, second in pairwise(phases):
        assert first.start_time_unix_nano <= first.end_time_unix_nano
        assert abs(first.end_time_unix_nano - second.start_time_unix_nano) < 1000


async def test_a_refusal_is_a_span_too(start: StartRig, collector: Collector) -> None:
    rig = await start(config=ServerConfig(port=0, otlp_traces_endpoint=collector.url))
    assert await post(rig, {"prompt": 3}) == 400
    await rig.server.stop()
    [call] = collector.spans.values()
    assert attributes(call)["http.response.status_code"] == 400


async def test_a_collector_that_is_not_there_holds_nobody_up(
    start: StartRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandwich.server.traces._EXPORT_TIMEOUT_S", 0.1)
    config = ServerConfig(port=0, otlp_traces_endpoint="http://127.0.0.1:1/v1/traces")
    rig = await start(config=config)
    assert await post(rig, {"prompt": "x", "max_tokens": 1}) == 200


def test_without_the_extra_the_option_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"sandwich-llm\[traces\]"):
        Server(ServerConfig(port=0, otlp_traces_endpoint="http://x"))
