"""Texts of an exact number of tokens, and what conversations are made of them."""

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from bench.serving.command import local_counter
from bench.serving.conversations import (
    Conversation,
    Lengths,
    Text,
    Turn,
    first,
    multi_turn,
    prefix_repetition,
    random_prompts,
    share_gpt,
)
from bench.serving.trace import KINDS, trace
from bench.serving.words import COMMON, Words
from sandwich.errors import ConfigError, SandwichError


def by_spaces(text: str) -> int:
    return len(text.split())


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 100, 1000])
def test_a_text_has_the_tokens_it_was_asked_for(num_tokens: int) -> None:
    assert by_spaces(Words.counted(by_spaces).text(num_tokens, rng())) == num_tokens


@pytest.mark.parametrize("num_tokens", [3, 4, 5, 6, 7, 101])
def test_also_where_a_word_is_several_tokens(num_tokens: int, tokenizer_folder: Path) -> None:
    count = local_counter(str(tokenizer_folder))  # bytes: the shortest word is a space and a letter
    words = Words.counted(count)
    assert min(words.costs) == 3
    text = words.text(num_tokens, rng())
    assert num_tokens - min(words.costs) < count(text) <= num_tokens


def test_words_that_are_nothing_to_the_tokenizer_are_refused() -> None:
    with pytest.raises(SandwichError, match="--tokenizer"):
        Words.counted(lambda text: 1)


def test_the_common_words_are_each_there_once() -> None:
    assert max(Counter(COMMON).values()) == 1


def test_the_same_seed_gives_the_same_prompts() -> None:
    lengths = Lengths(20, 5, spread=0.5)
    runs = [first(random_prompts(Words.uncounted(), lengths, 3, rng(s)), 4) for s in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_lengths_lie_around_their_mean() -> None:
    drawn = [
        Lengths(10, 4, spread=0.5).draw(generator) for generator in [rng()] for _ in range(300)
    ]
    assert {p for p, _ in drawn} == set(range(5, 16))
    assert {a for _, a in drawn} == set(range(2, 7))


def test_prefixes_repeat() -> None:
    made = islice(prefix_repetition(Words.uncounted(), 8, Lengths(4, 2), 3, rng()), 50)
    prompts = [conversation.turns[0].user for conversation in made]
    assert all(by_spaces(p.text) == p.num_tokens == 12 for p in prompts)
    assert len({tuple(p.text.split()[:8]) for p in prompts}) == 3


def test_conversations_share_their_system_prompt_and_the_last_is_cut() -> None:
    taken = first(multi_turn(Words.uncounted(), Lengths(5, 2), 3, 7, rng()), 8)
    assert [len(conversation.turns) for conversation in taken] == [3, 3, 2]
    assert {conversation.system for conversation in taken} == {taken[0].system}
    assert taken[0].system.num_tokens == 7


def test_what_does_not_fit_is_left_out() -> None:
    turns = tuple(Turn(Text("x", n), 10) for n in (50, 60, 2000))
    long, short = Conversation(turns), Conversation(turns[:1])
    assert [len(c.turns) for c in first(iter([long, short]), 9, max_tokens=300)] == [2, 1]
    with pytest.raises(ConfigError, match="--max-model-len"):
        first(iter([long, short]), 9, max_tokens=75)
    assert first(iter([]), 0) == []


@pytest.mark.parametrize("kinds", [(), ("code",), ("chat", "agents")])
def test_the_trace_has_the_kinds_in_their_shares(kinds: tuple[str, ...]) -> None:
    taken = list(islice(trace(Words.uncounted(), kinds, 0.02, rng()), 800))
    wanted = [kind for kind in KINDS if not kinds or kind.name in kinds]
    found = Counter(conversation.kind for conversation in taken)
    assert set(found) == {kind.name for kind in wanted}
    total = sum(kind.share for kind in wanted)
    for kind in wanted:
        assert found[kind.name] / 800 == pytest.approx(kind.share / total, abs=0.05)


def test_the_lengths_of_the_trace_have_their_medians() -> None:
    for kind in KINDS:
        taken = islice(trace(Words.uncounted(), (kind.name,), 1.0, rng()), 200)
        first_turns = [conversation.turns[0] for conversation in taken]
        prompts = np.median([turn.user.num_tokens for turn in first_turns])
        answers = np.median([turn.max_tokens for turn in first_turns])
        assert prompts == pytest.approx(kind.prompt.median, rel=0.25)
        assert answers == pytest.approx(kind.answer.median, rel=0.25)


def said(*texts: str) -> dict[str, list[dict[str, str]]]:
    return {"conversations": [{"from": "x", "value": text} for text in texts]}


def test_a_sharegpt_file_is_read_and_what_is_too_short_or_long_left_out(tmp_path: Path) -> None:
    file = tmp_path / "sharegpt.json"
    good, other = "a b c d e", "f g h i j k"
    entries = [
        said(good, other, good, other),
        said("too short", other),
        said(good, "no"),
        said("long " * 2000, other),
        said(good),
    ]
    file.write_text(json.dumps(entries))
    [single] = share_gpt(file, by_spaces, rng(), None, max_turns=1)
    assert single.turns == (Turn(Text(good, 5), 6),)
    fixed = list(share_gpt(file, by_spaces, rng(), 9, max_turns=8))
    assert sorted(len(conversation.turns) for conversation in fixed) == [1, 2]
    assert {turn.max_tokens for conversation in fixed for turn in conversation.turns} == {9}


@pytest.mark.parametrize("content", ["{", '[{"x": 1}]', "[]"])
def test_a_file_that_is_no_sharegpt_file_is_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    file.write_text(content)
    with pytest.raises(ConfigError, match="--dataset-path"):
        list(share_gpt(file, by_spaces, rng(), None, max_turns=1))
