"""Which requests run in the next step, and what a step's tokens mean for them.

Requests have a rank: the time they came, moved by their priority. Two places are sorted by it,
`waiting` and `running`, the first in front. A request is admitted when the cache has room for all
the tokens it must prefill, so prefill never waits for blocks halfway; if seats or room are lacking,
running requests of a later rank yield. Decode grows block by block; if none is free the last of the
running gives up its blocks and goes back to `waiting`, to be recomputed. The first of all is never
the victim, and alone it always fits (`check` saw to that), so it moves on: there is no live-lock.
"""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import Any, Final

from codegen.spec import Phase
from sandwich.engine.batching import build_batch, decode_batch
from sandwich.engine.pace import FixedPace, Load, Pace, Turn
from sandwich.engine.stats import EngineStats
from sandwich.errors import ContextLengthError, InvalidRequestError
from sandwich.executor.base import Batch, ExecutorLimits, StepKind
from sandwich.requests.block_store import BlockStore
from sandwich.requests.kv_cache import Copies, KvCache, Prefix, num_common_tokens
from sandwich.requests.request import Request, SampledTokens, TokenEvent
from schedules.mixed.plan import TAKE_TURNS, MixedMode, MixedPlan

_RANK: Final = attrgetter("rank")


class Scheduler:
    """`add` and `abort` requests, `schedule` a batch, `commit` its tokens; on one thread.

    When there is work of both phases, `pace` says what happens: prefill and decode steps take
    turns, or the decoding requests ride in prefill steps. If the mixed plan co-runs, one prefill
    batch is in flight (`schedule_corun`) while decode batches come and go. A request in flight
    keeps its blocks until its batch is committed: it is not preempted, and not freed if it is
    aborted.

    pace: by default that of the mixed plan. clock: seconds, as time.monotonic.
    """

    def __init__(
        self,
        limits: ExecutorLimits,
        mixed: MixedPlan = TAKE_TURNS,
        shares_prefixes: bool = True,
        pace: Pace | None = None,
        clock: Callable[[], float] = time.monotonic,
        store: BlockStore | None = None,
    ) -> None:
        self.limits = limits
        self.use(mixed, pace)
        self.cache = KvCache(
            limits.num_blocks, limits.block_size, shares_prefixes, self.pace.token_cost, store
        )
        self.clock = clock
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.stats = EngineStats(num_blocks=limits.num_blocks, store=store)
        self._requests: dict[str, Request] = {}
        self._last: StepKind | None = None
        self.in_flight: Batch | None = None
        self._decoded: Batch | None = None  # the last one, if all that run were in it and go on

    def use(self, mixed: MixedPlan, pace: Pace | None = None) -> None:
        """From the next step on, follow another mixed plan, and a pace if it is not the plan's."""
        self.mixed = mixed
        self.pace = pace or FixedPace(mixed, self.limits.max_num_batched_tokens)

    def has_work(self) -> bool:
        return bool(self._requests) or self.in_flight is not None

    @property
    def max_tokens_per_request(self) -> int:
        """Prompt and output that any one request may reach: the model's length or the cache's."""
        return min(self.limits.max_model_len, self.cache.num_token_slots)

    def check(self, request: Request) -> None:
        """Raise unless the request, alone, can run to its end. Any thread may call it."""
        num_prompt_tokens = request.num_prompt_tokens
        if num_prompt_tokens == 0:
            raise InvalidRequestError(
                "the prompt has 0 tokens but at least 1 is needed; give it some text", "prompt"
            )
        least_new = 0 if request.params.max_tokens == 0 else 1
        if num_prompt_tokens + least_new <= self.max_tokens_per_request:
            return
        if self.limits.max_model_len <= self.cache.num_token_slots:
            limit = f"the model's length is {self.limits.max_model_len} tokens (--max-model-len)"
        else:
            limit = f"the KV cache holds {self.cache.num_token_slots} tokens (--kv-cache-size)"
        raise ContextLengthError(
            f"the prompt has {num_prompt_tokens} tokens and {least_new} or more are to follow, but "
            f"{limit}; shorten the prompt or start the server with a higher limit"
        )

    def add(self, request: Request) -> None:
        """Queue a request. Raises what `check` raises, and if the id is in use."""
        self.check(request)
        if request.request_id in self._requests:
            raise InvalidRequestError(
                f"request id {request.request_id!r} is in use; choose another", "request_id"
            )
        num_fitting = self.max_tokens_per_request - request.num_prompt_tokens
        asked = request.params.max_tokens
        request.max_tokens = num_fitting if asked is None else min(asked, num_fitting)
        self._requests[request.request_id] = request
        insort(self.waiting, request, key=_RANK)
        self._update_gauges()

    def abort(self, request_id: str) -> list[TokenEvent]:
        """End a request now, between steps. No event if it is unknown or has ended."""
        request = self._requests.get(request_id)
        if request is None:
            return []
        event = self._end(request, "abort", self.clock())
        (self.running if request in self.running else self.waiting).remove(request)
        self._decoded = None
        self._update_gauges()
        return [event]

    def schedule(self) -> Batch | None:
        """The next batch; None only if no request is left or all wait for the batch in flight."""
        if batch := self._going_on():
            return batch
        batch = self._next_batch()
        assert batch or self.in_flight or not self._requests, "requests are left, but none can run"
        if batch is not None:
            was_decode = self._last is StepKind.DECODE
            is_switch = self._last is not None and was_decode != (batch.phase is Phase.DECODE)
            self.stats.num_phase_switches += is_switch
            self._last = batch.kind
        self._update_gauges()
        return batch

    def schedule_corun(self) -> Batch | None:
        """A prefill batch that is in flight from now until `commit`; None if there may be none.

        It needs a plan that co-runs, work of both phases and, lest it blocks those that decode, a
        free block for each of them that is to grow.
        """
        if self.mixed.mode is not MixedMode.CORUN or self.in_flight:
            return None
        decoding = self._past_prefill()
        num_missing = sum(self.cache.num_missing(r.block_table, r.num_tokens) for r in decoding)
        if decoding and num_missing <= self.cache.num_available:
            self.in_flight = self._prefill_batch(self.mixed.chunk_tokens or self._most_tokens)
            self._update_gauges()
        return self.in_flight

    def commit(self, batch: Batch, sampled: list[SampledTokens]) -> list[TokenEvent]:
        """Book a step: `sampled[i]` is of `batch.requests[i]`. Returns what its requests saw."""
        now, num_requests = self.clock(), len(self._requests)
        events: list[TokenEvent] = []
        self._end_of(batch)
        for request, start, count, tokens in zip(
            batch.requests, batch.starts, batch.num_new, sampled, strict=True
        ):
            if request.is_finished:  # aborted while the step ran
                self.cache.free(request)
                continue
            if tokens.error is not None:  # what the step computed is not to be relied on
                events.append(self._end(request, "error", now, tokens.error))
                continue
            request.book(start + count, tokens)
            self._publish(request, count)
            if tokens.token_ids:
                events.append(self._accept(request, tokens, now))
            elif request.pool is not None and not request.is_prefilling:
                self.stats.num_prompt_tokens += request.num_prompt_tokens
                events.append(self._end(request, "stop", now, embedding=request.pool.vector()))
        is_all = len(batch.requests) == len(self.running)
        if batch.phase is Phase.DECODE and is_all and num_requests == len(self._requests):
            self._decoded = batch
            return events
        self._decoded = None
        self.running = [request for request in self.running if not request.is_finished]
        self._update_gauges()
        return events

    def retract(self, batch: Batch) -> None:
        """A step was stopped: it is as if it had never been scheduled."""
        self._end_of(batch)
        self._decoded = None
        for request in batch.requests:
            if request.is_finished:
                self.cache.free(request)
        self._update_gauges()

    def _end_of(self, batch: Batch) -> None:
        """The batch is in flight no longer, and its copies are made."""
        if batch is self.in_flight:
            self.in_flight = None
        for source, _ in batch.copies:
            self.cache.release(source)

    def check_integrity(self) -> None:
        """Assert everything that must hold between two steps."""
        assert {*self.running, *self.waiting} == {*self._requests.values()}
        assert self.running == sorted(self.running, key=_RANK), "out of order"
        assert self.waiting == sorted(self.waiting, key=_RANK), "out of order"
        assert len(self.running) <= self.limits.max_num_seqs
        assert all(not request.block_table.num_blocks for request in self.waiting)
        in_flight = self.in_flight.requests if self.in_flight else ()
        held = {*self.running, *in_flight}
        copies = self.in_flight.copies if self.in_flight else ()
        self.cache.check_integrity(held, [source for source, _ in copies])

    def _going_on(self) -> Batch | None:
        """The last batch, a token later, if `_next_batch` would make just that: it decoded, and no
        request has come, gone, or needs a block.
        """
        if self._decoded is None or self.waiting or self.in_flight:
            return None
        return self._decoded.one_token_on(self.limits.block_size)

    def _next_batch(self) -> Batch | None:
        if self.in_flight:
            return decode_batch(self._decoding())
        self._make_way()
        turn = self._turn()
        if turn.rides:
            riders = self._decoding()
            return self._prefill_batch(turn.num_tokens, riders) or decode_batch(riders)
        if turn.num_tokens and (batch := self._prefill_batch(turn.num_tokens)):
            return batch
        return decode_batch(self._decoding()) or self._prefill_batch(self._most_tokens)

    def _turn(self) -> Turn:
        decoding = self._past_prefill()
        prefilling = [request for request in self.running if request.is_prefilling]
        if not prefilling and not self.waiting:
            return Turn(0)
        return self.pace.turn(Load(decoding, prefilling, self.waiting, self._last, self.clock()))

    def _past_prefill(self) -> list[Request]:
        return [request for request in self.running if not request.is_prefilling]

    @property
    def _most_tokens(self) -> int:
        """Most prompt tokens of a step."""
        return self.limits.max_num_batched_tokens

    def _prefill_batch(self, num_tokens: int, riders: Sequence[Request] = ()) -> Batch | None:
        """One token of each rider, then `num_tokens` of prompts or fewer, the first in rank first.

        A request that prefills runs and is no rider, so the limits leave it a token.
        """
        most = min(self._most_tokens, self.limits.max_step_tokens - len(riders))
        num_tokens = min(num_tokens, most)
        requests, lengths = list(riders), [1] * len(riders)
        copies: Copies = []
        for request in self._prefilling(copies):
            start = request.num_computed
            end = min(request.num_prefill_tokens, start + num_tokens)
            requests.append(request)
            lengths.append(end - start)
            num_tokens -= end - start
            if num_tokens == 0:
                break
        if len(requests) == len(riders):
            return None
        return build_batch(Phase.PREFILL, requests, lengths, len(riders), copies)

    def _make_way(self) -> None:
        """Preempt running requests of a later rank than the first that waits, until it fits."""
        while self.waiting and self.running and self.running[-1].rank > self.waiting[0].rank:
            num_running = len(self.running)
            has_seat = num_running < self.limits.max_num_seqs
            if has_seat and self.cache.room(self.waiting[0], num_spare=num_running) is not None:
                return
            self._preempt(self.running.pop())

    def _prefilling(self, copies: Copies) -> Iterator[Request]:
        """Requests with tokens to prefill, those that run first; admits waiting ones as it gets to
        them and adds what is to be copied for them.
        """
        yield from [request for request in self.running if request.is_prefilling]
        while self.waiting and len(self.running) < self.limits.max_num_seqs:
            request = self.waiting[0]
            # One block to grow into for each that runs, lest the newcomer be preempted at once.
            prefix = self.cache.room(request, num_spare=len(self.running))
            if prefix is None or self.is_worth_waiting(request, prefix):
                return
            del self.waiting[0]
            self._admit(request, prefix, copies)
            yield request

    def is_worth_waiting(self, request: Request, prefix: Prefix) -> bool:
        """Whether a running request is about to compute a block or more that this one can share."""
        if not self.cache.shares_prefixes:
            return False
        tokens = request.token_ids[: request.num_skippable_tokens]
        least = self.cache.num_tokens(prefix) + self.limits.block_size
        return any(
            num_common_tokens(tokens, other.token_ids[: other.num_prefill_tokens]) >= least
            for other in self.running
            if other.is_prefilling and other.cache_salt == request.cache_salt
        )

    def _admit(self, request: Request, prefix: Prefix, copies: Copies) -> None:
        copies += self.cache.admit(request, prefix)
        request.num_prefill_tokens = request.num_tokens
        if request.first_scheduled_time is None:
            request.first_scheduled_time = self.clock()
            request.num_cached_tokens = request.num_computed
        self.stats.num_prefix_queries += request.num_tokens
        self.stats.num_prefix_hits += request.num_computed
        insort(self.running, request, key=_RANK)

    def _publish(self, request: Request, num_new: int) -> None:
        """Let what was computed be found, if it fills a block or is the end of a prompt."""
        is_end = request.num_computed == request.num_prefill_tokens
        if is_end or num_new > 1 or request.num_computed % self.limits.block_size == 0:
            self.cache.publish(request, with_tail=is_end)

    def _decoding(self) -> list[Request]:
        """Requests past their prompt, each with a slot for its last token, in order of rank;
        without those that need the blocks of a request in flight.
        """
        # Preemption shortens `running` from its end while it is walked, never before `request`.
        return [
            request for request in self.running if not request.is_prefilling and self._grow(request)
        ]

    def _grow(self, request: Request) -> bool:
        """Give the request a slot for its last token; False if it was itself the one to yield, or
        if the one to yield is in flight.
        """
        while not self.cache.can_grow(request.block_table, request.num_tokens):
            if self._is_in_flight(self.running[-1]):
                return False
            victim = self.running.pop()
            self._preempt(victim)
            if victim is request:
                return False
        self.cache.grow(request.block_table, request.num_tokens)
        return True

    def _is_in_flight(self, request: Request) -> bool:
        return self.in_flight is not None and request in self.in_flight.requests

    def _preempt(self, request: Request) -> None:
        self.cache.free(request)
        request.num_computed = request.num_prefill_tokens = 0
        request.num_preemptions += 1
        self.stats.num_preemptions += 1
        insort(self.waiting, request, key=_RANK)

    def _accept(self, request: Request, tokens: SampledTokens, now: float) -> TokenEvent:
        """Append the tokens up to the first that ends the request; the others are dropped."""
        is_first = request.num_output_tokens == 0
        self.stats.num_prompt_tokens += request.num_prompt_tokens if is_first else 0
        num_taken = 0
        reason = "length" if request.max_tokens == 0 else None  # only prompt_logprobs were wanted
        while reason is None and num_taken < len(tokens.token_ids):
            reason = request.accept(tokens.token_ids[num_taken], now)
            num_taken += 1
        self.stats.num_generated_tokens += num_taken
        if reason is not None:
            self._finish(request, reason)
        return TokenEvent(
            request_id=request.request_id,
            token_ids=tokens.token_ids[:num_taken],
            logprobs=tokens.logprobs[:num_taken],
            finish_reason=request.finish_reason,
            stop_reason=request.stop_reason(),
            prompt_logprobs=request.all_prompt_logprobs() if is_first else None,
            timings=request.timings(now) if request.is_finished else None,
        )

    def _end(
        self, request: Request, reason: str, now: float, error: str | None = None, **more: Any
    ) -> TokenEvent:
        """Finish a request for a reason that is no token."""
        self._finish(request, reason)
        return TokenEvent(
            request_id=request.request_id,
            finish_reason=reason,
            error=error,
            timings=request.timings(now),
            **more,
        )

    def _finish(self, request: Request, reason: str) -> None:
        """Give up what the request holds; the caller takes it out of `running` or `waiting`."""
        request.finish_reason = reason
        if not self._is_in_flight(request):
            self.cache.free(request, is_sound=reason != "error")
        self.stats.num_finished[reason] += 1
        del self._requests[request.request_id]

    def _update_gauges(self) -> None:
        self.stats.num_waiting = len(self.waiting)
        self.stats.num_running = len(self.running)
        self.stats.num_used_blocks = self.cache.num_used
