"""POST /v1/completions: text or token ids in, text out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from sandwich.errors import InvalidRequestError
from sandwich.server.call import Call, EncodedPrompt
from sandwich.server.generation import Choice, Generation, Piece
from sandwich.server.protocol import CompletionBody
from sandwich.server.responses import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    PromptProgress,
    Timings,
    Usage,
)
from sandwich.server.service import Service
from sandwich.server.validation import Prompt, completion_params, split_prompts
from sandwich.server.wire import new_id, read_body, service_of
from sandwich.text.output import PromptLogprobs, TokenLogprobs
from sandwich.text.reply import Reply


async def completions(request: web.Request) -> web.StreamResponse:
    arrival_time = time.monotonic()
    service = service_of(request)
    body = await read_body(request, CompletionBody)
    service.check_model(body.model)
    params = completion_params(body, service.backend.generation_defaults, service.limits)
    prompts = split_prompts(body.prompt, service.limits)
    form = CompletionFormat(new_id("cmpl"), int(time.time()), body, service)
    call = Call(service, body, params, form, arrival_time)
    return await call.answer(request, len(prompts), lambda: encode_prompts(service, prompts, body))


async def encode_prompts(
    service: Service, prompts: Sequence[Prompt], body: CompletionBody
) -> list[EncodedPrompt]:
    """Token ids of each prompt, and its text if that is to be echoed."""
    if body.suffix:
        return await _encode_around(service, prompts, body)
    encoded = await service.encode_prompts(prompts, body.add_special_tokens)
    found = []
    for prompt, token_ids in zip(prompts, encoded, strict=True):
        text = prompt if isinstance(prompt, str) else ""
        if body.echo and not isinstance(prompt, str):
            text = service.tokenizer.decode(prompt)
        found.append(EncodedPrompt(token_ids, text if body.echo else ""))
    return found


async def _encode_around(
    service: Service, prompts: Sequence[Prompt], body: CompletionBody
) -> list[EncodedPrompt]:
    """Each prompt and the suffix, around what the model is to fill in."""
    if body.echo:
        raise InvalidRequestError("echo and suffix exclude each other; give one", "echo")
    found = []
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise InvalidRequestError(
                "a suffix needs a prompt of text; token ids can have the tokens around the hole "
                "in them already",
                "suffix",
            )
        ids = await service.encode_around(prompt, body.suffix, body.add_special_tokens)
        found.append(EncodedPrompt(ids))
    return found


@dataclass(frozen=True)
class CompletionFormat:
    """How the answers of one call look."""

    has_named_events: ClassVar[bool] = False

    id: str
    created: int
    body: CompletionBody
    service: Service
    _begun: set[int] = field(default_factory=set)  # choices whose first chunk is out

    def whole(self, generation: Generation) -> Completion:
        choices = []
        for choice in generation.choices:
            result = choice.output.result()
            logprobs = self._logprobs(choice, result.logprobs or (), is_first=True)
            text = choice.prompt_text + result.text
            choices.append(
                CompletionChoice(
                    choice.index, text, logprobs, result.finish_reason, result.stop_reason
                )
            )
        return self._completion(choices, generation.usage(), generation.timings())

    def reply(self, prompt: EncodedPrompt) -> Reply:
        """All is text."""
        return Reply()

    def chunks(self, generation: Generation, piece: Piece) -> Iterator[Completion]:
        """As generation.ChunkFormat. The first chunk of a choice has the echoed prompt."""
        choice, delta, _ = piece
        is_first = choice.index not in self._begun
        self._begun.add(choice.index)
        text = (choice.prompt_text if is_first else "") + delta.text
        logprobs = self._logprobs(choice, delta.logprobs, is_first)
        if text or logprobs is not None or delta.finish_reason is not None:
            entry = CompletionChoice(
                choice.index, text, logprobs, delta.finish_reason, delta.stop_reason
            )
            usage = generation.usage() if self.body.has_continuous_usage else None
            yield self._completion([entry], usage if self.body.includes_usage else UNSET)

    def progress(self, progress: PromptProgress) -> Iterator[Completion]:
        yield msgspec.structs.replace(self._completion([], UNSET), prompt_progress=progress)

    def closing(self, generation: Generation) -> Iterator[Completion]:
        if self.body.includes_usage:
            yield self._completion([], generation.usage(), generation.timings())

    def _completion(
        self,
        choices: list[CompletionChoice],
        usage: Usage | UnsetType | None,
        timings: Timings | UnsetType = UNSET,
    ) -> Completion:
        return Completion(
            id=self.id,
            created=self.created,
            model=self.service.backend.model_name,
            choices=choices,
            usage=usage,
            timings=timings,
        )

    def _logprobs(
        self, choice: Choice, entries: Sequence[TokenLogprobs], is_first: bool
    ) -> CompletionLogprobs | None:
        """Logprobs of `entries`, after those of the prompt if it is echoed in this chunk."""
        if self.body.logprobs is UNSET:
            return None
        logprobs = CompletionLogprobs([], [], [], [])
        if is_first and choice.output.prompt_logprobs is not None:
            self._add_prompt(logprobs, choice, choice.output.prompt_logprobs)
        for entry in entries:
            _add(logprobs, entry, entry.text_offset + len(choice.prompt_text))
        return logprobs if logprobs.tokens else None

    def _add_prompt(
        self, logprobs: CompletionLogprobs, choice: Choice, entries: PromptLogprobs
    ) -> None:
        for token_id, entry in zip(choice.output.prompt_token_ids, entries, strict=True):
            if entry is None:
                logprobs.tokens.append(self.service.tokenizer.token_text(token_id))
                logprobs.token_logprobs.append(None)
                logprobs.top_logprobs.append(None)
                logprobs.text_offset.append(0)
            else:
                _add(logprobs, entry, entry.text_offset)


def _add(logprobs: CompletionLogprobs, entry: TokenLogprobs, text_offset: int) -> None:
    """The chosen token comes first, so that it stays if a second token has the same text."""
    top: dict[str, float] = {}
    for candidate in entry.values():
        top.setdefault(candidate.decoded_token, candidate.logprob)
    logprobs.tokens.append(entry.chosen.decoded_token)
    logprobs.token_logprobs.append(entry.chosen.logprob)
    logprobs.top_logprobs.append(top)
    logprobs.text_offset.append(text_offset)
