"""POST /v1/chat/completions: a conversation in, the assistant's reply out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from sandwich.server.call import Call, EncodedPrompt
from sandwich.server.generation import Choice, Generation, Piece
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
    PromptProgress,
    Timings,
    TokenLogprob,
    ToolCall,
    ToolCallPart,
    TopLogprob,
    Usage,
)
from sandwich.server.talk import Talk
from sandwich.server.wire import new_id, read_body, service_of
from sandwich.text.output import Logprob, OutputDelta, TokenLogprobs
from sandwich.text.reasoning import Thought
from sandwich.text.reply import Part, Reply
from sandwich.text.tool_calls import CallDelta


async def chat_completions(request: web.Request) -> web.StreamResponse:
    arrival_time = time.monotonic()
    service = service_of(request)
    body = await read_body(request, ChatBody)
    service.check_model(body.model)
    talk = Talk.of(service, body)
    form = ChatFormat(new_id("chatcmpl"), int(time.time()), body, service.backend.model_name, talk)
    call = Call(service, body, talk.params, form, arrival_time)
    return await call.answer(request, 1, talk.encode)


@dataclass(frozen=True)
class ChatFormat:
    """How the answers of one call look."""

    has_named_events: ClassVar[bool] = False

    id: str
    created: int
    body: ChatBody
    model: str
    talk: Talk
    _begun: set[int] = field(default_factory=set)  # choices whose first chunk is out

    def reply(self, prompt: EncodedPrompt) -> Reply:
        return self.talk.reply(prompt)

    def whole(self, generation: Generation) -> ChatCompletion:
        choices = []
        for choice in generation.choices:
            result = choice.output.result()
            assert result.finish_reason is not None
            choices.append(
                ChatChoice(
                    choice.index,
                    _message(choice.reply),
                    self._logprobs(result.logprobs or ()),
                    _reason(result.finish_reason, choice.reply),
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

    def chunks(self, generation: Generation, piece: Piece) -> Iterator[ChatCompletionChunk]:
        """As generation.ChunkFormat: a role chunk first, an empty delta with the reason last."""
        usage = generation.usage() if self.body.has_continuous_usage else None
        for entry in self._entries(*piece):
            yield self._chunk([entry], usage)

    def _entries(
        self, choice: Choice, delta: OutputDelta, parts: Sequence[Part]
    ) -> Iterator[ChunkChoice]:
        if choice.index not in self._begun:
            self._begun.add(choice.index)
            yield ChunkChoice(choice.index, Delta("assistant", ""))
        deltas = [_delta(part) for part in parts]
        logprobs = self._logprobs(delta.logprobs)
        if delta.logprobs and not deltas:
            deltas = [Delta(content="")]
        for each in deltas:
            yield ChunkChoice(choice.index, each, logprobs)
            logprobs = None  # they came with the first
        if delta.finish_reason is not None:
            yield ChunkChoice(
                choice.index,
                Delta(),
                finish_reason=_reason(delta.finish_reason, choice.reply),
                stop_reason=delta.stop_reason,
            )

    def progress(self, progress: PromptProgress) -> Iterator[ChatCompletionChunk]:
        yield msgspec.structs.replace(self._chunk([]), prompt_progress=progress)

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
        return ChatLogprobs([token_logprob(entry) for entry in entries])


def _message(reply: Reply) -> ChatMessage:
    has_more = bool(reply.calls or reply.reasoning)
    calls = [ToolCall(call.id, Function(call.arguments, call.name)) for call in reply.calls]
    return ChatMessage(
        None if has_more and not reply.text else reply.text,
        reasoning_content=reply.reasoning or UNSET,
        tool_calls=calls or UNSET,
    )


def _reason(finish_reason: str, reply: Reply) -> str:
    return "tool_calls" if reply.calls and finish_reason == "stop" else finish_reason


def _delta(part: Part) -> Delta:
    match part:
        case str():
            return Delta(content=part)
        case Thought():
            return Delta(reasoning_content=part.text)
        case CallDelta(id=str(id_), name=str(name)):
            function = Function(part.arguments, name)
            return Delta(tool_calls=[ToolCallPart(part.index, function, id_, "function")])
    return Delta(tool_calls=[ToolCallPart(part.index, Function(part.arguments))])


def token_logprob(entry: TokenLogprobs) -> TokenLogprob:
    top = [_top_logprob(entry[token_id]) for token_id in entry.top_ids]
    chosen = _top_logprob(entry.chosen)
    return TokenLogprob(chosen.token, chosen.logprob, chosen.bytes, top)


def _top_logprob(candidate: Logprob) -> TopLogprob:
    return TopLogprob(candidate.decoded_token, candidate.logprob, list(candidate.bytes))
