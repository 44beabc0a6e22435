"""What is logged of requests: numbers, and never what they say, unless that is asked for."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from sandwich.config import ServerConfig
from tests.sandwich.server.conftest import MODEL, Rig, StartRig

SECRET = "the secret word"


async def ask(rig: Rig, is_streamed: bool) -> None:
    answer: Any = await rig.client.completions.create(
        model=MODEL, prompt=SECRET, max_tokens=3, stream=is_streamed
    )
    if is_streamed:
        [chunk async for chunk in answer]


async def records(rig: Rig, caplog: pytest.LogCaptureFixture) -> list[Any]:
    """Those of requests; a last one has been answered, so theirs are there."""
    await rig.server.stop()
    return [record for record in caplog.records if record.name == "sandwich.access"]


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_line_has_numbers_and_no_text(
    rig: Rig, caplog: pytest.LogCaptureFixture, is_streamed: bool
) -> None:
    caplog.set_level(logging.DEBUG, logger="sandwich")
    await ask(rig, is_streamed)
    [record] = await records(rig, caplog)
    fields = record.fields
    assert (fields["method"], fields["path"], fields["status"]) == ("POST", "/v1/completions", 200)
    assert (fields["prompt_tokens"], fields["completion_tokens"]) == (1 + len(SECRET), 3)
    assert fields["finish_reasons"] == ["length"]
    assert fields["request_id"] in record.getMessage()
    assert fields["duration_ms"] > 0
    assert SECRET not in caplog.text


async def test_a_refusal_has_a_line_too(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="sandwich")
    await rig.post("/v1/completions", {"prompt": 3})
    [record] = await records(rig, caplog)
    assert record.fields["status"] == 400


async def test_prompts_are_logged_when_asked_for(
    start: StartRig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="sandwich")
    rig = await start(config=ServerConfig(port=0, log_prompts=True))
    await ask(rig, is_streamed=False)
    assert any(SECRET in getattr(r, "fields", {}).get("body", "") for r in caplog.records)
