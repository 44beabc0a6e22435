"""Messages as clients write them -> messages as chat templates take them.

The one road for HTTP and Python: every content becomes one text, arguments of tool calls become
objects, and what a model cannot be told (images, unknown roles) is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

from sandwich.errors import InvalidRequestError

Message = Mapping[str, Any]

ROLES: Final = ("system", "developer", "user", "assistant", "tool")
_PASSED_ON: Final = ("name", "tool_call_id")
_REASONING: Final = ("reasoning_content", "reasoning")  # two names of one thing


@dataclass(frozen=True, kw_only=True)
class Chat:
    """A conversation and how its prompt is made.

    `add_generation_prompt`: end it where the assistant's reply begins. `continue_final_message`:
    end it inside the last message instead, which the model then continues. `template_kwargs`:
    variables of the model's template, such as `enable_thinking`. `add_special_tokens`: add what the
    model wants around a text, though templates write it themselves.
    """

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    add_special_tokens: bool = False

    def __post_init__(self) -> None:
        if self.continue_final_message and self.add_generation_prompt:
            raise InvalidRequestError(
                "continue_final_message goes on with the last message, add_generation_prompt "
                "begins another one; set add_generation_prompt to false",
                "continue_final_message",
            )


def template_messages(messages: Sequence[Message], template: str) -> list[dict[str, Any]]:
    """What the Jinja text `template` is given. Raises InvalidRequestError naming the place."""
    if not messages:
        raise InvalidRequestError("messages must not be empty", param="messages")
    return [
        _template_message(message, f"messages[{i}]", template) for i, message in enumerate(messages)
    ]


def _template_message(message: object, where: str, template: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        _refuse(where, f"is a {type(message).__name__} but must be an object with role and content")
    role = _template_role(message.get("role"), where, template)
    calls = message.get("tool_calls") or ()
    rendered: dict[str, Any] = {"role": role}
    if message.get("content") is not None:
        rendered["content"] = _text_of(message["content"], f"{where}.content")
    elif role == "assistant":
        rendered["content"] = ""
    else:
        _refuse(f"{where}.content", "is missing", "missing_required_parameter")
    rendered |= {name: message[name] for name in _PASSED_ON if message.get(name) is not None}
    reasoning = next((message[name] for name in _REASONING if message.get(name)), None)
    if reasoning is not None:
        rendered |= dict.fromkeys(_REASONING, reasoning)
    if calls:
        rendered["tool_calls"] = [
            _tool_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)
        ]
    return rendered


def _template_role(role: object, where: str, template: str) -> str:
    """The role; a developer is the system to a template that has no developers."""
    names_it = isinstance(role, str) and (f"'{role}'" in template or f'"{role}"' in template)
    if role == "developer" and not names_it:
        return "system"
    if role not in ROLES and not names_it:
        _refuse(f"{where}.role", f"is {str(role)[:50]!r} but must be one of {', '.join(ROLES)}")
    return str(role)


def _text_of(content: object, where: str) -> str:
    """One text of a content: a text, or a list of parts, which become lines."""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        _refuse(where, f"is a {type(content).__name__} but must be a text or a list of parts")
    return "\n".join(_text_of_part(part, f"{where}[{i}]") for i, part in enumerate(content))


def _text_of_part(part: object, where: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        _refuse(where, f"is a {type(part).__name__} but must be an object with type and text")
    kind = part.get("type", "text")
    text = part.get("refusal" if kind == "refusal" else "text")
    if kind not in ("text", "refusal", "input_text", "output_text"):
        _refuse(
            f"{where}.type",
            f"is {str(kind)[:50]!r}; only text is supported",
            "unsupported_parameter",
        )
    if not isinstance(text, str):
        _refuse(f"{where}.text", "is missing or no text", "missing_required_parameter")
    return text


def _tool_call(call: object, where: str) -> dict[str, Any]:
    """A call with its arguments as an object, which templates write as JSON themselves."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        _refuse(f"{where}.function.name", "is missing", "missing_required_parameter")
    assert isinstance(call, Mapping)
    rendered: dict[str, Any] = {
        "type": "function",
        "function": {
            "name": function["name"],
            "arguments": _arguments(function.get("arguments")),
        },
    }
    return rendered if call.get("id") is None else {"id": call["id"], **rendered}


def _arguments(arguments: object) -> object:
    if not isinstance(arguments, str):
        return {} if arguments is None else arguments
    try:
        return json.loads(arguments) if arguments.strip() else {}
    except ValueError:
        return arguments  # a model wrote it so; the next one sees what it was


def _refuse(where: str, what: str, code: str | None = None) -> NoReturn:
    raise InvalidRequestError(f"`{where}` {what}", where, code)
