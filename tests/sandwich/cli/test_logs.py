"""Lines of the log, as text and as JSON."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable

import pytest

from sandwich.cli.logs import set_up_logging

SetUp = Callable[..., io.StringIO]
LOGGER = logging.getLogger("sandwich.server")


@pytest.fixture
def set_up(monkeypatch: pytest.MonkeyPatch) -> SetUp:
    """The log of a process that has not set it up yet, and where it goes."""
    root = logging.getLogger()
    text = io.StringIO()

    def set_up(**options: bool) -> io.StringIO:
        monkeypatch.setattr(root, "handlers", [])
        set_up_logging(0, is_server=True, **options)
        [handler] = root.handlers
        assert isinstance(handler, logging.StreamHandler)
        handler.setStream(text)
        return text

    return set_up


def test_text_is_the_message_and_what_is_wrong_says_so(set_up: SetUp) -> None:
    text = set_up()
    LOGGER.info("ready", extra={"fields": {"port": 1}})
    LOGGER.error("bad")
    assert text.getvalue() == "ready\nerror: bad\n"


def test_json_lines_have_the_fields_and_the_exception(set_up: SetUp) -> None:
    text = set_up(is_json=True)
    LOGGER.info("said %s", 'a "b"\nc', extra={"fields": {"request_id": "r", "status": 200}})
    try:
        raise ValueError("no")
    except ValueError:
        LOGGER.exception("failed")
    first, second = map(json.loads, text.getvalue().splitlines())
    assert first["message"] == 'said a "b"\nc'
    assert (first["level"], first["logger"]) == ("info", "sandwich.server")
    assert (first["request_id"], first["status"]) == ("r", 200)
    assert first["time"].endswith("+00:00")
    assert "ValueError: no" in second["exception"]


@pytest.mark.parametrize("shows_requests", [False, True])
def test_requests_are_shown_on_request(set_up: SetUp, shows_requests: bool) -> None:
    text = set_up(shows_requests=shows_requests)
    logging.getLogger("sandwich.access").info("POST")
    assert text.getvalue() == ("POST\n" if shows_requests else "")
