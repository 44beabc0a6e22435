"""Texts of an exact number of tokens, made of common words.

A word's cost is what it adds to a text, so that words can be put together without tokenising the
whole. Whoever counts is a function: a local tokenizer, or the server's own /tokenize.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sandwich.errors import SandwichError

Count = Callable[[str], int]

_TEXT = """
the of and to in is that it for was on are as with be at have this from or one had by word but
not what all were we when your can said there use an each which do how their if will up other
about out many then them these so some her would make like him into time has look two more write
go see number no way could people my than first water been call who oil its now find long down
day did get come made may part over new sound take only little work know place year live me back
give most very after thing our just name good sentence man think say great where help through
much before line right too mean old any same tell boy follow came want show also around form
three small set put end does another well large must big even such because turn here why ask
went men read need land different home us move try kind hand picture again change off play spell
air away animal house point page letter mother answer found study still learn should world high
every near add food between own below country plant last school father keep tree never start
city earth eye light thought head under story saw left few while along might close something
seem next hard open example begin life always those both paper together got group often run
important until children side feet car mile night walk white sea began grow took river four
carry state once book hear stop without second later miss idea enough eat face watch far really
almost let above girl sometimes mountain cut young talk soon list song being leave family
"""
COMMON = tuple(_TEXT.split())


@dataclass(frozen=True)
class Words:
    """Words with a space before them, and how many tokens each adds to a text."""

    texts: tuple[str, ...]
    costs: tuple[int, ...]

    @staticmethod
    def counted(count: Count) -> Words:
        """The common words as `count` sees them; the cheapest alone, so that texts are varied.

        SandwichError if they cannot be told apart from nothing.
        """
        alone = count(" the")
        costs = [count(f" the {word}") - alone for word in COMMON]
        least = min(costs)
        if least < 1:
            raise SandwichError(
                f"a word of the prompts counts as {least} tokens; "
                "name the model's own tokenizer with --tokenizer"
            )
        kept = [(f" {w}", c) for w, c in zip(COMMON, costs, strict=True) if c <= least + 1]
        return Words(*zip(*kept, strict=True))

    @staticmethod
    def uncounted() -> Words:
        """Where nobody counts: a token each, as nearly all tokenizers have it."""
        return Words(tuple(f" {word}" for word in COMMON), (1,) * len(COMMON))

    def text(self, num_tokens: int, rng: np.random.Generator) -> str:
        """One word or more of so many tokens, short by less than the cheapest word costs."""
        costs = np.array(self.costs)
        chosen: list[int] = []
        left = num_tokens
        while left >= costs.min() or not chosen:
            fitting = np.flatnonzero(costs <= max(left, costs.min()))
            how_many = max(1, left // costs.max())
            some = fitting[rng.integers(len(fitting), size=how_many)]
            chosen += some.tolist()
            left -= int(costs[some].sum())
        return "".join(self.texts[i] for i in chosen)
