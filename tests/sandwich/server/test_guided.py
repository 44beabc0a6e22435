"""Replies of a given form, over HTTP and in Python."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest

from sandwich.errors import InvalidRequestError
from sandwich.llm import LLM
from sandwich.requests.grammar import Grammar
from sandwich.requests.sampling_params import SamplingParams
from tests.sandwich.server.conftest import MODEL, Rig, StartRig

SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}, "sure": {"type": "boolean"}},
    "required": ["colour", "sure"],
    "additionalProperties": False,
}
JSON_SCHEMA: Any = {"type": "json_schema", "json_schema": {"name": "c", "schema": SCHEMA}}
MESSAGES: Any = [{"role": "user", "content": "hi"}]


async def ask(rig: Rig, **fields: Any) -> Any:
    """What the openai client makes of a chat with these fields."""
    return await rig.client.chat.completions.create(model=MODEL, messages=MESSAGES, **fields)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("strict", [True, False])
async def test_a_chat_follows_the_schema(start: StartRig, temperature: float, strict: bool) -> None:
    rig = await start(text=None)
    schema = {**JSON_SCHEMA["json_schema"], "strict": strict}
    answer = await ask(
        rig,
        n=3,
        seed=1,
        temperature=temperature,
        max_tokens=200,
        response_format={"type": "json_schema", "json_schema": schema},
    )
    assert len(answer.choices) == 3
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        value = json.loads(choice.message.content or "")
        assert value["colour"] in ("red", "blue")
        assert isinstance(value["sure"], bool)
    await rig.check_nothing_is_left()


async def test_a_stream_follows_the_schema_and_says_when_it_is_cut(start: StartRig) -> None:
    rig = await start(text=None)
    for max_tokens, reason in ((200, "stop"), (3, "length")):
        stream = await ask(
            rig,
            max_tokens=max_tokens,
            response_format=JSON_SCHEMA,
            stream=True,
        )
        chunks = [chunk async for chunk in stream]
        assert chunks[-1].choices[0].finish_reason == reason
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        if reason == "stop":
            assert set(json.loads(text)) == {"colour", "sure"}
        else:
            assert text.startswith("{")


@pytest.mark.parametrize(
    ("fields", "texts"),
    [
        ({"response_format": {"type": "regex", "pattern": "[ab]-c"}}, {"a-c", "b-c"}),
        ({"structured_outputs": {"regex": "[ab]-c"}}, {"a-c", "b-c"}),
        ({"structured_outputs": {"choice": ["left", "right"]}}, {"left", "right"}),
        ({"structured_outputs": {"json": {"enum": [1, 2]}}}, {"1", "2"}),
        ({"structured_outputs": {"json": '{"enum": [1, 2]}'}}, {"1", "2"}),
        ({"structured_outputs": {"grammar": 'root ::= "x" | "y"'}}, {"x", "y"}),
        ({"response_format": {"type": "grammar", "grammar": 'start: "x" | "y"'}}, {"x", "y"}),
        ({"response_format": {"type": "json_object", "schema": {"enum": [1, 2]}}}, {"1", "2"}),
    ],
)
async def test_every_field_that_asks_for_a_form_is_done(
    rig: Rig, fields: dict[str, Any], texts: set[str]
) -> None:
    body = {"prompt": "hi", "max_tokens": 99} | fields
    status, answer = await rig.post("/v1/completions", body)
    assert status == 200, answer
    assert answer["choices"][0]["text"] in texts
    assert answer["choices"][0]["finish_reason"] == "stop"


async def test_text_is_any_text(rig: Rig) -> None:
    for fields in (
        {"response_format": {"type": "text"}},
        {"structured_outputs": {"json_object": False}},
    ):
        _, answer = await rig.post("/v1/completions", {"prompt": "hello", "max_tokens": 3} | fields)
        assert answer["choices"][0]["text"] == "678"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": {"type": "regex"}}, "response_format.pattern"),
        ({"response_format": {"type": "regex", "pattern": "("}}, "response_format"),
        ({"response_format": "json"}, "response_format"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": [3]}}, "structured_outputs.choice"),
        (
            {"structured_outputs": {"regex": "a"}, "response_format": {"type": "text"}},
            "structured_outputs",
        ),
    ],
)
async def test_a_form_that_cannot_be_understood_is_refused(
    rig: Rig, fields: dict[str, Any], param: str
) -> None:
    status, answer = await rig.post("/v1/completions", {"prompt": "hi"} | fields)
    assert (status, answer["error"]["param"]) == (400, param)
    assert rig.bridge.num_places_taken == 0


async def test_a_strict_schema_keeps_everything_or_is_refused(rig: Rig) -> None:
    schema = {"type": "array", "uniqueItems": True}
    for strict in (False, True):
        form = {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": schema, "strict": strict},
        }
        if strict:
            with pytest.raises(openai.BadRequestError, match="uniqueItems"):
                await ask(rig, max_tokens=1, response_format=form)
        else:
            await ask(rig, max_tokens=1, response_format=form)


async def test_requests_with_and_without_a_form_share_a_batch(start: StartRig) -> None:
    rig = await start()
    alone = await rig.post("/v1/completions", {"prompt": "hello", "max_tokens": 8})
    rig.executor.hold()
    guided = asyncio.create_task(
        rig.post("/v1/completions", {"prompt": "x", "structured_outputs": {"choice": ["abcdef"]}})
    )
    free = asyncio.create_task(rig.post("/v1/completions", {"prompt": "hello", "max_tokens": 8}))
    await rig.submitted(3)
    rig.executor.allow()
    assert (await guided)[1]["choices"][0]["text"] == "abcdef"
    assert (await free)[1]["choices"][0]["text"] == alone[1]["choices"][0]["text"]


async def test_logprobs_are_of_what_was_said(start: StartRig) -> None:
    rig = await start(text=None)
    answer = await ask(
        rig,
        logprobs=True,
        top_logprobs=1,
        response_format={"type": "regex", "pattern": "ab"},
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert [entry.token for entry in logprobs.content or ()][:2] == ["a", "b"]


def test_python_callers_ask_with_sampling_params(llm: LLM) -> None:
    params = SamplingParams(max_tokens=50, grammar=Grammar.choice(["hello", "world"]), n=2, seed=3)
    [result] = llm.generate("a", params, use_tqdm=False)
    assert [output.finish_reason for output in result.outputs] == ["stop", "stop"]
    assert {output.text for output in result.outputs} <= {"hello", "world"}
    with pytest.raises(InvalidRequestError, match="unclosed group"):
        llm.generate("a", SamplingParams(grammar=Grammar.regex("(")))
    assert not llm._engine.has_work()
    with pytest.raises(InvalidRequestError, match="grammar is 'x' but must be a Grammar"):
        SamplingParams(grammar="x")  # type: ignore[arg-type]
