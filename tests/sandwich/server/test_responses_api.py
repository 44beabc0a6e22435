"""The Responses API through OpenAI's client, whole and streamed."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from tests.sandwich.server.conftest import MODEL, Rig, StartRig, digits

END = "~"
TEMPLATE = (
    "{% if tools %}<tool_call>{% endif %}{% for m in messages %}[{{ m.role }}]"
    "{% if m.reasoning %}({{ m.reasoning }}){% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}({{ c.function.name }}{{ c.function.arguments | tojson }})"
    "{% endfor %}{% endfor %}{# </think> #}"
)
TOOLS: Any = [{"type": "function", "name": "add", "parameters": {"enum": [{"a": 1}, {"a": 2}]}}]
ADD = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
LIFE = ["response.created", "response.in_progress"]


async def ask(rig: Rig, given: Any = "hi", **fields: Any) -> Any:
    return await rig.client.responses.create(model=MODEL, input=given, **fields)


async def saying(start: StartRig, reply: str) -> Rig:
    num_prompt = len("<tool_call>[user]hi")
    return await start(chat_template=TEMPLATE, text="." * num_prompt + reply + END * 300)


async def streamed(rig: Rig, **fields: Any) -> tuple[list[str], Any]:
    """Types of the events, and the response that the client's own helper builds of them."""
    async with rig.client.responses.stream(model=MODEL, input="hi", **fields) as stream:
        events = [event async for event in stream]
        assert [event.sequence_number for event in events] == list(range(len(events)))
        types: list[str] = list(dict.fromkeys(event.type for event in events))
        return types, await stream.get_final_response()


async def test_a_text_is_answered(rig: Rig) -> None:
    num_prompt = len("[system]be[user]hi[assistant]")
    answer = await ask(rig, instructions="be", max_output_tokens=6, metadata={"a": "b"})
    assert answer.output_text == digits(num_prompt, 6)
    assert (answer.object, answer.status, answer.model) == ("response", "incomplete", MODEL)
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert (answer.instructions, answer.metadata) == ("be", {"a": "b"})
    [message] = answer.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "incomplete")
    usage = answer.usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (
        num_prompt,
        6,
        num_prompt + 6,
    )
    assert usage.output_tokens_details.reasoning_tokens == 0


async def test_a_stream_builds_the_same_response(rig: Rig) -> None:
    whole = await ask(rig, extra_body={"stop": "5"})
    types, built = await streamed(rig, extra_body={"stop": "5"})
    assert built.output_text == whole.output_text != ""
    assert (built.status, built.output[0].status) == ("completed", "completed")
    assert types == [
        *LIFE,
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    await rig.check_nothing_is_left()


async def test_a_stream_that_is_cut_ends_as_incomplete(rig: Rig) -> None:
    stream = await ask(rig, stream=True, max_output_tokens=3)
    events = [event async for event in stream]
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.usage.output_tokens == 3


async def test_reasoning_text_and_calls_are_items(start: StartRig) -> None:
    rig = await saying(start, f"<think>Hm.</think>Wait. {ADD}")
    asked = {"tools": TOOLS, "extra_body": {"stop": END}}
    whole = await ask(rig, **asked)
    types, built = await streamed(rig, **asked)
    for answer in (whole, built):
        reasoning, message, call = answer.output
        assert (reasoning.type, reasoning.content[0].text) == ("reasoning", "Hm.")
        assert message.content[0].text == "Wait. "
        assert (call.type, call.name, call.status) == ("function_call", "add", "completed")
        assert json.loads(call.arguments) == {"a": 1}
        assert answer.usage.output_tokens_details.reasoning_tokens == len("<think>Hm.</think>")
    assert "response.reasoning_text.done" in types
    assert "response.function_call_arguments.done" in types


async def test_a_history_is_shown_to_the_model(start: StartRig) -> None:
    rig = await start(chat_template=TEMPLATE)
    history = [
        {"role": "user", "content": [{"type": "input_text", "text": "1 + 1?"}]},
        {
            "type": "reasoning",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "Hm."}],
        },
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "So"}],
        },
        {"type": "function_call", "call_id": "c", "name": "add", "arguments": '{"a": 1}'},
        {"type": "function_call_output", "call_id": "c", "output": "2"},
        {"role": "assistant", "content": "Two."},
        {"role": "assistant", "content": "Or so."},
    ]
    rendered = '[user]1 + 1?[assistant](Hm.)So(add{"a": 1})[tool]2[assistant]Two.[assistant]Or so.'
    answer = await ask(rig, history, max_output_tokens=1)
    assert answer.usage.input_tokens == len(rendered)


async def test_what_was_answered_can_be_sent_back(start: StartRig) -> None:
    rig = await saying(start, f"<think>Hm.</think>Wait. {ADD}")
    answer = await ask(rig, tools=TOOLS, extra_body={"stop": END})
    sent = [item.model_dump(exclude_none=True) for item in answer.output]
    again = await ask(rig, [{"role": "user", "content": "hi"}, *sent], max_output_tokens=1)
    rendered = '[user]hi[assistant](Hm.)Wait. (add{"a": 1})'
    assert again.usage.input_tokens == len(rendered)


async def test_a_schema_is_followed(start: StartRig) -> None:
    rig = await start(text=None)
    schema = {"enum": [{"a": 1}, {"a": 2}]}
    form = {"type": "json_schema", "name": "s", "schema": schema, "strict": True}
    answer = await ask(rig, text={"format": form})
    assert json.loads(answer.output_text) in schema["enum"]
    assert answer.status == "completed"


async def test_a_function_can_be_required(start: StartRig) -> None:
    rig = await start(chat_template=TEMPLATE, text=None)
    choice = {"type": "function", "name": "add"}
    answer = await ask(rig, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False)
    [call] = answer.output
    assert (call.type, call.name) == ("function_call", "add")


async def test_logprobs_come_whole_and_streamed(rig: Rig) -> None:
    asked: dict[str, Any] = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    whole = await ask(rig, **asked, max_output_tokens=3)
    found = whole.output[0].content[0].logprobs
    assert "".join(each.token for each in found) == whole.output_text
    assert [len(each.top_logprobs) for each in found] == [2] * 3
    stream = await ask(rig, **asked, max_output_tokens=3, stream=True)
    events = [event async for event in stream]
    told = [e for event in events if event.type.endswith("text.delta") for e in event.logprobs]
    assert [each.logprob for each in told] == [each.logprob for each in found]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"include": ["file_search_call.results"]}, "include[0]"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].arguments"),
        ({"input": [{"type": "function_call_output", "output": ""}]}, "input[0].call_id"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, None),
        ({"input": []}, "messages"),
        ({"max_output_tokens": 0}, "max_tokens"),
        ({"text": {"format": {"type": "xml"}}}, "response_format.type"),
    ],
)
async def test_what_cannot_be_done_is_refused(
    rig: Rig, fields: dict[str, Any], param: str | None
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await rig.client.responses.create(**({"model": MODEL, "input": "hi"} | fields))
    assert param is None or caught.value.param == param
    await rig.check_nothing_is_left()


async def test_a_failure_in_a_stream_is_raised_by_the_client(start: StartRig) -> None:
    rig = await start()
    rig.executor.failing_runs = frozenset({1})
    stream = await ask(rig, stream=True)
    with pytest.raises(openai.APIError, match="injected failure"):
        [event async for event in stream]
