"""The choices of one call on their way: token events in, text deltas, usage and timings out.

Shared by text and chat completions, streamed or not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import msgspec
from aiohttp import web
from msgspec import UNSET

from sandwich.errors import SandwichError
from sandwich.requests.request import Request, RequestTimings, TokenEvent
from sandwich.server.errors import REQUEST_ID, RequestFailedError, describe
from sandwich.server.request_stream import RequestStream
from sandwich.server.responses import (
    CompletionTokensDetails,
    PromptProgress,
    PromptTokensDetails,
    Timings,
    Usage,
)
from sandwich.server.server_limits import ServerLimits
from sandwich.server.sse import EventStream
from sandwich.text.output import OutputDelta, OutputStream
from sandwich.text.reply import Part, Reply

_MAX_INLINE_LOGPROBS = 256  # more prompt logprobs than these become text off the event loop


@dataclass(slots=True)
class Choice:
    """One completion of one prompt."""

    index: int
    request: Request
    output: OutputStream
    reply: Reply
    prompt_text: str = ""  # shown in front of the text, with `echo`
    clamped_max_tokens: int | None = None  # what fits, if the client asked for more


class Piece(NamedTuple):
    """What one event adds to a choice: tokens and text, and the parts of the reply in that."""

    choice: Choice
    delta: OutputDelta
    parts: list[Part]


class Generation:
    """All choices of one call, over the stream that brings their events."""

    def __init__(self, stream: RequestStream, choices: Sequence[Choice]) -> None:
        self.choices = choices
        self._stream = stream
        self._by_id = {choice.request.request_id: choice for choice in choices}
        self._num_open = len(choices)
        self._failure: RequestFailedError | None = None  # raised once what came before is out

    def submit(self) -> None:
        self._stream.submit([choice.request for choice in self.choices])

    @property
    def is_over(self) -> bool:
        """Whether every choice has had its last event."""
        return self._num_open == 0 and self._failure is None

    async def advance(self, timeout_s: float | None = None) -> list[Piece]:
        """What came in since the last call, at least one piece; [] after `timeout_s`.

        Raises RequestFailedError if the engine ended a choice with an error, and what ended the
        stream.
        """
        pieces = []
        events = [] if self._failure else await self._stream.next(timeout_s)
        for event in events:
            choice = self._by_id[event.request_id]
            delta = await self._feed(choice.output, event)
            if delta.finish_reason == "error":
                self._failure = RequestFailedError(choice.output.error or "the engine failed")
            else:
                pieces.append(Piece(choice, delta, choice.reply.feed(delta)))
            if choice.output.needs_abort:
                self._stream.abort(event.request_id)
            if event.finish_reason is not None:
                self._num_open -= 1
                self._stream.settle(event.request_id, choice.output.finish_reason or "error")
        if self._failure is not None and not pieces:
            raise self._failure
        return pieces

    async def finish(self) -> None:
        """Run to the end."""
        while not self.is_over:
            await self.advance()

    def progress(self) -> PromptProgress | None:
        """How far the prompts are; None once all are done. The engine goes on meanwhile."""
        requests = [choice.request for choice in self.choices]
        if all(request.first_token_time is not None for request in requests):
            return None
        return PromptProgress(
            total=sum(request.num_prompt_tokens for request in requests),
            cache=sum(request.num_cached_tokens for request in requests),
            processed=sum(min(r.num_computed, r.num_prompt_tokens) for r in requests),
            time_ms=(time.monotonic() - min(r.arrival_time for r in requests)) * 1e3,
        )

    def usage(self) -> Usage:
        """Tokens of all choices; the prompt of several choices counts once."""
        first_choices = [choice for choice in self.choices if choice.request.choice_index == 0]
        num_prompt = sum(choice.request.num_prompt_tokens for choice in first_choices)
        timings = [choice.output.timings for choice in first_choices]
        num_cached = sum(each.num_cached_tokens for each in timings if each)
        num_output = sum(len(choice.output.token_ids) for choice in self.choices)
        num_reasoning = sum(choice.reply.num_reasoning_tokens for choice in self.choices)
        clamped = [c.clamped_max_tokens for c in self.choices if c.clamped_max_tokens is not None]
        return Usage(
            num_prompt,
            num_output,
            num_prompt + num_output,
            PromptTokensDetails(num_cached),
            CompletionTokensDetails(num_reasoning) if num_reasoning else UNSET,
            min(clamped) if clamped else UNSET,
        )

    def timings(self) -> Timings:
        """Prefill: first step to first token. Decode: first token to last, over all choices.

        The first token of a choice comes out of prefill, so decode's rate does not count it, and
        prefill's does not count what was found in the cache.
        """
        timings = [choice.output.timings for choice in self.choices if choice.output.timings]
        starts = [each.first_scheduled for each in timings if each.first_scheduled is not None]
        prefill_ends = [_prefill_end(each) for each in timings]
        decode_starts = [each.first_token for each in timings if each.first_token is not None]
        decode_ends = [each.last_token for each in timings if each.last_token is not None]
        prefill_s = max(prefill_ends) - min(starts) if starts else 0.0
        decode_s = max(decode_ends) - min(decode_starts) if decode_starts else 0.0
        usage = self.usage()
        num_cached = usage.prompt_tokens_details.cached_tokens
        num_prefilled = usage.prompt_tokens - num_cached
        num_decoded = usage.completion_tokens - len(decode_starts)
        return Timings(
            cache_n=num_cached,
            prompt_n=num_prefilled,
            prompt_ms=prefill_s * 1e3,
            prompt_per_second=_rate(num_prefilled, prefill_s),
            predicted_n=usage.completion_tokens,
            predicted_ms=decode_s * 1e3,
            predicted_per_second=_rate(num_decoded, decode_s),
        )

    def notes(self) -> dict[str, Any]:
        """What log and traces tell of this call."""
        usage, timings = self.usage(), self.timings()
        reasons = [choice.output.finish_reason for choice in self.choices]
        return {
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": timings.cache_n,
            "completion_tokens": usage.completion_tokens,
            "prefill_ms": round(timings.prompt_ms, 3),
            "decode_ms": round(timings.predicted_ms, 3),
            "finish_reasons": reasons,
            "phases": self._phases(),
        }

    def _phases(self) -> dict[str, tuple[float, float]]:
        """Start and end of what the first choice went through, by time.monotonic()."""
        timings = self.choices[0].output.timings
        if timings is None or timings.first_scheduled is None:
            return {}
        prefilled = _prefill_end(timings)
        phases = {
            "waiting": (timings.arrival, timings.first_scheduled),
            "prefill": (timings.first_scheduled, prefilled),
        }
        if timings.last_token is not None and timings.last_token > prefilled:
            phases["decode"] = (prefilled, timings.last_token)
        return phases

    async def _feed(self, output: OutputStream, event: TokenEvent) -> OutputDelta:
        if event.prompt_logprobs and len(event.prompt_logprobs) > _MAX_INLINE_LOGPROBS:
            return await asyncio.to_thread(output.feed, event)
        return output.feed(event)


def _prefill_end(timings: RequestTimings) -> float:
    """Without a token (max_tokens 0) the request ends with its prefill."""
    return timings.finished if timings.first_token is None else timings.first_token


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


class ChunkFormat(Protocol):
    """How one endpoint writes its stream. `has_named_events`: as in sse.EventStream."""

    has_named_events: ClassVar[bool]

    def chunks(self, generation: Generation, piece: Piece) -> Iterable[msgspec.Struct]: ...

    def progress(self, progress: PromptProgress) -> Iterable[msgspec.Struct]: ...

    def closing(self, generation: Generation) -> Iterable[msgspec.Struct]: ...


async def stream_answer(
    request: web.Request,
    generation: Generation,
    chunk_format: ChunkFormat,
    limits: ServerLimits,
    shows_progress: bool,
) -> web.StreamResponse:
    """Write the pieces as they come, comments while none come, and the closing chunks.

    `shows_progress`: and how far the prompts are, while they are computed.

    The status line is out before the first token, so a later failure becomes an error event.
    """
    events = EventStream(request, limits.write_timeout_s, chunk_format.has_named_events)
    await events.open()
    wait_s = limits.progress_s if shows_progress else limits.keep_alive_s
    told: PromptProgress | None = None
    try:
        while not generation.is_over:
            pieces = await generation.advance(wait_s)
            progress = generation.progress() if shows_progress and not pieces else None
            if pieces:
                await events.send(
                    chunk for piece in pieces for chunk in chunk_format.chunks(generation, piece)
                )
            elif progress is not None and (told is None or progress.processed > told.processed):
                await events.send(chunk_format.progress(progress))
                told = progress
            else:
                await events.keep_alive()
        await events.send(chunk_format.closing(generation))
    except SandwichError as error:
        await events.send_error(describe(error, request[REQUEST_ID]))
    return await events.close()
