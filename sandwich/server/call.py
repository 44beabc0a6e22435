"""The road of every call that generates text: places, prompts, requests, the answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from sandwich.errors import InvalidRequestError
from sandwich.requests.request import Request
from sandwich.requests.sampling_params import SamplingParams
from sandwich.server.access_log import NOTES
from sandwich.server.generation import Choice, ChunkFormat, Generation, stream_answer
from sandwich.server.protocol import SamplingBody
from sandwich.server.service import Service
from sandwich.server.wire import json_response
from sandwich.text.guided import CompiledGrammar
from sandwich.text.output import OutputStream
from sandwich.text.reply import Reply


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt that can run. `echo`: its text, if the answer shows it. `opens_reasoning`: the reply
    begins inside the model's reasoning.
    """

    token_ids: list[int]
    echo: str = ""
    opens_reasoning: bool = False


class AnswerFormat(ChunkFormat, Protocol):
    """How one endpoint writes its answers, whole or streamed."""

    @property
    def id(self) -> str:
        """Of the answer, and of its requests."""
        ...

    def reply(self, prompt: EncodedPrompt) -> Reply:
        """Reads one choice."""

    def whole(self, generation: Generation) -> msgspec.Struct: ...


def last_tokens(token_ids: list[int], most: int | UnsetType, service: Service) -> list[int]:
    """Only the last `truncate_prompt_tokens` of a prompt, if the client wants that."""
    if most is UNSET:
        return token_ids
    if most < 1 and most != -1:
        raise InvalidRequestError(
            f"truncate_prompt_tokens is {most} but must be at least 1, or -1 for what fits",
            "truncate_prompt_tokens",
        )
    return token_ids[-(service.backend.max_model_len - 1 if most == -1 else most) :]


@dataclass(frozen=True)
class Call:
    """One call: what was asked, and how it is answered."""

    service: Service
    body: SamplingBody
    params: SamplingParams
    form: AnswerFormat
    arrival_time: float  # of time.monotonic()

    async def answer(
        self,
        request: web.Request,
        num_prompts: int,
        encode: Callable[[], Awaitable[Sequence[EncodedPrompt]]],
    ) -> web.StreamResponse:
        """Take places, encode the prompts, generate, and answer as `form` says.

        Raises what the client did wrong, QueueFullError, UnavailableError or RequestFailedError.
        """
        with self.service.bridge.open(num_prompts * self.params.n) as stream:
            grammar = None
            if self.params.grammar is not None:
                grammar = await self.service.compile_grammar(self.params.grammar)
            prompts = [self._cut(prompt) for prompt in await encode()]
            choices = [
                self._choice(prompt, index * self.params.n, sample, grammar)
                for index, prompt in enumerate(prompts)
                for sample in range(self.params.n)
            ]
            generation = Generation(stream, choices)
            generation.submit()
            answer = await self._answer(request, generation)
            request[NOTES] = generation.notes()
            return answer

    async def _answer(self, request: web.Request, generation: Generation) -> web.StreamResponse:
        if self.body.stream:
            limits, shows_progress = self.service.limits, self.body.return_progress
            return await stream_answer(request, generation, self.form, limits, shows_progress)
        await generation.finish()
        return json_response(self.form.whole(generation))

    def _cut(self, prompt: EncodedPrompt) -> EncodedPrompt:
        most = self.body.truncate_prompt_tokens
        return replace(prompt, token_ids=last_tokens(prompt.token_ids, most, self.service))

    def _choice(
        self, prompt: EncodedPrompt, first_index: int, sample: int, grammar: CompiledGrammar | None
    ) -> Choice:
        index = first_index + sample
        request = Request(
            f"{self.form.id}-{index}",
            prompt.token_ids,
            self.params,
            self.service.backend.eos_token_ids,
            sample,
            self.arrival_time,
            self.body.cache_salt,
            None if grammar is None else grammar.processor(),
            self.body.priority,
        )
        self.service.bridge.check(request)
        room = self.service.backend.max_model_len - request.num_prompt_tokens
        asked = self.body.asked_max_tokens
        output = OutputStream(self.service.tokenizer, self.params, prompt.token_ids, index)
        is_clamped = asked is not UNSET and asked > room
        return Choice(
            index,
            request,
            output,
            self.form.reply(prompt),
            prompt.echo,
            room if is_clamped else None,
        )
