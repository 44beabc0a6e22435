"""OpenTelemetry traces: a span for each call that computes, with spans of its phases in it.

An extra (`pip install sandwich-llm[traces]`): the library is imported only where an endpoint for
traces is given. Names follow the semantic conventions of HTTP and generative AI
(https://opentelemetry.io/docs/specs/semconv/gen-ai/).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from sandwich import __version__
from sandwich.errors import ConfigError
from sandwich.server.access_log import NOTES
from sandwich.server.errors import REQUEST_ID, Handler

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

_EXPORT_TIMEOUT_S = 5.0  # for a collector to take spans; the last ones hold the shutdown up so long
# Notes of a request -> attributes of its span.
_ATTRIBUTES: Final = {
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
    "cached_tokens": "sandwich.cached_tokens",
    "finish_reasons": "gen_ai.response.finish_reasons",
}


class Tracing:
    """Sends spans away on a thread of its own, from `of` to `close`."""

    def __init__(self, processor: SpanProcessor) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        resource = Resource.create({"service.name": "sandwich", "service.version": __version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("sandwich", __version__)

    @staticmethod
    def of(endpoint: str | None) -> Tracing | None:
        """To the collector at `endpoint` (OTLP over HTTP); None: no traces.

        Raises ConfigError if the library is not there.
        """
        if endpoint is None:
            return None
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise ConfigError(
                f"--otlp-traces-endpoint needs the package {error.name}; "
                "`pip install sandwich-llm[traces]`"
            ) from error
        return Tracing(BatchSpanProcessor(OTLPSpanExporter(endpoint, timeout=_EXPORT_TIMEOUT_S)))

    def middleware(self) -> Any:
        """Makes the spans of requests; a client's `traceparent` makes them part of its trace."""
        from opentelemetry import propagate, trace

        @web.middleware
        async def trace_request(request: web.Request, handler: Handler) -> web.StreamResponse:
            if request.method != "POST":
                return await handler(request)
            parent = propagate.extract(request.headers)
            with self._tracer.start_as_current_span(
                f"POST {request.path}", parent, trace.SpanKind.SERVER
            ) as span:
                response = await handler(request)
                notes = request.get(NOTES, {})
                span.set_attributes(
                    {
                        "http.request.method": request.method,
                        "url.path": request.path,
                        "http.response.status_code": response.status,
                        "sandwich.request_id": request[REQUEST_ID],
                        **{_ATTRIBUTES[n]: v for n, v in notes.items() if n in _ATTRIBUTES},
                    }
                )
                if response.status >= 500:
                    span.set_status(trace.StatusCode.ERROR)
                for name, start_ns, end_ns in _phases(notes):
                    self._tracer.start_span(name, start_time=start_ns).end(end_ns)
                return response

        return trace_request

    async def close(self) -> None:
        """Send what is left."""
        await asyncio.to_thread(self._provider.shutdown)


def _phases(notes: dict[str, Any]) -> Iterator[tuple[str, int, int]]:
    """Name, start and end of each phase, in nanoseconds since 1970."""
    since_1970 = time.time() - time.monotonic()
    for name, (start, end) in notes.get("phases", {}).items():
        yield name, int((start + since_1970) * 1e9), int((end + since_1970) * 1e9)
