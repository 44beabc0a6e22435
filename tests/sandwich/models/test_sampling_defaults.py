"""What a checkpoint's generation_config.json makes of requests that say nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sandwich.checkpoint.fields import Fields
from sandwich.models.sampling_defaults import generation_defaults

FILE = Path("generation_config.json")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"temperature": 0.6, "top_p": 0.9}, {"temperature": 0.6, "top_p": 0.9}),
        ({"do_sample": True, "top_k": 50.0}, {"top_k": 50}),
        ({"max_new_tokens": 64, "stop_strings": ["x"]}, {"max_tokens": 64, "stop": ["x"]}),
        (
            {"do_sample": False, "temperature": 0.6, "top_p": 0.0, "top_k": 0},
            {"temperature": 0.0},
        ),
        (
            {"do_sample": False, "repetition_penalty": 1.1},
            {"temperature": 0.0, "repetition_penalty": 1.1},
        ),
        ({"num_beams": 1, "no_repeat_ngram_size": 0, "typical_p": 1.0, "transformers": "5"}, {}),
    ],
)
def test_what_can_be_used_is_used_in_silence(
    given: dict[str, Any], expected: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert generation_defaults(Fields(given, FILE)) == expected
    assert not caplog.records


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"top_p": 0.0}, "top_p is 0"),
        ({"top_k": 50.5}, "top_k is 50.5"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"num_beams": 4}, "num_beams is 4, which has no effect"),
        ({"min_new_tokens": 9}, "min_new_tokens is 9, which has no effect"),
    ],
)
def test_what_cannot_be_used_is_left_out_with_a_warning(
    given: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert generation_defaults(Fields(given | {"min_p": 0.5}, FILE)) == {"min_p": 0.5}
    [record] = caplog.records
    assert (record.levelname, reason in record.getMessage()) == ("WARNING", True)
    assert record.getMessage().startswith("generation_config.json: ")
