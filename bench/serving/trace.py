"""A synthetic trace: chat, code completion, agents and summaries, with lengths as they are met.

Lengths are log-normal. Medians and spreads are rounded from what was published of real traffic:
ShareGPT conversations (vLLM, SOSP 2023: 161 tokens in and 338 out on average), Azure's traces of
code completion (Splitwise, ISCA 2024: 1500 in and 13 out at the median), the articles and
highlights of CNN/DailyMail; agents as tool loops behind one long system prompt. The texts are
random words: what is realistic here is how long, how many and how much of it is shared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bench.serving.conversations import Conversation, Turn, drawn
from bench.serving.words import Words


@dataclass(frozen=True)
class LogNormal:
    """Tokens: the median, the standard deviation of the logarithm, and where it is cut."""

    median: int
    sigma: float
    most: int

    def draw(self, rng: np.random.Generator, scale: float) -> int:
        tokens = self.median * float(np.exp(self.sigma * rng.standard_normal()))
        return max(1, round(scale * min(tokens, self.most)))


@dataclass(frozen=True)
class Kind:
    """One sort of traffic. share: of all conversations; mean_turns: of a geometric distribution;
    system: tokens in front, the same ones in every conversation of this kind.
    """

    name: str
    share: float
    system: int
    prompt: LogNormal
    answer: LogNormal
    mean_turns: float
    later_prompt: LogNormal | None = None  # of all turns but the first; None: as the first


KINDS = (
    Kind("chat", 0.5, 40, LogNormal(70, 1.2, 1024), LogNormal(230, 0.8, 1024), 3.0),
    Kind("code", 0.2, 0, LogNormal(1500, 0.6, 4096), LogNormal(13, 1.0, 256), 1.0),
    Kind(
        "agents",
        0.15,
        1200,
        LogNormal(120, 0.6, 512),
        LogNormal(60, 0.7, 512),
        6.0,
        LogNormal(220, 0.9, 2048),
    ),
    Kind("summaries", 0.15, 30, LogNormal(950, 0.5, 3072), LogNormal(75, 0.4, 256), 1.0),
)
MAX_TURNS = 12


def trace(
    words: Words, kinds: tuple[str, ...], scale: float, rng: np.random.Generator
) -> Iterator[Conversation]:
    """Conversations of these kinds (none: all), in their shares; every length times `scale`."""
    chosen = [kind for kind in KINDS if not kinds or kind.name in kinds]
    shares = np.array([kind.share for kind in chosen])
    systems = {kind.name: drawn(words, round(scale * kind.system), rng) for kind in chosen}
    while True:
        kind = chosen[rng.choice(len(chosen), p=shares / shares.sum())]
        num_turns = min(int(rng.geometric(1 / kind.mean_turns)), MAX_TURNS)
        prompts = [kind.prompt, *[kind.later_prompt or kind.prompt] * (num_turns - 1)]
        turns = tuple(
            Turn(drawn(words, prompt.draw(rng, scale), rng), kind.answer.draw(rng, scale))
            for prompt in prompts
        )
        yield Conversation(turns, systems[kind.name], kind.name)
