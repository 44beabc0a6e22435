"""Tools over HTTP with the openai client: auto, none, required, named; whole and streamed."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from tests.sandwich.server.conftest import MODEL, Rig, StartRig

HERMES = "{% if tools %}<tool_call>{% endif %}{{ messages[0].content }}"
LLAMA = (
    "{% if tools %}{{ tools[0].function.name }}<|python_tag|>{% endif %}{{ messages[0].content }}"
)
TOOLS = [
    {"type": "function", "function": {"name": "add", "parameters": {"enum": [{"a": 1}, {"a": 2}]}}},
    {"type": "function", "function": {"name": "now", "parameters": {"enum": [{}]}}},
]
END = "~"  # a stop string, as this model has no other end


async def ask(rig: Rig, **fields: Any) -> Any:
    asked: dict[str, Any] = {"model": MODEL, "tools": TOOLS, "max_tokens": 200, "stop": [END]}
    messages = [{"role": "user", "content": "hi"}]
    return await rig.client.chat.completions.create(messages=messages, **asked | fields)  # type: ignore[arg-type]


async def saying(start: StartRig, template: str, reply: str) -> Rig:
    """A model with this template that answers "hi" with `reply`."""
    rig = await start(chat_template=template)
    num_prompt = (await ask(rig, max_tokens=1)).usage.prompt_tokens
    return await start(chat_template=template, text="." * num_prompt + reply + END * 300)


async def streamed(rig: Rig, **fields: Any) -> tuple[str, list[tuple[str, str]], str]:
    """Content, calls and finish_reason that the chunks add up to."""
    content, reason = "", ""
    calls: list[tuple[str, str]] = []
    async for chunk in await ask(rig, stream=True, **fields):
        [choice] = chunk.choices
        content += choice.delta.content or ""
        reason = choice.finish_reason or reason
        for part in choice.delta.tool_calls or ():
            if part.id is not None:
                assert (part.index, part.type) == (len(calls), "function")
                calls.append((part.function.name, part.function.arguments))
            else:
                calls[part.index] = (
                    calls[part.index][0],
                    calls[part.index][1] + part.function.arguments,
                )
    return content, calls, reason


ADD = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
NOW = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
REPLIES = [
    (
        HERMES,
        f"Wait. {ADD}\n{NOW}",
        "Wait. ",
        [("add", '{"a": 1}'), ("now", "{}")],
    ),
    (LLAMA, '{"name": "add", "parameters": {"a": 2}}', "", [("add", '{"a": 2}')]),
    (HERMES, "No call.", "No call.", []),
]


@pytest.mark.parametrize(("template", "reply", "content", "calls"), REPLIES)
async def test_calls_are_found_whole_and_streamed(
    start: StartRig, template: str, reply: str, content: str, calls: list[tuple[str, str]]
) -> None:
    rig = await saying(start, template, reply)
    choice = (await ask(rig)).choices[0]
    reason = "tool_calls" if calls else "stop"
    found = [(c.function.name, c.function.arguments) for c in choice.message.tool_calls or ()]
    assert (choice.message.content or "", found, choice.finish_reason) == (content, calls, reason)
    assert (choice.message.content is None) == (content == "")
    assert len({call.id for call in choice.message.tool_calls or ()}) == len(calls)
    assert await streamed(rig) == (content, calls, reason)


async def test_without_parallel_calls_the_first_counts(start: StartRig) -> None:
    template, reply, content, calls = REPLIES[0]
    rig = await saying(start, template, reply)
    assert await streamed(rig, parallel_tool_calls=False) == (content, calls[:1], "tool_calls")


async def test_none_shows_no_tools_and_reads_no_calls(start: StartRig) -> None:
    rig = await saying(start, HERMES, "")
    answer = await ask(rig, tool_choice="none")
    assert answer.usage.prompt_tokens == len("hi")
    assert answer.choices[0].message.tool_calls is None


@pytest.mark.parametrize("template", [HERMES, LLAMA])
@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_call_that_is_required_is_made(
    start: StartRig, template: str, is_streamed: bool
) -> None:
    rig = await start(chat_template=template, text=None)
    named = {"type": "function", "function": {"name": "add"}}
    for choice in (named, "required"):
        asked = {"tool_choice": choice, "parallel_tool_calls": False, "stop": None}
        if is_streamed:
            content, calls, reason = await streamed(rig, **asked)
        else:
            found = (await ask(rig, **asked)).choices[0]
            content, reason = found.message.content or "", found.finish_reason
            calls = [(c.function.name, c.function.arguments) for c in found.message.tool_calls]
        [(name, arguments)] = calls
        assert (content, reason) == ("", "tool_calls")
        assert name in (("add",) if choice == named else ("add", "now"))
        assert name == "now" or json.loads(arguments)["a"] in (1, 2)


async def test_a_call_that_is_cut_says_length(start: StartRig) -> None:
    template, reply, *_ = REPLIES[1]
    rig = await saying(start, template, reply)
    choice = (await ask(rig, max_tokens=36)).choices[0]
    assert choice.finish_reason == "length"
    assert choice.message.tool_calls[0].function.arguments == '{"a": '


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "perhaps"}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "rm"}}}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": 3}}]},
            "tools[0].function.parameters",
        ),
        (
            {"tool_choice": "required", "response_format": {"type": "json_object"}},
            "response_format",
        ),
    ],
)
async def test_fields_that_contradict_each_other_are_refused(
    start: StartRig, fields: dict[str, Any], param: str
) -> None:
    rig = await start(chat_template=HERMES)
    with pytest.raises(openai.BadRequestError) as caught:
        await ask(rig, **fields)
    assert caught.value.param == param


async def test_a_template_without_tools_is_told(rig: Rig) -> None:
    with pytest.raises(openai.BadRequestError, match="no place for tools") as caught:
        await ask(rig)
    assert caught.value.param == "tools"
