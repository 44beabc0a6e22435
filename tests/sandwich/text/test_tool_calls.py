"""Calls of tools in replies, whole and in pieces of every length."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandwich.text.guided import GrammarCompiler
from sandwich.text.partial_json import read_object
from sandwich.text.tokenizer import Tokenizer
from sandwich.text.tool_calls import (
    HERMES,
    LLAMA_3,
    MISTRAL,
    CallDelta,
    ToolCallParser,
    ToolFormat,
    tool_format,
)
from tests.sandwich.text.test_guided import compiler_of, say

NAMES = ("weather", "add")
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": ["Ulm", "Rom"]}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    },
    {"type": "function", "function": {"name": "add", "parameters": {"enum": [{}]}}},
]
ULM, ONE = ("weather", '{"city": "Ulm {}]\\"</tool_call"}'), ("add", '{"a": [1, {"b": 2}]}')


def hermes(*calls: tuple[str, str]) -> str:
    texts = [f'<tool_call>\n{{"name": "{n}", "arguments": {a}}}\n</tool_call>' for n, a in calls]
    return "\n".join(texts)


def llama(*calls: tuple[str, str]) -> str:
    return "; ".join(f'{{"name": "{n}", "parameters": {a}}}' for n, a in calls)


def mistral(*calls: tuple[str, str]) -> str:
    return "[" + ", ".join(f'{{"name": "{n}", "arguments": {a}}}' for n, a in calls) + "]"


def tagged(text: str) -> str:
    return f"<tool_call>{text}</tool_call>"


# (format, reply, text outside calls, calls)
REPLIES: list[tuple[ToolFormat, str, str, list[tuple[str, str]]]] = [
    (HERMES, hermes(ULM), "", [ULM]),
    (HERMES, hermes(ULM, ONE), "", [ULM, ONE]),
    (HERMES, "Let me see. " + hermes(ONE), "Let me see. ", [ONE]),
    (HERMES, "No call <tool_cal at all", "No call <tool_cal at all", []),
    (HERMES, "", "", []),
    (
        HERMES,
        '<tool_call>{"arguments": {"a": 1}, "name": "add"}</tool_call>',
        "",
        [("add", '{"a": 1}')],
    ),
    (HERMES, '<tool_call>{"name": "add"}</tool_call>', "", [("add", "{}")]),
    (
        HERMES,
        '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>',
        "",
        [("add", '{"a": 1}')],
    ),
    (
        HERMES,
        '<tool_call>{"name": "rm", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "rm", "arguments": {}}</tool_call>',
        [],
    ),
    (HERMES, "<tool_call>oops</tool_call> fine", "<tool_call>oops</tool_call> fine", []),
    (HERMES, '<tool_call>{"na', '<tool_call>{"na', []),
    (HERMES, '<tool_call>{"name": "add", "arguments": {"a": 1', "", [("add", '{"a": 1')]),
    (LLAMA_3, llama(ULM), "", [ULM]),
    (LLAMA_3, "\n" + llama(ULM, ONE), "", [ULM, ONE]),
    (LLAMA_3, 'The answer is {"name": "add"}', 'The answer is {"name": "add"}', []),
    (LLAMA_3, '{"colour": "red"}', '{"colour": "red"}', []),
    (LLAMA_3, '{"name": "Ann", "age": 3}', '{"name": "Ann", "age": 3}', []),
    (LLAMA_3, "{oops", "{oops", []),
    (MISTRAL, mistral(ONE), "", [ONE]),
    (MISTRAL, mistral(ULM, ONE), "", [ULM, ONE]),
    (MISTRAL, "[1, 2]", "[1, 2]", []),
]


def read(parser: ToolCallParser, pieces: list[str]) -> tuple[str, list[tuple[str, str]]]:
    """The text and the calls that the deltas of some pieces add up to."""
    deltas = [delta for piece in pieces for delta in parser.push(piece)] + parser.flush()
    text = ""
    calls: list[tuple[str, str]] = []
    for delta in deltas:
        if isinstance(delta, str):
            text += delta
        elif delta.name is not None:
            assert delta.index == len(calls)
            assert delta.id
            calls.append((delta.name, delta.arguments))
        else:
            name, arguments = calls[delta.index]
            calls[delta.index] = (name, arguments + delta.arguments)
    return text, calls


@pytest.mark.parametrize(("form", "reply", "text", "calls"), REPLIES)
@pytest.mark.parametrize("length", [1, 2, 7, 1000])
def test_calls_are_found_however_the_text_is_cut(
    form: ToolFormat, reply: str, text: str, calls: list[tuple[str, str]], length: int
) -> None:
    pieces = [reply[at : at + length] for at in range(0, len(reply), length)]
    assert read(ToolCallParser(form, NAMES), pieces) == (text, calls)


def test_a_call_is_told_as_it_is_written() -> None:
    parser = ToolCallParser(HERMES, NAMES)
    [text] = parser.push("I see <tool")
    assert text == "I see "
    [head] = parser.push('_call>\n{"name": "add", ')
    assert isinstance(head, CallDelta)
    assert (head.index, head.name, head.arguments) == (0, "add", "")
    assert parser.push('"arguments": {"a"') == [CallDelta(0, arguments='{"a"')]
    assert parser.push(": 1}") == [CallDelta(0, arguments=": 1}")]
    assert parser.push("}\n</tool_call>") == parser.flush() == []


def test_calls_beyond_the_limit_are_left_out() -> None:
    for form, reply in ((HERMES, hermes(ULM, ONE)), (MISTRAL, mistral(ULM, ONE))):
        assert read(ToolCallParser(form, NAMES, max_calls=1), list(reply)) == ("", [ULM])


@given(
    st.text(alphabet='<tool_cal>{}[]"\\:,name add\n', max_size=40),
    st.sampled_from((HERMES, LLAMA_3, MISTRAL)),
)
def test_any_text_is_read_without_harm(reply: str, form: ToolFormat) -> None:
    whole, calls = read(ToolCallParser(form, NAMES), [reply])
    assert read(ToolCallParser(form, NAMES), list(reply)) == (whole, calls)
    if not calls:
        assert whole == reply


@pytest.mark.parametrize(
    ("text", "ends", "is_broken"),
    [
        ("", {}, False),
        (' {"a": 1', {"a": None}, False),
        ('{"a": 1, "b": [2, "]"], "c', {"a": 7, "b": 22}, False),
        ('{"a": "x\\"}', {"a": None}, False),
        ('{"a" 1}', {}, True),
        ("[1]", {}, True),
        ('{"a": 1 2}', {"a": 7}, True),
    ],
)
def test_an_object_is_read_as_far_as_it_goes(
    text: str, ends: dict[str, int | None], is_broken: bool
) -> None:
    found = read_object(text)
    assert {key: member.end for key, member in found.members.items()} == ends
    assert (found.is_broken, found.end) == (is_broken, None)


@pytest.mark.parametrize(
    ("template", "form"),
    [
        ("{% if tools %}<tool_call>{% endif %}", HERMES),
        ("{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]", MISTRAL),
        ("{{ tools }}<|python_tag|>", LLAMA_3),
        ('{{ tools }} {"name": function name, "parameters": dictionary}', LLAMA_3),
        ("{{ tools }}<tool_call><function=", None),
        ("{{ tools }}[TOOL_CALLS]{{ name }}[ARGS]", None),
        ("{{ messages }}", None),
        ("{{ tools }}", None),
    ],
)
def test_the_template_says_how_calls_are_written(template: str, form: ToolFormat | None) -> None:
    assert tool_format(template) is form


def test_ids_are_of_the_length_that_templates_take() -> None:
    assert re.fullmatch(r"[A-Za-z0-9]{9}", MISTRAL.new_id())
    assert HERMES.new_id().startswith("call_")
    assert HERMES.new_id() != HERMES.new_id()


@pytest.mark.parametrize("form", [HERMES, LLAMA_3, MISTRAL])
@pytest.mark.parametrize("is_parallel", [False, True])
def test_a_reply_under_the_grammar_is_calls_of_the_tools(
    tokenizer: Tokenizer, form: ToolFormat, is_parallel: bool
) -> None:
    compiler: GrammarCompiler = compiler_of(tokenizer)
    for seed in range(4):
        reply = say(compiler, tokenizer, form.grammar(TOOLS, is_parallel), seed, most=2000)
        if reply is None:
            continue  # more calls than fit
        text, calls = read(ToolCallParser(form, NAMES), list(reply))
        assert (text, bool(calls)) == ("", True)
        assert is_parallel or len(calls) == 1
        for name, arguments in calls:
            value = json.loads(arguments)
            assert value == {} if name == "add" else value["city"] in ("Ulm", "Rom")
