"""Where log lines go: stderr, as text or as JSON objects, as much as `--debug` asks for.

INFO is the summary at the start (machine, plan, memory) and life events; DEBUG is a line per step.
A record may have `fields` (an `extra` of that name), which JSON lines show one by one.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any


class _TextFormatter(logging.Formatter):
    """The message alone; what is wrong says so in front, like the errors of the command line."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno < logging.WARNING:
            return text
        return f"{record.levelname.lower()}: {text}"


class _JsonFormatter(logging.Formatter):
    """One object on one line: time (RFC 3339), level, logger, message, fields, exception."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


def set_up_logging(
    debug: int, *, is_server: bool = False, is_json: bool = False, shows_requests: bool = False
) -> None:
    """Show warnings; from `debug` 1 on, or for a server, INFO; from 2 on DEBUG.

    `shows_requests`: a line for every HTTP request, which is too much for a default.
    """
    level = logging.DEBUG if debug >= 2 else logging.INFO if debug or is_server else logging.WARNING
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonFormatter() if is_json else _TextFormatter())
    logging.basicConfig(handlers=[handler])  # does nothing where somebody has set it up already
    for layer in ("platforms", "codegen", "schedules", "sandwich"):
        logging.getLogger(layer).setLevel(level)
    access = logging.INFO if debug or shows_requests else logging.WARNING
    logging.getLogger("sandwich.access").setLevel(access)
