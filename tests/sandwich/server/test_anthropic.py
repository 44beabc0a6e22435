"""Anthropic's Messages API, with Anthropic's own client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import anthropic
import pytest

from sandwich.config import ServerConfig
from tests.sandwich.server.conftest import MODEL, PATIENCE_S, Rig, StartRig, digits

TEMPLATE = (
    "{% if tools %}<tool_call>{% endif %}{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% for c in m.tool_calls or [] %}({{ c.function.name }}{{ c.function.arguments | tojson }})"
    "{% endfor %}{% endfor %}"
)
TOOLS: Any = [{"name": "add", "description": "adds", "input_schema": {"enum": [{"a": 1}]}}]
USER: Any = [{"role": "user", "content": "hi"}]
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
END = "~"

Connect = Callable[..., Any]  # its unions of twenty kinds of blocks would only be in the way


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    clients: list[anthropic.AsyncAnthropic] = []

    def connect(rig: Rig, key: str = "none") -> anthropic.AsyncAnthropic:
        clients.append(
            anthropic.AsyncAnthropic(
                base_url=rig.url, api_key=key, max_retries=0, timeout=PATIENCE_S
            )
        )
        return clients[-1]

    yield connect
    for client in clients:
        await client.close()


def text_block(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


async def test_a_message_is_answered(rig: Rig, connect: Connect) -> None:
    num_prompt = len("[user]hi[assistant]")
    reply = await connect(rig).messages.create(model=MODEL, max_tokens=4, messages=USER)
    assert (reply.type, reply.role, reply.model) == ("message", "assistant", MODEL)
    [block] = reply.content
    assert block.type == "text"
    assert block.text == digits(num_prompt, 4)
    assert (reply.stop_reason, reply.stop_sequence) == ("max_tokens", None)
    usage = reply.usage
    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == num_prompt
    assert usage.output_tokens == 4


async def test_a_stream_builds_the_same_message(rig: Rig, connect: Connect) -> None:
    client = connect(rig)
    whole = await client.messages.create(model=MODEL, max_tokens=9, messages=USER)
    async with client.messages.stream(model=MODEL, max_tokens=9, messages=USER) as stream:
        types = [event.type async for event in stream]
        built = await stream.get_final_message()
    assert built.content[0].text == whole.content[0].text
    assert (built.stop_reason, built.usage.output_tokens) == ("max_tokens", 9)
    assert types[0] == "message_start"
    assert types[-1] == "message_stop"
    await rig.check_nothing_is_left()


async def test_a_stop_sequence_is_named(rig: Rig, connect: Connect) -> None:
    reply = await connect(rig).messages.create(
        model=MODEL, max_tokens=50, messages=USER, stop_sequences=["34", "12"]
    )
    assert (reply.stop_reason, reply.stop_sequence) == ("stop_sequence", "12")


async def saying(start: StartRig, reply: str) -> Rig:
    num_prompt = len("<tool_call>[user]hi")
    return await start(chat_template=TEMPLATE, text="." * num_prompt + reply + END * 300)


async def test_a_tool_is_called_whole_and_streamed(start: StartRig, connect: Connect) -> None:
    client = connect(await saying(start, f"Wait. {CALL}"))
    asked: dict[str, Any] = {"model": MODEL, "max_tokens": 90, "messages": USER, "tools": TOOLS}
    asked["stop_sequences"] = [END]
    whole = await client.messages.create(**asked)
    async with client.messages.stream(**asked) as stream:
        built = await stream.get_final_message()
    for reply in (whole, built):
        text, call = reply.content
        assert (text.type, text.text) == ("text", "Wait. ")
        assert (call.type, call.name, call.input) == ("tool_use", "add", {"a": 1})
        assert reply.stop_reason == "tool_use"


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "add"}])
async def test_a_call_can_be_required(
    start: StartRig, connect: Connect, choice: dict[str, Any]
) -> None:
    client = connect(await start(chat_template=TEMPLATE, text=None))
    choice = choice | {"disable_parallel_tool_use": True}
    reply = await client.messages.create(
        model=MODEL,
        max_tokens=150,
        messages=USER,
        tools=TOOLS,
        tool_choice=choice,
    )
    [call] = reply.content
    assert (call.type, reply.stop_reason) == ("tool_use", "tool_use")


async def test_a_history_is_shown_to_the_model(start: StartRig, connect: Connect) -> None:
    rig = await start(chat_template=TEMPLATE)
    history: Any = [
        {"role": "user", "content": [{"type": "text", "text": "1 + 1?"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "x"},
                {"type": "text", "text": "Let me"},
                {"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [text_block("2")]},
                {"type": "text", "text": "So?"},
            ],
        },
    ]
    system: Any = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    client = connect(rig)
    await client.messages.create(model=MODEL, max_tokens=1, messages=history, system=system)
    request = rig.executor.batches[-1].requests[0]
    prompt = bytes(request.token_ids[: request.num_prompt_tokens].tolist()).decode()
    assert prompt == '[system]Be brief.[user]1 + 1?[assistant]Let me(add{"a": 1})[tool]2[user]So?'
    count = await client.messages.count_tokens(model=MODEL, messages=history, system=system)
    assert count.input_tokens == len(prompt)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "must not be empty"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "must be one of user, assistant"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "only text and tools"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "input_schema"),
        ({"tool_choice": {"type": "maybe"}}, "tool_choice.type"),
        ({"stop_sequences": ["x"] * 17}, "stop strings"),
    ],
)
async def test_what_cannot_be_done_is_an_error_of_anthropics_kind(
    rig: Rig, connect: Connect, fields: dict[str, Any], reason: str
) -> None:
    asked: dict[str, Any] = {"model": MODEL, "max_tokens": 4, "messages": USER} | fields
    with pytest.raises(anthropic.BadRequestError, match=reason) as caught:
        await connect(rig).messages.create(**asked)
    body: Any = caught.value.body
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    assert rig.bridge.num_places_taken == 0


async def test_a_wrong_key_and_a_wrong_model_are_told(start: StartRig, connect: Connect) -> None:
    rig = await start(config=ServerConfig(port=0, api_key="k"))
    with pytest.raises(anthropic.AuthenticationError):
        await connect(rig, "wrong").messages.create(model=MODEL, max_tokens=1, messages=USER)
    client = connect(rig, "k")
    with pytest.raises(anthropic.NotFoundError) as caught:
        await client.messages.create(model="other", max_tokens=1, messages=USER)
    body: Any = caught.value.body
    assert body["error"]["type"] == "not_found_error"
    assert (await client.messages.create(model=MODEL, max_tokens=1, messages=USER)).content
