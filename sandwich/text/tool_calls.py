"""Calls of tools inside a model's reply: how each family writes them, read piece by piece.

    Hermes, Qwen   <tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>, one after the other
    Llama 3        {"name": "f", "parameters": {"a": 1}}, after <|python_tag|> or by itself
    Mistral        [TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}, ...]

Special tokens such as <|python_tag|> and [TOOL_CALLS] never reach the text, so what follows them is
recognised by its form: the reply begins with JSON that names one of the tools.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sandwich.requests.grammar import Grammar
from sandwich.text.output import longest_overlap
from sandwich.text.partial_json import PartialObject, read_object

_MISTRAL_ID_LENGTH: Final = 9  # its templates refuse any other
# Spaces where Python's json.dumps has them, as in the texts that models are trained on.
_AS_TRAINED: Final = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}
_ARGUMENT_KEYS: Final = ("arguments", "parameters")  # a model may write the other family's
_BETWEEN_CALLS: Final = re.compile(r"[\s,;\[\]]*")


@dataclass(frozen=True)
class ToolFormat:
    """How a family writes calls. Without `begin` the reply is nothing but JSON."""

    name: str
    arguments_key: str = "arguments"
    begin: str = ""
    end: str = ""
    is_list: bool = False

    def new_id(self) -> str:
        """The id of one more call."""
        if self.name != "mistral":
            return f"call_{secrets.token_hex(12)}"
        letters = string.ascii_letters + string.digits
        return "".join(secrets.choice(letters) for _ in range(_MISTRAL_ID_LENGTH))

    def grammar(self, tools: Sequence[Mapping[str, Any]], is_parallel: bool) -> Grammar:
        """A reply that is one call of these tools, or with `is_parallel` one or more."""
        calls = " | ".join(f"%json {json.dumps(self._schema(tool))}" for tool in tools)
        if self.begin:
            call = f"{_quoted(self.begin + chr(10))} object {_quoted(chr(10) + self.end)}"
            calls_rule = 'call ("\\n" call)*' if is_parallel else "call"
        elif self.is_list:
            call = "object"
            calls_rule = '"[" call ("," call)* "]"' if is_parallel else '"[" call "]"'
        else:
            call, calls_rule = "object", "call"
        return Grammar.grammar(f"start: {calls_rule}\ncall: {call}\nobject: {calls}\n")

    def _schema(self, tool: Mapping[str, Any]) -> dict[str, Any]:
        function = tool["function"]
        return {
            "type": "object",
            "properties": {
                "name": {"const": function["name"]},
                self.arguments_key: function.get("parameters") or {"type": "object"},
            },
            "required": ["name", self.arguments_key],
            "additionalProperties": False,
            "x-guidance": _AS_TRAINED,
        }


HERMES: Final = ToolFormat("hermes", begin="<tool_call>", end="</tool_call>")
MISTRAL: Final = ToolFormat("mistral", is_list=True)
LLAMA_3: Final = ToolFormat("llama3", arguments_key="parameters")
# What a chat template holds if its model writes calls so; the first that is found decides.
_SIGNS: Final = (
    ("<tool_call>", HERMES),
    ("[TOOL_CALLS]", MISTRAL),
    ("<|python_tag|>", LLAMA_3),
    ('{"name": function name, "parameters":', LLAMA_3),
)
# Signs of forms that use the same tags in another way, and are not read here.
_OTHERS: Final = ("<function=", "<arg_key>", "[ARGS]")


def tool_format(template: str) -> ToolFormat | None:
    """The format of the model with this chat template; None if it has no place for tools."""
    if "tools" not in template or any(sign in template for sign in _OTHERS):
        return None
    return next((form for sign, form in _SIGNS if sign in template), None)


def _quoted(text: str) -> str:
    return json.dumps(text)


@dataclass(frozen=True, slots=True)
class CallDelta:
    """More of a call: id and name come first, then its arguments as JSON, in pieces."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


Delta = str | CallDelta  # text that is no call, or more of one


class ToolCallParser:
    """Reads one reply. A call is told once its name is known to be one of the tools'."""

    def __init__(
        self, form: ToolFormat, names: Collection[str], max_calls: int | None = None
    ) -> None:
        """`max_calls`: what comes behind so many calls is left out."""
        self._form = form
        self._names = frozenset(names)
        self._max_calls = max_calls
        self._buffer = ""  # what is not told yet
        self._is_inside = False  # of a call, behind its begin
        self._is_plain = False  # the reply began with something that is no call
        self._num_sent: int | None = None  # characters of the open call's arguments; None: no name
        self.num_calls = 0

    def push(self, text: str) -> list[Delta]:
        """What is certain with this text."""
        self._buffer += text
        deltas: list[Delta] = []
        while self._step(deltas):
            pass
        return deltas

    def flush(self) -> list[Delta]:
        """The reply has ended: what was held back, if it is text."""
        rest, self._buffer = self._buffer, ""
        if self._is_done() or self._num_sent is not None:
            return []
        if self._is_inside and self._form.begin:
            rest = self._form.begin + rest
        elif self.num_calls and not rest.strip(" \n,;[]"):
            rest = ""
        return [rest] if rest else []

    def _is_done(self) -> bool:
        return self._max_calls is not None and self.num_calls >= self._max_calls

    def _step(self, deltas: list[Delta]) -> bool:
        """Take one thing off the buffer; False if more text is needed."""
        if not self._buffer or (self._is_done() and self._num_sent is None):
            return False
        if self._is_inside:
            return self._grow(deltas)
        return self._open_tagged(deltas) if self._form.begin else self._open_bare(deltas)

    def _open_tagged(self, deltas: list[Delta]) -> bool:
        before, begin, behind = self._buffer.partition(self._form.begin)
        if begin:
            self._buffer, self._is_inside = behind, True
        else:
            num_held = longest_overlap(before, self._form.begin)
            before, self._buffer = (
                before[: len(before) - num_held],
                before[len(before) - num_held :],
            )
        if before.strip() or (before and not self.num_calls):
            deltas.append(before)
        return bool(begin)

    def _open_bare(self, deltas: list[Delta]) -> bool:
        text = (
            self._buffer.lstrip() if not self.num_calls else _BETWEEN_CALLS.sub("", self._buffer, 1)
        )
        is_call = text.startswith(("{", "[") if not self.num_calls else "{")
        if not text:
            return False
        if self._is_plain or not is_call:
            self._is_plain = True
            deltas.append(self._buffer)
            self._buffer = ""
            return False
        self._is_inside = True
        return True

    def _grow(self, deltas: list[Delta]) -> bool:
        """Tell more of the call whose text the buffer begins with."""
        lead = 0 if self._form.begin else len(_match(_BETWEEN_CALLS, self._buffer))
        call = read_object(self._buffer, lead)
        name = self._name_of(call)
        if self._num_sent is None and name is not None and name in self._names:
            deltas.append(CallDelta(self.num_calls, self._form.new_id(), name))
            self.num_calls += 1
            self._num_sent = 0
        if self._num_sent is not None:
            self._send_arguments(call, deltas)
        return self._close(call, deltas)

    def _name_of(self, call: PartialObject) -> str | None:
        member = call.members.get("name")
        if member is None or member.end is None:
            return None
        try:
            name = json.loads(self._buffer[member.start : member.end], strict=False)
        except ValueError:
            return None
        return name if isinstance(name, str) else None

    def _send_arguments(self, call: PartialObject, deltas: list[Delta]) -> None:
        assert self._num_sent is not None
        keys = (self._form.arguments_key, *_ARGUMENT_KEYS)
        member = next((call.members[key] for key in keys if key in call.members), None)
        if member is None:
            text = "{}" if call.end is not None else ""
        else:
            text = self._buffer[member.start : member.end]
            if text.startswith('"'):  # an object that was written as a text
                text = str(json.loads(text, strict=False)) if member.end is not None else ""
        if len(text) > self._num_sent:
            deltas.append(CallDelta(self.num_calls - 1, arguments=text[self._num_sent :]))
            self._num_sent = len(text)

    def _close(self, call: PartialObject, deltas: list[Delta]) -> bool:
        """Leave the call if its text has come to an end."""
        end = call.end
        if self._form.end:
            place = self._buffer.find(self._form.end, end or 0)
            if place < 0:
                return False
            end = place + len(self._form.end)
        elif call.is_broken and not self.num_calls:
            end = 0
            self._is_plain = True
        if end is None:
            return False
        if self._num_sent is None:
            deltas.append(self._form.begin + self._buffer[:end] if end else self._buffer)
            end = end or len(self._buffer)
        self._buffer, self._is_inside, self._num_sent = self._buffer[end:], False, None
        return True


def _match(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.match(text)
    return match[0] if match else ""
