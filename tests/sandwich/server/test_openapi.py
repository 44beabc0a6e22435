"""The OpenAPI document, and a server that keeps to it whatever it is sent."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from sandwich.models.embedding import EmbeddingUse
from sandwich.requests.pooling import Pooling
from sandwich.server.openapi import document
from sandwich.server.routes import ROUTES
from tests.sandwich.server.conftest import StartRig

FEW, MANY = 4, 200
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
MODES = {
    GenerationMode.POSITIVE: CHECKS,
    GenerationMode.NEGATIVE: [*CHECKS, checks.negative_data_rejection],
}
DOCUMENT = document(ROUTES)


async def test_the_server_shows_the_document(start: StartRig) -> None:
    rig = await start(is_ready=False)
    assert await rig.get("/openapi.json") == (200, json.loads(json.dumps(DOCUMENT)))


def test_names_are_told_with_what_they_take() -> None:
    properties = DOCUMENT["components"]["schemas"]["ChatBody"]["properties"]
    assert properties["n_predict"] == properties["max_tokens"]
    assert properties["use_beam_search"] == {"enum": [None, False]}
    assert properties["user"] == {"description": "taken and ignored"}
    assert properties["temperature"]["anyOf"] == [{"type": "number"}, {"type": "null"}]


@pytest.mark.parametrize(
    ("path", "method", "mode"),
    [
        (route.path, route.method, mode)
        for route in ROUTES
        for mode in MODES
        if mode is GenerationMode.POSITIVE or route.body is not None
    ],
)
@pytest.mark.parametrize("num_examples", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
async def test_every_answer_is_as_the_document_says(
    start: StartRig, num_examples: int, path: str, method: str, mode: GenerationMode
) -> None:
    operation: Any = schemathesis.openapi.from_dict(DOCUMENT)[path][method]
    rig = await start(embedding_use=EmbeddingUse(Pooling.MEAN))

    @settings(
        max_examples=num_examples,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def run(case: Any) -> None:
        case.call_and_validate(base_url=rig.url, checks=MODES[mode])

    await asyncio.to_thread(run)
    await rig.check_nothing_is_left()
