"""The fields that offer tools: what the template shows, and how the reply is made and read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from msgspec import UNSET

from sandwich.errors import InvalidRequestError
from sandwich.requests.grammar import Grammar
from sandwich.server.protocol import ChatBody
from sandwich.text.tokenizer import Tokenizer
from sandwich.text.tool_calls import ToolCallParser, ToolFormat, tool_format


@dataclass(frozen=True)
class ToolUse:
    """Tools of one call. `grammar`: of a reply that must be a call; None: the model decides."""

    tools: list[dict[str, Any]]
    form: ToolFormat
    grammar: Grammar | None
    max_calls: int | None

    def parser(self) -> ToolCallParser:
        """For one more reply."""
        names = [tool["function"]["name"] for tool in self.tools]
        return ToolCallParser(self.form, names, self.max_calls)


def tool_use(body: ChatBody, tokenizer: Tokenizer) -> ToolUse | None:
    """What `tools`, `tool_choice` and `parallel_tool_calls` ask for; None: no tools.

    Raises InvalidRequestError if they contradict each other, or the model has no form of calls.
    """
    named = _named(body.tool_choice)
    choice = body.tool_choice if named is None else "required"
    if choice not in (UNSET, "none", "auto", "required"):
        raise InvalidRequestError(
            f"tool_choice is {str(choice)[:50]!r} but must be none, auto, required or a function",
            "tool_choice",
        )
    tools = [_checked(tool, f"tools[{i}]") for i, tool in enumerate(body.tools)]
    if not tools and choice == "required":
        raise InvalidRequestError("tool_choice needs tools; give them, or leave it out", "tools")
    if not tools or choice == "none":
        return None
    form = tool_format(tokenizer.chat_template(has_tools=True).source)
    if form is None:
        raise InvalidRequestError(
            "this model's chat template has no place for tools; leave `tools` out, or give a "
            "template with --chat-template",
            "tools",
            "unsupported_parameter",
        )
    allowed = [tool for tool in tools if named in (None, tool["function"]["name"])]
    if not allowed:
        raise InvalidRequestError(
            f"tool_choice names {named[:50] if named else named!r}, which is none of the tools",
            "tool_choice",
        )
    is_parallel = named is None and body.parallel_tool_calls is not False
    grammar = form.grammar(allowed, is_parallel) if choice == "required" else None
    if grammar is not None and body.response_format not in (UNSET, {"type": "text"}):
        raise InvalidRequestError(
            "response_format and a tool_choice that must be a call exclude each other; give one",
            "response_format",
        )
    return ToolUse(allowed, form, grammar, None if is_parallel else 1)


def _named(choice: Any) -> str | None:
    """The function that must be called, if the choice names one."""
    if not isinstance(choice, Mapping):
        return None
    function = choice.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    if choice.get("type") != "function" or not isinstance(name, str):
        raise InvalidRequestError(
            'tool_choice must be {"type": "function", "function": {"name": ...}}', "tool_choice"
        )
    return name


def _checked(tool: Mapping[str, Any], where: str) -> dict[str, Any]:
    function = tool.get("function")
    if tool.get("type", "function") != "function" or not isinstance(function, Mapping):
        raise InvalidRequestError(
            f"`{where}` must be a function; other tools are not supported",
            where,
            "unsupported_parameter",
        )
    if not isinstance(function.get("name"), str) or not function["name"]:
        raise InvalidRequestError(f"`{where}.function.name` is missing", f"{where}.function.name")
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise InvalidRequestError(
            f"`{where}.function.parameters` must be a JSON schema", f"{where}.function.parameters"
        )
    return {"type": "function", "function": dict(function)}
