"""The web page at `/`: a chat, and what the engine is doing. One HTML file without other hosts."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from aiohttp import web

from sandwich import __version__
from sandwich.server.responses import EngineStatus, PhaseStatus, PlanStatus
from sandwich.server.state import STATE
from sandwich.server.wire import json_response, service_of

PATH = "/"
# The page's own script and style are inline, it calls this server, and nothing else may be loaded.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


async def index(_: web.Request) -> web.Response:
    """The page. It needs no key: it asks for one where the server wants it."""
    headers = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"}
    return web.Response(text=_html(), content_type="text/html", headers=headers)


async def status(request: web.Request) -> web.Response:
    """What the page shows beside the chat, as one JSON object."""
    service = service_of(request)
    stats, backend = service.bridge.stats, service.backend
    about, metrics = backend.about, request.app[STATE].metrics
    return json_response(
        EngineStatus(
            version=__version__,
            model=backend.model_name,
            max_model_len=backend.max_model_len,
            machine=about.machine,
            isa=about.isa,
            weights=about.weights,
            kv_cache=about.kv_cache,
            plans=PlanStatus(about.prefill, about.decode, about.mixed, about.picture),
            num_requests_running=stats.num_running,
            num_requests_waiting=max(service.bridge.num_places_taken - stats.num_running, 0),
            kv_cache_usage=stats.kv_cache_usage,
            prompt_tokens=stats.num_prompt_tokens,
            generation_tokens=stats.num_generated_tokens,
            prefix_cache_queries=stats.num_prefix_queries,
            prefix_cache_hits=stats.num_prefix_hits,
            plan_switches=stats.num_phase_switches,
            time_to_first_token=metrics.last_time_to_first_token,
            phases={
                kind.value: PhaseStatus(step.num_steps, step.num_tokens, step.step_seconds)
                for kind, step in stats.steps.items()
            },
        )
    )


@cache
def _html() -> str:
    return files("sandwich.server.page").joinpath("index.html").read_text(encoding="utf-8")
