"""Cross-origin requests: which pages of other web origins may call the server from a browser.

Source: the Fetch standard (https://fetch.spec.whatwg.org/#http-cors-protocol).
"""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web

from sandwich.server.errors import REQUEST_ID_HEADER, Handler

GRANTED: Final = web.RequestKey("cors", dict)  # headers for the answer

_MAX_AGE_S: Final = 600  # for which a browser need not ask again
_PREFLIGHT: Final = {
    "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
    "Access-Control-Max-Age": str(_MAX_AGE_S),
}
_EXPOSED: Final = f"{REQUEST_ID_HEADER}, Retry-After"


def cors_middleware(allowed_origins: str | None) -> list[Any]:
    """The middleware for `--allowed-origins`, or none: then browsers refuse foreign pages."""
    if allowed_origins is None:
        return []
    allowed = frozenset(allowed_origins.split(","))

    @web.middleware
    async def cors(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answers a browser's question beforehand, and lets it show the answer to the page."""
        origin = request.headers.get("Origin")
        if origin is None or not (origin in allowed or "*" in allowed):
            return await handler(request)
        granted = {
            "Access-Control-Allow-Origin": "*" if "*" in allowed else origin,
            "Access-Control-Expose-Headers": _EXPOSED,
            "Vary": "Origin",
        }
        if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            wanted = request.headers.get("Access-Control-Request-Headers", "")
            headers = {"Access-Control-Allow-Headers": wanted} if wanted else {}
            return web.Response(status=204, headers=granted | _PREFLIGHT | headers)
        request[GRANTED] = granted
        return await handler(request)

    return [cors]


async def add_cors_headers(request: web.Request, response: web.StreamResponse) -> None:
    """On every answer, streams and errors included."""
    response.headers.update(request.get(GRANTED, {}))
