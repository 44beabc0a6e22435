"""Whatever a model would say, its reply follows the grammar."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sandwich.errors import InvalidRequestError
from sandwich.requests.grammar import Grammar
from sandwich.text import guided
from sandwich.text.guided import GrammarCompiler, GrammarStuckError
from sandwich.text.tokenizer import Tokenizer

PADDING = 37  # ids of the model beyond the tokenizer's
POINT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"enum": ["café", "b"]},
        "at": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
    },
    "required": ["name", "at"],
    "additionalProperties": False,
}
GBNF = 'root ::= "yes" | "no" num\nnum ::= [0-9]+'
LARK = 'start: "yes" | "no" NUM\nNUM: /[0-9]+/'


def compiler_of(tokenizer: Tokenizer) -> GrammarCompiler:
    assert tokenizer.eos_token_id is not None
    return GrammarCompiler(tokenizer, tokenizer.vocab_size + PADDING, [tokenizer.eos_token_id])


@pytest.fixture(scope="module")
def compilers(tokenizers_by_kind: dict[str, Tokenizer]) -> dict[str, GrammarCompiler]:
    return {kind: compiler_of(tokenizer) for kind, tokenizer in tokenizers_by_kind.items()}


def say(
    compiler: GrammarCompiler, tokenizer: Tokenizer, grammar: Grammar, seed: int, most: int = 400
) -> str | None:
    """What a model with random logits says; None if it has not come to an end."""
    rng, processor = np.random.default_rng(seed), compiler.compile(grammar).processor()
    tokens: list[int] = []
    while len(tokens) < most:
        row = rng.standard_normal(tokenizer.vocab_size + PADDING).astype(np.float32)
        processor.mask(row)
        token = int(row.argmax())
        assert token < tokenizer.vocab_size
        processor.accept(token)
        if token == tokenizer.eos_token_id:
            return tokenizer.decode(tokens)
        tokens.append(token)
    return None


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
@pytest.mark.parametrize("seed", range(3))
def test_random_logits_make_json_of_the_schema(
    compilers: dict[str, GrammarCompiler],
    tokenizers_by_kind: dict[str, Tokenizer],
    kind: str,
    seed: int,
) -> None:
    text = say(compilers[kind], tokenizers_by_kind[kind], Grammar.json_schema(POINT), seed)
    assert text is not None
    value = json.loads(text)
    assert set(value) == {"name", "at"}
    assert value["name"] in ("café", "b")
    assert [type(number) for number in value["at"]] == [int, int]


@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        (Grammar.regex(r"[ab]{3}-\d"), r"[ab]{3}-\d"),
        (Grammar.choice(["red", 'a "quoted" one', "日本"]), r'red|a "quoted" one|日本'),
        (Grammar.grammar(GBNF), r"yes|no\d+"),
        (Grammar.grammar(LARK), r"yes|no\d+"),
        (Grammar.json_schema('{"type": "boolean"}'), "true|false"),
    ],
)
def test_random_logits_follow_every_kind_of_grammar(
    compilers: dict[str, GrammarCompiler], tokenizer: Tokenizer, grammar: Grammar, pattern: str
) -> None:
    for seed in range(5):
        text = say(compilers["byte_level"], tokenizer, grammar, seed)
        assert text is not None
        assert re.fullmatch(pattern, text), text


def test_after_the_end_nothing_but_the_end_comes(
    compilers: dict[str, GrammarCompiler], tokenizer: Tokenizer
) -> None:
    processor = compilers["byte_level"].compile(Grammar.choice(["a"])).processor()
    [letter] = tokenizer.encode("a", add_special_tokens=False)
    for expected in (letter, tokenizer.eos_token_id, tokenizer.eos_token_id):
        row = np.zeros(tokenizer.vocab_size + PADDING, np.float32)
        processor.mask(row)
        assert np.flatnonzero(row == 0).tolist() == [expected]
        processor.accept(int(row.argmax()))


def test_requests_of_one_grammar_go_their_own_ways(
    compilers: dict[str, GrammarCompiler], tokenizer: Tokenizer
) -> None:
    compiled = compilers["byte_level"].compile(Grammar.choice(["ab", "cd"]))
    first, second = compiled.processor(), compiled.processor()
    first.accept(tokenizer.encode("a", add_special_tokens=False)[0])
    rows = np.zeros((2, tokenizer.vocab_size + PADDING), np.float32)
    first.mask(rows[0])
    second.mask(rows[1])
    assert np.count_nonzero(rows[0] == 0) < np.count_nonzero(rows[1] == 0)


def test_a_token_that_the_grammar_forbids_ends_the_request_that_took_it(
    compilers: dict[str, GrammarCompiler], tokenizer: Tokenizer
) -> None:
    processor = compilers["byte_level"].compile(Grammar.choice(["a"])).processor()
    processor.accept(tokenizer.encode("b", add_special_tokens=False)[0])
    with pytest.raises(GrammarStuckError, match="cannot go on"):
        processor.mask(np.zeros(tokenizer.vocab_size + PADDING, np.float32))


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        (Grammar.regex("a("), "the regex cannot be used: .*unclosed group"),
        (Grammar.json_schema({"type": 3}), "the json schema cannot be used"),
        (Grammar.json_schema("{oops"), "the json schema cannot be used"),
        (Grammar.json_schema({"$ref": "#/nowhere"}), "does not exist"),
        (Grammar.json_schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (Grammar.grammar("start: nothing"), "unknown name"),
    ],
)
def test_what_is_no_grammar_is_refused(
    compilers: dict[str, GrammarCompiler], grammar: Grammar, reason: str
) -> None:
    with pytest.raises(InvalidRequestError, match=f"(?s){reason}") as caught:
        compilers["byte_level"].compile(grammar)
    assert (caught.value.param, caught.value.code) == ("response_format", "invalid_grammar")


def test_a_lax_schema_leaves_out_what_cannot_be_kept(compilers: dict[str, GrammarCompiler]) -> None:
    schema = {"type": "array", "uniqueItems": True}
    compilers["byte_level"].compile(Grammar.json_schema(schema, is_strict=False))


def test_the_grammars_used_last_are_kept(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guided, "_NUM_KEPT", 2)
    compiler = compiler_of(tokenizer)
    kept = [compiler.compile(Grammar.regex(text)) for text in "ab"]
    assert compiler.compile(Grammar.regex("a")) is kept[0]
    compiler.compile(Grammar.regex("c"))
    assert compiler.compile(Grammar.regex("a")) is kept[0]
    assert compiler.compile(Grammar.regex("b")) is not kept[1]


def test_a_model_without_an_end_cannot_follow_a_grammar(
    save_tokenizer: Callable[..., Path], tmp_path: Path
) -> None:
    tokenizer = Tokenizer(save_tokenizer(tmp_path))
    with pytest.raises(InvalidRequestError, match="no end-of-sequence token"):
        GrammarCompiler(tokenizer, tokenizer.vocab_size, []).compile(Grammar.json_object())


def test_an_empty_choice_is_refused() -> None:
    for texts in ([], [""]):
        with pytest.raises(InvalidRequestError, match="not empty"):
            Grammar.choice(texts)
