"""POST /v1/chat/completions: a conversation in, the assistant's reply out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

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
    Timings,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from sandwich.server.validation import chat_params, conversation
from sandwich.server.wire import new_id, read_body, service_of
from sandwich.text.output import Logprob, OutputDelta, TokenLogprobs


async def chat_completions(request: web.Request) -> web.StreamResponse:
    arrival_time = time.monotonic()
    service = service_of(request)
    body = await read_body(request, ChatBody)
    service.check_model(body.model)
    params = chat_params(body, service.backend.generation_defaults, service.limits)
    form = ChatFormat(new_id("chatcmpl"), int(time.time()), body, service.backend.model_name)
    chat = conversation(body)

    async def encode() -> list[EncodedPrompt]:
        return [EncodedPrompt(await service.encode_chat(chat))]

    return await Call(service, body, params, form, arrival_time).answer(request, 1, encode)


@dataclass(frozen=True)
class ChatFormat:
    """How the answers of one call look."""

    id: str
    created: int
    body: ChatBody
    model: str
    _begun: set[int] = field(default_factory=set)  # choices whose first chunk is out

    def whole(self, generation: Generation) -> ChatCompletion:
        choices = []
        for choice in generation.choices:
            result = choice.output.result()
            assert result.finish_reason is not None
            choices.append(
                ChatChoice(
                    choice.index,
                    ChatMessage(result.text),
                    self._logprobs(result.logprobs or ()),
                    result.finish_reason,
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
        if delta.text or delta.logprobs:
            logprobs = self._logprobs(delta.logprobs)
            yield ChunkChoice(choice.index, Delta(content=delta.text), logprobs)
        if delta.finish_reason is not None:
            yield ChunkChoice(
                choice.index,
                Delta(),
                finish_reason=delta.finish_reason,
                stop_reason=delta.stop_reason,
            )

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


def _token_logprob(entry: TokenLogprobs) -> TokenLogprob:
    top = [_top_logprob(entry[token_id]) for token_id in entry.top_ids]
    chosen = _top_logprob(entry.chosen)
    return TokenLogprob(chosen.token, chosen.logprob, chosen.bytes, top)


def _top_logprob(candidate: Logprob) -> TopLogprob:
    return TopLogprob(candidate.decoded_token, candidate.logprob, list(candidate.bytes))
