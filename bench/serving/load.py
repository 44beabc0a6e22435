"""Conversations meet a server: when each begins, how many requests run, what was answered."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bench.serving.client import Answer, Client
from bench.serving.conversations import Conversation


@dataclass(frozen=True)
class Arrivals:
    """When conversations begin. rate: a second, inf for all at once; burstiness: the shape of the
    gamma distribution of the gaps, 1 for a Poisson process, less for bursts, more for even gaps.
    """

    rate: float = math.inf
    burstiness: float = 1.0

    def times(self, count: int, rng: np.random.Generator) -> list[float]:
        """Seconds after the start. The gaps are scaled so that the last is when it should be."""
        if math.isinf(self.rate) or count == 1:
            return [0.0] * count
        gaps = rng.gamma(self.burstiness, 1 / (self.rate * self.burstiness), count - 1)
        at = np.concatenate(([0.0], np.cumsum(gaps)))
        return list(at * ((count - 1) / self.rate / at[-1]) if at[-1] > 0 else at)


@dataclass(frozen=True)
class Run:
    """What came of a load. seconds: from its start to the last answer's end."""

    answers: list[Answer]
    seconds: float


async def run_load(
    client: Client,
    conversations: Sequence[Conversation],
    starts: Sequence[float],
    max_concurrency: int | None,
    on_answer: Callable[[Answer], None] = lambda answer: None,
) -> Run:
    """Hold the conversations, each from its start on, a turn when the one before has been answered.

    A conversation ends with a turn that fails.
    """
    slots = asyncio.Semaphore(max_concurrency) if max_concurrency else contextlib.nullcontext()
    began = time.perf_counter()
    answers: list[Answer] = []

    async def hold(conversation: Conversation, start: float) -> None:
        await asyncio.sleep(max(0.0, began + start - time.perf_counter()))
        so_far = _SoFar(conversation.system.text, client.is_chat)
        for turn in conversation.turns:
            prompt = so_far.prompt(turn.user.text)
            async with slots:
                answer = await client.ask(prompt, turn.max_tokens, conversation.kind)
            answers.append(answer)
            on_answer(answer)
            if answer.error:
                return
            so_far.add(turn.user.text, answer.text)

    await asyncio.gather(*map(hold, conversations, starts))
    return Run(answers, max((a.times[-1] for a in answers if a.times), default=began) - began)


class _SoFar:
    """What has been said, as messages or as one text."""

    def __init__(self, system: str, is_chat: bool) -> None:
        self._is_chat = is_chat
        self._text = system
        self._messages = [{"role": "system", "content": system}] if system else []

    def prompt(self, text: str) -> str | list[dict[str, str]]:
        if self._is_chat:
            return [*self._messages, {"role": "user", "content": text}]
        return self._text + text

    def add(self, text: str, reply: str) -> None:
        self._text += text + reply
        self._messages += [
            {"role": "user", "content": text},
            {"role": "assistant", "content": reply},
        ]
