"""Reasoning in front of replies, whole and in pieces of every length."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandwich.text.output import OutputDelta
from sandwich.text.reasoning import ReasoningParser, opens_reasoning, writes_reasoning
from sandwich.text.reply import Reply
from sandwich.text.tool_calls import HERMES, ToolCallParser

# (the prompt has the tag, reply, reasoning, text)
REPLIES = [
    (False, "<think>\nOne,\n\ntwo.\n</think>\n\nThree. ", "One,\n\ntwo.", "Three. "),
    (False, "\n <think></think>x", "", "x"),
    (False, "<think>\n\n</think>\n\n", "", ""),
    (False, "<think>cut < off", "cut < off", ""),
    (False, "<think>cut</thi", "cut</thi", ""),
    (False, "No <think>tags</think> here", "", "No <think>tags</think> here"),
    (False, "<thing>", "", "<thing>"),
    (False, "<thi", "", "<thi"),
    (False, "  text", "", "  text"),
    (False, "", "", ""),
    (True, "a </think> b </think> c", "a", "b </think> c"),
    (True, "\n\n", "", ""),
    (True, "all of it ", "all of it", ""),
]


@pytest.mark.parametrize(("is_inside", "text", "reasoning", "rest"), REPLIES)
@given(cuts=st.lists(st.integers(0, 40), max_size=8))
def test_a_reply_is_split_however_it_is_cut(
    is_inside: bool, text: str, reasoning: str, rest: str, cuts: list[int]
) -> None:
    reply = Reply(ReasoningParser(is_inside))
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    for start, end in pairwise(places):
        reply.feed(OutputDelta(text[start:end]))
    reply.feed(OutputDelta(finish_reason="stop"))
    assert (reply.reasoning, reply.text) == (reasoning, rest)


def test_calls_are_looked_for_behind_the_reasoning_alone() -> None:
    call = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
    reply = Reply(ReasoningParser(is_inside=True), ToolCallParser(HERMES, ["f"]))
    for char in f"{call}?</think>{call}":
        reply.feed(OutputDelta(char, token_ids=(0,)))
    reply.feed(OutputDelta(finish_reason="stop"))
    assert (reply.reasoning, reply.text) == (f"{call}?", "")
    assert [(each.name, each.arguments) for each in reply.calls] == [("f", '{"a": 1}')]
    assert reply.num_reasoning_tokens == len(f"{call}?</think>")


def test_the_template_and_the_prompt_say_whether_there_is_reasoning() -> None:
    assert writes_reasoning("{% if '</think>' in content %}")
    assert not writes_reasoning("{{ messages }}")
    assert opens_reasoning("<|assistant|><think>\n")
    assert not opens_reasoning("<|assistant|><think>\n\n</think>\n\n")
    assert not opens_reasoning("a user may write <think> too<|assistant|>")
