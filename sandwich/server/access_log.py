"""One line of the log for each HTTP request, with nothing of what it or its answer says."""

from __future__ import annotations

import logging
from typing import Any, Final

from aiohttp import web
from aiohttp.abc import AbstractAccessLogger

from sandwich.server.errors import REQUEST_ID

# What else is known of a request, by the names of the log's fields.
NOTES: Final = web.RequestKey("notes", dict[str, Any])


class AccessLogger(AbstractAccessLogger):
    """As aiohttp calls it, when an answer is out; `time` is in seconds."""

    @property
    def enabled(self) -> bool:
        return self.logger.isEnabledFor(logging.INFO)

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        fields = {
            "request_id": request.get(REQUEST_ID),
            "remote": request.remote,
            "method": request.method,
            "path": request.path,
            "status": response.status,
            "duration_ms": round(time * 1e3, 3),
            "response_bytes": response.body_length,
            **{k: v for k, v in request.get(NOTES, {}).items() if k != "phases"},
        }
        self.logger.info(
            "%s %s %d in %.0f ms (%s)",
            request.method,
            request.path,
            response.status,
            time * 1e3,
            fields["request_id"],
            extra={"fields": fields},
        )
