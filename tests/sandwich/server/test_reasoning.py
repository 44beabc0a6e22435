"""Replies of models that reason first, with both clients, whole and streamed."""

from __future__ import annotations

from typing import Any

import anthropic
import pytest

from tests.sandwich.server.conftest import MODEL, PATIENCE_S, Rig, StartRig

CLOSED = "{{ messages[0].content }}{# </think> #}"
OPEN = "{{ messages[0].content }}{% if enable_thinking is not false %}<think>\n{% endif %}"
OPEN += "{# </think> #}"
THOUGHT, ANSWER, END = "Hm, one\nand one.", "Two.", "~"
USER: Any = [{"role": "user", "content": "1+1"}]


async def saying(start: StartRig, template: str) -> Rig:
    """A model that thinks; with the template OPEN, the prompt begins that."""
    prompt, begin = ("1+1<think>\n", "") if template == OPEN else ("1+1", "<think>\n")
    reply = f"{begin}{THOUGHT}\n</think>\n\n{ANSWER}"
    return await start(chat_template=template, text="." * len(prompt) + reply + END * 300)


async def ask(rig: Rig, **fields: Any) -> Any:
    asked: dict[str, Any] = {"max_tokens": 60, "stop": [END]} | fields
    return await rig.client.chat.completions.create(model=MODEL, messages=USER, **asked)


@pytest.mark.parametrize("template", [CLOSED, OPEN])
async def test_reasoning_is_told_apart_whole_and_streamed(start: StartRig, template: str) -> None:
    rig = await saying(start, template)
    answer = await ask(rig)
    [choice] = answer.choices
    assert (choice.message.reasoning_content, choice.message.content) == (THOUGHT, ANSWER)
    num_thought = answer.usage.completion_tokens_details.reasoning_tokens
    assert num_thought == answer.usage.completion_tokens - len(f"\n\n{ANSWER}{END}")
    reasoning, content = "", ""
    async for chunk in await ask(rig, stream=True):
        delta = chunk.choices[0].delta
        reasoning += getattr(delta, "reasoning_content", "")
        content += delta.content or ""
    assert (reasoning, content) == (THOUGHT, ANSWER)


async def test_a_reply_that_ends_while_it_reasons_has_no_content(start: StartRig) -> None:
    rig = await saying(start, CLOSED)
    choice = (await ask(rig, max_tokens=12)).choices[0]
    assert (choice.message.reasoning_content, choice.message.content) == ("Hm,", None)
    assert choice.finish_reason == "length"


async def test_a_reply_of_a_given_form_does_not_reason(start: StartRig) -> None:
    rig = await saying(start, OPEN)
    form = {"type": "regex", "pattern": "[a-z]{3}"}
    message = (await ask(rig, response_format=form)).choices[0].message
    assert len(message.content) == 3
    assert not hasattr(message, "reasoning_content")


async def test_anthropics_blocks_of_thinking(start: StartRig) -> None:
    rig = await saying(start, OPEN)
    asked: dict[str, Any] = {"model": MODEL, "max_tokens": 60, "messages": USER}
    asked |= {"stop_sequences": [END], "thinking": {"type": "enabled", "budget_tokens": 1024}}
    made: Any = anthropic.AsyncAnthropic(
        base_url=rig.url, api_key="none", max_retries=0, timeout=PATIENCE_S
    )
    async with made as client:
        whole = await client.messages.create(**asked)
        async with client.messages.stream(**asked) as stream:
            built = await stream.get_final_message()
        for reply in (whole, built):
            thinking, text = reply.content
            assert (thinking.type, thinking.thinking) == ("thinking", THOUGHT)
            assert (text.type, text.text) == ("text", ANSWER)
        counted: list[int] = []
        for kind in ("adaptive", "disabled"):
            count = await client.messages.count_tokens(
                model=MODEL,
                messages=USER,
                thinking={"type": kind},
            )
            counted.append(count.input_tokens)
    assert counted == [len("1+1<think>\n"), len("1+1")]
