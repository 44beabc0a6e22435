"""What clients ask: conversations of one turn or more, made from a seed or read from a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from bench.serving.words import Count, Words
from sandwich.errors import ConfigError

# What is kept of a ShareGPT file; the bounds are those of vLLM's benchmark.
MIN_TOKENS, MAX_PROMPT_TOKENS, MAX_TOTAL_TOKENS = 4, 1024, 2048


MAX_DRAWS_PER_REQUEST = 100
TEMPLATE_TOKENS = 16  # what a chat template may add to a turn


@dataclass(frozen=True)
class Text:
    """A text and how many tokens it has."""

    text: str = ""
    num_tokens: int = 0


@dataclass(frozen=True)
class Turn:
    """What a user adds to the conversation, and the longest answer that is asked for."""

    user: Text
    max_tokens: int


@dataclass(frozen=True)
class Conversation:
    """Turns that follow each other, each with all that was said before it as its prompt.

    system: what stands before the first turn; kind: what tells conversations of a trace apart.
    """

    turns: tuple[Turn, ...]
    system: Text = Text()
    kind: str = ""

    def within(self, max_tokens: int) -> Conversation:
        """The turns before the one that, with all before it, might need more tokens than that."""
        total = self.system.num_tokens
        for i, turn in enumerate(self.turns):
            total += turn.user.num_tokens + turn.max_tokens + TEMPLATE_TOKENS
            if total > max_tokens:
                return replace(self, turns=self.turns[:i])
        return self


def first(
    conversations: Iterator[Conversation], num_requests: int, max_tokens: int | None = None
) -> list[Conversation]:
    """As many conversations as have `num_requests` turns together; the last one may be cut.

    max_tokens: the longest sequence the server takes; turns beyond it are left out. ConfigError if
    hardly anything fits.
    """
    taken: list[Conversation] = []
    left = num_requests
    for conversation in islice(conversations, MAX_DRAWS_PER_REQUEST * num_requests):
        fitting = conversation.within(max_tokens) if max_tokens else conversation
        turns = fitting.turns[:left]
        if turns:
            taken.append(replace(fitting, turns=turns))
            left -= len(turns)
        if left == 0:
            break
    if not taken and num_requests:
        raise ConfigError(
            f"no conversation fits into the {max_tokens} tokens that the server takes; ask for "
            "shorter ones, or start it with a higher --max-model-len"
        )
    return taken


@dataclass(frozen=True)
class Lengths:
    """Tokens of prompts and answers, each drawn evenly from within `spread` of its mean."""

    prompt: int
    answer: int
    spread: float = 0.0  # 0.5: from half to one and a half times the mean

    def draw(self, rng: np.random.Generator) -> tuple[int, int]:
        return self._around(self.prompt, rng), self._around(self.answer, rng)

    def _around(self, mean: int, rng: np.random.Generator) -> int:
        low, high = int(mean * (1 - self.spread)), round(mean * (1 + self.spread))
        return max(1, int(rng.integers(low, high + 1)))


def random_prompts(
    words: Words, lengths: Lengths, prefix: int, rng: np.random.Generator
) -> Iterator[Conversation]:
    """Prompts that share nothing but a prefix of that many tokens."""
    shared = drawn(words, prefix, rng)
    while True:
        prompt, answer = lengths.draw(rng)
        yield _single(shared, drawn(words, prompt, rng), answer)


def prefix_repetition(
    words: Words, prefix: int, lengths: Lengths, num_prefixes: int, rng: np.random.Generator
) -> Iterator[Conversation]:
    """Each prompt is one of a few prefixes and something of its own behind it."""
    prefixes = [drawn(words, prefix, rng) for _ in range(num_prefixes)]
    while True:
        suffix, answer = lengths.draw(rng)
        prefix_text = prefixes[rng.integers(num_prefixes)]
        yield _single(prefix_text, drawn(words, suffix, rng), answer)


def multi_turn(
    words: Words, lengths: Lengths, num_turns: int, system: int, rng: np.random.Generator
) -> Iterator[Conversation]:
    """Conversations of so many turns behind one system prompt that all have in common."""
    shared = drawn(words, system, rng)
    while True:
        sizes = [lengths.draw(rng) for _ in range(num_turns)]
        yield Conversation(tuple(Turn(drawn(words, n, rng), m) for n, m in sizes), shared)


def drawn(words: Words, num_tokens: int, rng: np.random.Generator) -> Text:
    """A new text; none of 0 tokens."""
    return Text(words.text(num_tokens, rng), num_tokens) if num_tokens else Text()


def _single(prefix: Text, rest: Text, answer: int) -> Conversation:
    prompt = Text(prefix.text + rest.text, prefix.num_tokens + rest.num_tokens)
    return Conversation((Turn(prompt, answer),))


def share_gpt(
    path: Path, count: Count, rng: np.random.Generator, answer: int | None, max_turns: int
) -> Iterator[Conversation]:
    """The conversations of a ShareGPT file in random order; answers as long as those in it.

    answer: ask for that many tokens instead. ConfigError if the file has nothing that fits.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        said = [[line["value"] for line in entry["conversations"]] for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"--dataset-path {path}: no ShareGPT file ({error!r})") from error
    order = rng.permutation(len(said))
    found = False
    for i in order:
        conversation = _kept(said[i], count, answer, max_turns)
        if conversation is not None:
            found = True
            yield conversation
    if not found:
        raise ConfigError(
            f"--dataset-path {path}: none of {len(said)} conversations has a prompt of "
            f"{MIN_TOKENS} to {MAX_PROMPT_TOKENS} tokens, and {MAX_TOTAL_TOKENS} in all"
        )


def _kept(said: list[str], count: Count, answer: int | None, max_turns: int) -> Conversation | None:
    """The turns before the first one that is too short or too long; None without any."""
    turns: list[Turn] = []
    total = 0
    for text, reply in islice(zip(said[::2], said[1::2], strict=False), max_turns):
        prompt, num_answer = count(text), answer or count(reply)
        total += prompt + num_answer
        fits = MIN_TOKENS <= prompt <= MAX_PROMPT_TOKENS and num_answer >= MIN_TOKENS
        if not fits or total > MAX_TOTAL_TOKENS:
            break
        turns.append(Turn(Text(text, prompt), num_answer))
    return Conversation(tuple(turns)) if turns else None


def needs(path: str | None, count: Count | None, dataset: str) -> tuple[Path, Count]:
    """What a dataset from a file needs; ConfigError for what is missing."""
    if path is None:
        raise ConfigError(f"--dataset-name {dataset} reads a file; name it with --dataset-path")
    if count is None:
        raise ConfigError(
            f"--dataset-name {dataset} must count tokens, and this server has no /tokenize; "
            "name the model's folder with --tokenizer"
        )
    return Path(path), count
