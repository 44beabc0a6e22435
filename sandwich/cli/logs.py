"""Where log lines go: stderr, as plain text, as much as `--debug` asks for.

INFO is the summary at the start (machine, plan, memory) and life events; DEBUG is a line per step.
"""

from __future__ import annotations

import logging


class _Formatter(logging.Formatter):
    """The message alone; what is wrong says so in front, like the errors of the command line."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno < logging.WARNING:
            return text
        return f"{record.levelname.lower()}: {text}"


def set_up_logging(debug: int, *, is_server: bool = False) -> None:
    """Show warnings; from `debug` 1 on, or for a server, INFO; from 2 on DEBUG."""
    level = logging.DEBUG if debug >= 2 else logging.INFO if debug or is_server else logging.WARNING
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter())
    logging.basicConfig(handlers=[handler])  # does nothing where somebody has set it up already
    for layer in ("platforms", "codegen", "schedules", "sandwich"):
        logging.getLogger(layer).setLevel(level)
    # One line for every HTTP request is too much for a default.
    logging.getLogger("sandwich.access").setLevel(logging.INFO if debug else logging.WARNING)
