"""POST /v1/responses: OpenAI's Responses API over the road of chats, without a memory of its own.

Whatever a conversation had before must come with `input`; nothing is stored.
Source: OpenAI's API reference (https://platform.openai.com/docs/api-reference/responses).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from aiohttp import web
from msgspec import UNSET, UnsetType

from sandwich.errors import InvalidRequestError
from sandwich.server.call import Call
from sandwich.server.protocol import ChatBody, Message, ResponsesBody
from sandwich.server.responses_format import ResponseFormat
from sandwich.server.talk import Talk
from sandwich.server.wire import new_id, read_body, service_of

_LOGPROBS: Final = "message.output_text.logprobs"
_INCLUDABLE: Final = (_LOGPROBS, "reasoning.encrypted_content")
# Fields that mean in chat completions what they mean here.
_AS_IN_CHATS: Final = (
    "stream",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "seed",
    "stop",
    "parallel_tool_calls",
    "chat_template_kwargs",
    "cache_salt",
    "priority",
)


async def create_response(request: web.Request) -> web.StreamResponse:
    arrival_time = time.monotonic()
    service = service_of(request)
    body = await read_body(request, ResponsesBody)
    service.check_model(body.model)
    chat = chat_body(body)
    talk = Talk.of(service, chat)
    form = ResponseFormat(new_id("resp"), time.time(), body, service.backend.model_name, talk)
    call = Call(service, chat, talk.params, form, arrival_time)
    return await call.answer(request, 1, talk.encode)


def chat_body(body: ResponsesBody) -> ChatBody:
    """The same request in the shape of chat completions."""
    for i, name in enumerate(body.include):
        if name not in _INCLUDABLE:
            raise InvalidRequestError(
                f"`include[{i}]` is {name[:50]!r}; this server can include "
                f"{' and '.join(_INCLUDABLE)}",
                f"include[{i}]",
                "unsupported_parameter",
            )
    messages = list[Message]()
    if body.instructions is not UNSET:
        messages.append(Message(role="system", content=body.instructions))
    if isinstance(body.input, str):
        messages.append(Message(role="user", content=body.input))
    else:
        messages += _messages(body.input)
    chat = ChatBody(
        messages=messages,
        max_completion_tokens=body.max_output_tokens,
        tools=[_tool(tool, f"tools[{i}]") for i, tool in enumerate(body.tools)],
        logprobs=_LOGPROBS in body.include,
        top_logprobs=body.top_logprobs,
        response_format=UNSET if body.text is UNSET else _response_format(body.text.format),
        reasoning_effort=UNSET if body.reasoning is UNSET else body.reasoning.effort,
        tool_choice=_tool_choice(body.tool_choice),
    )
    for name in _AS_IN_CHATS:
        setattr(chat, name, getattr(body, name))
    return chat


def _tool(tool: Mapping[str, Any], where: str) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise InvalidRequestError(
            f"`{where}.type` is {str(tool.get('type'))[:50]!r} but must be function; tools that "
            "the server runs are not supported",
            f"{where}.type",
            "unsupported_parameter",
        )
    return {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}}


def _tool_choice(choice: str | dict[str, Any] | UnsetType) -> str | dict[str, Any] | UnsetType:
    if isinstance(choice, dict) and choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    return choice


def _response_format(form: dict[str, Any] | UnsetType) -> dict[str, Any] | UnsetType:
    """A schema lies beside its type here, and a level deeper in chat completions."""
    if form is UNSET or form.get("type") != "json_schema":
        return form
    return {"type": "json_schema", "json_schema": form}


def _messages(items: list[dict[str, Any]]) -> Iterator[Message]:
    """Messages, where reasoning, text and calls of one turn of the assistant are one message."""
    turn: Message | None = None
    for i, item in enumerate(items):
        where = f"input[{i}]"
        kind = item.get("type", "message")
        is_assistants = kind in ("reasoning", "function_call") or item.get("role") == "assistant"
        if turn is not None and (not is_assistants or _is_complete(turn, kind)):
            yield turn
            turn = None
        if is_assistants and turn is None:
            turn = Message(role="assistant")
        match kind:
            case "message" if turn is None:
                yield Message(
                    role=_text(item, "role", where), content=_given(item, "content", where)
                )
            case "message":
                assert turn is not None
                turn.content = _given(item, "content", where)
            case "reasoning":
                assert turn is not None
                turn.reasoning = _reasoning(item)
            case "function_call":
                assert turn is not None
                function = {name: _text(item, name, where) for name in ("name", "arguments")}
                call = {"id": item.get("call_id"), "type": "function", "function": function}
                turn.tool_calls = [*(turn.tool_calls or ()), call]
            case "function_call_output":
                call_id = _text(item, "call_id", where)
                yield Message(
                    role="tool", content=_given(item, "output", where), tool_call_id=call_id
                )
            case _:
                raise InvalidRequestError(
                    f"`{where}.type` is {str(kind)[:50]!r}; this server knows message, reasoning, "
                    "function_call and function_call_output",
                    f"{where}.type",
                    "unsupported_parameter",
                )
    if turn is not None:
        yield turn


def _is_complete(turn: Message, kind: str) -> bool:
    """Whether an item of that kind begins another turn of the assistant."""
    has_text, has_calls = turn.content is not UNSET, turn.tool_calls is not UNSET
    return (kind == "message" and (has_text or has_calls)) or (
        kind == "reasoning" and (has_text or has_calls or turn.reasoning is not UNSET)
    )


def _given(item: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in item:
        raise InvalidRequestError(
            f"`{where}.{name}` is missing", f"{where}.{name}", "missing_required_parameter"
        )
    return item[name]


def _text(item: Mapping[str, Any], name: str, where: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise InvalidRequestError(
            f"`{where}.{name}` is missing or no text", f"{where}.{name}", "invalid_type"
        )
    return value


def _reasoning(item: Mapping[str, Any]) -> str | UnsetType:
    """The text of a reasoning item; what a client got encrypted or in summary is not shown."""
    parts = item.get("content") or ()
    texts = [part.get("text") for part in parts if isinstance(part, Mapping)]
    return "\n".join(text for text in texts if isinstance(text, str)) or UNSET
