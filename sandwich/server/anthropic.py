"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's Messages API over the road of chats.

Source: Anthropic's API reference (https://docs.anthropic.com/en/api/messages).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import msgspec
from aiohttp import web
from msgspec import UNSET, Struct, UnsetType

from sandwich.errors import InvalidRequestError
from sandwich.server.anthropic_format import MessageFormat
from sandwich.server.call import Call
from sandwich.server.protocol import Body, ChatBody, Message
from sandwich.server.talk import Talk
from sandwich.server.tools import tool_use
from sandwich.server.validation import conversation
from sandwich.server.wire import json_response, new_id, read_body, service_of

_ROLES = ("user", "assistant", "system")
_THINKING = ("enabled", "adaptive", "disabled")
_TOOL_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


class AnthropicMessage(Body, kw_only=True):
    role: str
    content: str | list[dict[str, Any]]


class CountBody(Body, kw_only=True):
    """What both endpoints have in common."""

    model: str | UnsetType = UNSET
    messages: list[AnthropicMessage]
    system: str | list[dict[str, Any]] | UnsetType = UNSET
    tools: list[dict[str, Any]] = msgspec.field(default_factory=list)
    tool_choice: dict[str, Any] | UnsetType = UNSET
    thinking: dict[str, Any] | UnsetType = UNSET
    ignored = frozenset({"metadata", "service_tier", "cache_control"})
    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "container": (),
        "mcp_servers": ([],),
    }
    nested: ClassVar[dict[str, type[Body]]] = {"messages": AnthropicMessage}


class MessagesBody(CountBody, kw_only=True):
    """POST /v1/messages."""

    max_tokens: int
    stop_sequences: list[str] = msgspec.field(default_factory=list)
    temperature: float | UnsetType = UNSET
    top_p: float | UnsetType = UNSET
    top_k: int | UnsetType = UNSET
    stream: bool = False


class TokenCount(Struct):
    input_tokens: int


async def messages(request: web.Request) -> web.StreamResponse:
    arrival_time = time.monotonic()
    service = service_of(request)
    body = await read_body(request, MessagesBody)
    service.check_model(body.model)
    chat = chat_body(body)
    for name in ("max_tokens", "temperature", "top_p", "top_k", "stream"):
        setattr(chat, name, getattr(body, name))
    chat.stop = body.stop_sequences or UNSET
    talk = Talk.of(service, chat)
    if body.thinking is not UNSET and _thinks(body.thinking) and not talk.has_reasoning:
        raise InvalidRequestError(
            "thinking asks for reasoning, which this model's chat template does not have; leave it "
            "out",
            "thinking",
            "unsupported_parameter",
        )
    form = MessageFormat(new_id("msg"), service.backend.model_name, talk)
    call = Call(service, chat, talk.params, form, arrival_time)
    return await call.answer(request, 1, talk.encode)


async def count_tokens(request: web.Request) -> web.Response:
    service = service_of(request)
    body = await read_body(request, CountBody)
    service.check_model(body.model)
    chat = chat_body(body)
    tools = tool_use(chat, service.tokenizer)
    with service.bridge.open(num_places=1):  # the work is bounded as that of messages is
        prompt = await service.encode_chat(
            conversation(chat, None if tools is None else tools.tools)
        )
    return json_response(TokenCount(len(prompt.token_ids)))


def chat_body(body: CountBody) -> ChatBody:
    """The same request in the shape of chat completions."""
    listed: list[Message] = []
    if body.system is not UNSET:
        listed.append(Message(role="system", content=_text(body.system, "system")))
    for i, message in enumerate(body.messages):
        listed += _messages(message, f"messages[{i}]")
    chat = ChatBody(
        messages=listed, tools=[_tool(t, f"tools[{i}]") for i, t in enumerate(body.tools)]
    )
    if body.thinking is not UNSET:
        chat.chat_template_kwargs = {"enable_thinking": _thinks(body.thinking)}
    if body.tool_choice is not UNSET:
        chat.tool_choice = _tool_choice(body.tool_choice)
        if body.tool_choice.get("disable_parallel_tool_use") is True:
            chat.parallel_tool_calls = False
    return chat


def _thinks(thinking: Mapping[str, Any]) -> bool:
    """Whether the model may reason first, where its template can say so. No budget is kept."""
    kind = thinking.get("type")
    if kind not in _THINKING:
        raise InvalidRequestError(
            f"thinking.type is {str(kind)[:50]!r} but must be one of {', '.join(_THINKING)}",
            "thinking.type",
        )
    return bool(kind != "disabled")


def _tool(tool: Mapping[str, Any], where: str) -> dict[str, Any]:
    if tool.get("type", "custom") != "custom" or "input_schema" not in tool:
        raise InvalidRequestError(
            f"`{where}` must have name and input_schema; tools that the server runs are not "
            "supported",
            where,
            "unsupported_parameter",
        )
    function = {name: tool[name] for name in ("name", "description") if name in tool}
    return {"type": "function", "function": function | {"parameters": tool["input_schema"]}}


def _tool_choice(choice: Mapping[str, Any]) -> str | dict[str, Any]:
    kind = choice.get("type")
    if kind == "tool":
        return {"type": "function", "function": {"name": choice.get("name")}}
    if kind not in _TOOL_CHOICES:
        raise InvalidRequestError(
            f"tool_choice.type is {str(kind)[:50]!r} but must be auto, any, tool or none",
            "tool_choice.type",
        )
    return _TOOL_CHOICES[kind]


def _messages(message: AnthropicMessage, where: str) -> Iterator[Message]:
    """One message of ours for each result of a tool, and one for the rest."""
    if message.role not in _ROLES:
        raise InvalidRequestError(
            f"`{where}.role` is {message.role[:50]!r} but must be one of {', '.join(_ROLES)}",
            f"{where}.role",
        )
    if isinstance(message.content, str):
        yield Message(role=message.role, content=message.content)
        return
    texts: list[str | dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    reasoning = ""
    num_results = 0
    for i, block in enumerate(message.content):
        place = f"{where}.content[{i}]"
        match block.get("type"):
            case "text":
                texts.append({"type": "text", "text": block.get("text")})
            case "thinking":
                reasoning += str(block.get("thinking", ""))
            case "redacted_thinking":
                pass
            case "tool_use":
                function = {
                    "name": block.get("name"),
                    "arguments": json.dumps(block.get("input") or {}),
                }
                calls.append({"id": block.get("id"), "type": "function", "function": function})
            case "tool_result":
                num_results += 1
                text = _text(block.get("content") or "", f"{place}.content")
                yield Message(role="tool", content=text, tool_call_id=str(block.get("tool_use_id")))
            case kind:
                raise InvalidRequestError(
                    f"`{place}.type` is {str(kind)[:50]!r}; only text and tools are supported",
                    f"{place}.type",
                    "unsupported_parameter",
                )
    if texts or calls or not num_results:
        yield Message(
            role=message.role,
            content=texts,
            tool_calls=calls or UNSET,
            reasoning=reasoning or UNSET,
        )


def _text(content: Any, where: str) -> str:
    """A text, or the lines of a list of text blocks."""
    if isinstance(content, str):
        return content
    blocks = content if isinstance(content, list) else [content]
    texts = [block.get("text") if isinstance(block, Mapping) else None for block in blocks]
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidRequestError(
                f"`{where}[{i}]` must be a block of text; only text is supported",
                f"{where}[{i}]",
                "unsupported_parameter",
            )
    return "\n".join(text for text in texts if text is not None)
