"""POST /v1/chat/completions: a conversation in, the assistant's reply out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from aiohttp import web
from msgspec import UNSET, UnsetType

from sandwich.server.call import Call, EncodedPrompt
from sandwich.server.generation import Choice, Generation
from sandwich.server.protocol import ChatBody
from sandwich.server.responses import (
    ChatChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatLogprobs,
    ChatMessage,
    ChunkChoice,
    Delta,
    Function,
    Timings,
    TokenLogprob,
    ToolCall,
    ToolCallPart,
    TopLogprob,
    Usage,
)
from sandwich.server.tools import ToolUse, tool_use
from sandwich.server.validation import chat_params, conversation
from sandwich.server.wire import new_id, read_body, service_of
from sandwich.text.output import Logprob, OutputDelta, TokenLogprobs
from sandwich.text.tool_calls import CallDelta, ToolCallParser


async def chat_completions(request: web.Request) -> web.StreamResponse:
    arrival_time = time.monotonic()
    service = service_of(request)
    body = await read_body(request, ChatBody)
    service.check_model(body.model)
    params = chat_params(body, service.backend.generation_defaults, service.limits)
    tools = tool_use(body, service.tokenizer)
    if tools is not None and tools.grammar is not None:
        params = replace(params, grammar=tools.grammar)
    form = ChatFormat(new_id("chatcmpl"), int(time.time()), body, service.backend.model_name, tools)
    chat = conversation(body, None if tools is None else tools.tools)

    async def encode() -> list[EncodedPrompt]:
        return [EncodedPrompt(await service.encode_chat(chat))]

    return await Call(service, body, params, form, arrival_time).answer(request, 1, encode)


@dataclass(frozen=True)
class ChatFormat:
    """How the answers of one call look."""

    has_named_events: ClassVar[bool] = False

    id: str
    created: int
    body: ChatBody
    model: str
    tools: ToolUse | None = None
    _begun: set[int] = field(default_factory=set)  # choices whose first chunk is out
    _parsers: dict[int, ToolCallParser] = field(default_factory=dict)  # of choices in a stream

    def whole(self, generation: Generation) -> ChatCompletion:
        choices = []
        for choice in generation.choices:
            result = choice.output.result()
            assert result.finish_reason is not None
            message = self._message(result.text)
            choices.append(
                ChatChoice(
                    choice.index,
                    message,
                    self._logprobs(result.logprobs or ()),
                    _reason(result.finish_reason, message.tool_calls is not UNSET),
                    result.stop_reason,
                )
            )
        return ChatCompletion(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=choices,
            usage=generation.usage(),
            timings=generation.timings(),
        )

    def chunks(
        self, generation: Generation, choice: Choice, delta: OutputDelta
    ) -> Iterator[ChatCompletionChunk]:
        """As generation.ChunkFormat: a role chunk first, an empty delta with the reason last."""
        usage = generation.usage() if self.body.has_continuous_usage else None
        for entry in self._entries(choice, delta):
            yield self._chunk([entry], usage)

    def _entries(self, choice: Choice, delta: OutputDelta) -> Iterator[ChunkChoice]:
        if choice.index not in self._begun:
            self._begun.add(choice.index)
            yield ChunkChoice(choice.index, Delta("assistant", ""))
        parts, has_calls = self._parts(choice, delta)
        logprobs = self._logprobs(delta.logprobs)
        if delta.logprobs and not parts:
            parts = [Delta(content="")]
        for part in parts:
            yield ChunkChoice(choice.index, part, logprobs)
            logprobs = None  # they came with the first part
        if delta.finish_reason is not None:
            yield ChunkChoice(
                choice.index,
                Delta(),
                finish_reason=_reason(delta.finish_reason, has_calls),
                stop_reason=delta.stop_reason,
            )

    def _parts(self, choice: Choice, delta: OutputDelta) -> tuple[list[Delta], bool]:
        """What the delta's text adds to the message, and whether that has calls of tools."""
        if self.tools is None:
            return ([Delta(content=delta.text)] if delta.text else []), False
        parser = self._parsers.setdefault(choice.index, self.tools.parser())
        found = parser.push(delta.text)
        if delta.finish_reason is not None:
            found += parser.flush()
        return [_part(each) for each in found], parser.num_calls > 0

    def _message(self, text: str) -> ChatMessage:
        if self.tools is None:
            return ChatMessage(text)
        parser = self.tools.parser()
        content, calls = "", list[ToolCall]()
        for delta in [*parser.push(text), *parser.flush()]:
            if isinstance(delta, str):
                content += delta
            elif delta.id is not None and delta.name is not None:
                calls.append(ToolCall(delta.id, Function(delta.arguments, delta.name)))
            else:
                calls[delta.index].function.arguments += delta.arguments
        return ChatMessage(content or None, tool_calls=calls) if calls else ChatMessage(content)

    def closing(self, generation: Generation) -> Iterator[ChatCompletionChunk]:
        if self.body.includes_usage:
            yield self._chunk([], generation.usage(), generation.timings())

    def _chunk(
        self,
        choices: list[ChunkChoice],
        usage: Usage | None = None,
        timings: Timings | UnsetType = UNSET,
    ) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=choices,
            usage=usage if self.body.includes_usage else UNSET,
            timings=timings,
        )

    def _logprobs(self, entries: Sequence[TokenLogprobs]) -> ChatLogprobs | None:
        if not self.body.logprobs:
            return None
        return ChatLogprobs([_token_logprob(entry) for entry in entries])


def _reason(finish_reason: str, has_calls: bool) -> str:
    return "tool_calls" if has_calls and finish_reason == "stop" else finish_reason


def _part(delta: str | CallDelta) -> Delta:
    if isinstance(delta, str):
        return Delta(content=delta)
    if delta.id is None or delta.name is None:
        return Delta(tool_calls=[ToolCallPart(delta.index, Function(delta.arguments))])
    function = Function(delta.arguments, delta.name)
    return Delta(tool_calls=[ToolCallPart(delta.index, function, delta.id, "function")])


def _token_logprob(entry: TokenLogprobs) -> TokenLogprob:
    top = [_top_logprob(entry[token_id]) for token_id in entry.top_ids]
    chosen = _top_logprob(entry.chosen)
    return TokenLogprob(chosen.token, chosen.logprob, chosen.bytes, top)


def _top_logprob(candidate: Logprob) -> TopLogprob:
    return TopLogprob(candidate.decoded_token, candidate.logprob, list(candidate.bytes))
