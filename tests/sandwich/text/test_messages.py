"""Messages in every form that clients write them, as templates get them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from sandwich.errors import InvalidRequestError
from sandwich.text.messages import Chat, template_messages
from sandwich.text.tokenizer import Tokenizer

Save = Callable[..., Path]
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "user", "content": "a"}, {"role": "user", "content": "a"}),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"text": "b"}, "c"]},
            {"role": "user", "content": "a\nb\nc"},
        ),
        ({"role": "user", "content": []}, {"role": "user", "content": ""}),
        ({"role": "developer", "content": "a"}, {"role": "system", "content": "a"}),
        ({"role": "assistant"}, {"role": "assistant", "content": ""}),
        (
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {
                        "id": "call_1",
                        "type": "function",
                        "function": {"name": "f", "arguments": {"a": 1}},
                    }
                ],
            },
        ),
        (
            {"role": "assistant", "content": "a", "reasoning": "why"},
            {
                "role": "assistant",
                "content": "a",
                "reasoning": "why",
                "reasoning_content": "why",
            },
        ),
        (
            {"role": "tool", "tool_call_id": "call_1", "name": "f", "content": "2"},
            {"role": "tool", "content": "2", "name": "f", "tool_call_id": "call_1"},
        ),
    ],
)
def test_a_message_becomes_what_templates_take(
    message: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert template_messages([message], "") == [expected]


@pytest.mark.parametrize(
    ("arguments", "expected"), [("", {}), (None, {}), ("{oops", "{oops"), ({"a": 1}, {"a": 1})]
)
def test_arguments_of_calls_are_objects_where_they_can_be(
    arguments: object, expected: object
) -> None:
    call = {"function": {"name": "f", "arguments": arguments}}
    [message] = template_messages([{"role": "assistant", "tool_calls": [call]}], "")
    assert message["tool_calls"][0]["function"]["arguments"] == expected


@pytest.mark.parametrize("role", ["developer", "ipython"])
def test_a_role_that_the_template_names_is_left_to_it(role: str) -> None:
    message = {"role": role, "content": "a"}
    assert template_messages([message], f'{{% if m.role == "{role}" %}}') == [message]


@pytest.mark.parametrize(
    ("message", "param", "reason"),
    [
        ("hello", "messages[0]", "is a str but must be an object"),
        ({"content": "a"}, "messages[0].role", "must be one of system, developer"),
        ({"role": "pirate", "content": "a"}, "messages[0].role", "'pirate'"),
        ({"role": "user"}, "messages[0].content", "is missing"),
        ({"role": "user", "content": 3}, "messages[0].content", "is a int"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {}}]},
            "messages[0].content[0].type",
            "only text",
        ),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text", "missing"),
        ({"role": "user", "content": [3]}, "messages[0].content[0]", "is a int"),
        (
            {"role": "assistant", "tool_calls": [{"function": {}}]},
            "messages[0].tool_calls[0].function.name",
            "missing",
        ),
    ],
)
def test_what_no_model_can_be_told_is_refused_by_name(
    message: Any, param: str, reason: str
) -> None:
    with pytest.raises(InvalidRequestError, match=reason) as caught:
        template_messages([message], "")
    assert caught.value.param == param


@pytest.mark.parametrize("trim", ["", " | trim"])
@pytest.mark.parametrize("content", ["The answer is ", "The answer"])
def test_a_message_is_continued_as_transformers_continues_it(
    save_tokenizer: Save, tmp_path: Path, trim: str, content: str
) -> None:
    template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content" + trim + " }}<|end|>\n{% endfor %}"
    )
    folder = save_tokenizer(tmp_path, chat_template=template)
    messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": content}]
    theirs = transformers.AutoTokenizer.from_pretrained(folder).apply_chat_template(
        messages, tokenize=False, continue_final_message=True
    )
    chat = Chat(messages=messages, add_generation_prompt=False, continue_final_message=True)
    assert Tokenizer(folder).render_chat(chat) == theirs


def test_only_a_shown_message_can_be_continued(save_tokenizer: Save, tmp_path: Path) -> None:
    tokenizer = Tokenizer(save_tokenizer(tmp_path, chat_template="nothing"))
    messages = [{"role": "assistant", "content": "a"}]
    with pytest.raises(InvalidRequestError, match="does not show"):
        tokenizer.render_chat(
            Chat(messages=messages, add_generation_prompt=False, continue_final_message=True)
        )
    with pytest.raises(InvalidRequestError, match="add_generation_prompt to false"):
        Chat(messages=messages, continue_final_message=True)


def test_variables_reach_the_template_but_not_the_requests_own_fields(
    save_tokenizer: Save, tmp_path: Path
) -> None:
    tokenizer = Tokenizer(save_tokenizer(tmp_path, chat_template="{{ enable_thinking }}"))
    messages = [{"role": "user", "content": "a"}]
    variables = {"enable_thinking": False}
    assert tokenizer.render_chat(Chat(messages=messages, template_kwargs=variables)) == "False"
    with pytest.raises(InvalidRequestError, match="'messages'"):
        tokenizer.render_chat(Chat(messages=messages, template_kwargs={"messages": []}))


def test_a_calls_arguments_are_written_once_as_json(save_tokenizer: Save, tmp_path: Path) -> None:
    template = "{{ messages[0].tool_calls[0].function.arguments | tojson }}"
    tokenizer = Tokenizer(save_tokenizer(tmp_path, chat_template=template))
    text = tokenizer.render_chat(Chat(messages=[{"role": "assistant", "tool_calls": [CALL]}]))
    assert json.loads(text) == {"a": 1}
