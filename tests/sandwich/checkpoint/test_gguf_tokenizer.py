"""Tokenizers out of GGUF metadata give the ids of the tokenizers they were made of."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandwich.checkpoint.gguf.header import Header
from sandwich.checkpoint.gguf.tokenizer import end_token_ids, read_tokenizer
from sandwich.errors import ModelError
from sandwich.text.messages import Chat
from sandwich.text.tokenizer import Tokenizer
from tests.sandwich.checkpoint.conftest import llama_metadata
from tests.sandwich.conftest import byte_level, metaspace

TEXTS = ["", "a", " a", "hello  world", "café 😀\n\n日本", "<s>a</s> b", "<tool>déjà vu", "a\x00b"]
# SentencePiece pieces and their scores; the higher one is merged first.
PIECES = {
    "▁": -20.0,
    "a": -21.0,
    "b": -22.0,
    "c": -23.0,
    "é": -24.0,
    "ab": -1.0,
    "▁a": -2.0,
    "bc": -3.0,
    "▁ab": -4.0,
    "abc": -5.0,
    "▁▁": -6.0,
    "ca": -7.0,
}


def header(**changes: Any) -> Header:
    metadata = llama_metadata(**{f"tokenizer__ggml__{k}": v for k, v in changes.items()})
    return Header(Path("m.gguf"), metadata, {})


def sentencepiece(**changes: Any) -> Header:
    """A Llama 2 kind of vocabulary."""
    pieces = {"<unk>": 0.0, "<s>": 0.0, "</s>": 0.0}
    pieces |= {f"<0x{byte:02X}>": 0.0 for byte in range(256)}
    kinds = [2, 3, 3, *[6] * 256, *[1] * len(PIECES)]
    pieces |= PIECES
    facts: dict[str, Any] = {
        "model": "llama",
        "tokens": list(pieces),
        "scores": list(pieces.values()),
        "token_type": kinds,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        "add_bos_token": None,
        "merges": None,
        "pre": None,
    }
    return header(**(facts | changes))


def merged(text: str) -> list[str]:
    """SentencePiece's BPE, slowly: the best pair of neighbours again and again; then bytes."""
    parts = list(text.replace(" ", "▁"))
    while True:
        pairs = [(PIECES.get(a + b), -i) for i, (a, b) in enumerate(pairwise(parts))]
        scored = [(score, at) for score, at in pairs if score is not None]
        if not scored:
            break
        at = -max(scored)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    in_bytes = ([p] if p in PIECES else [f"<0x{b:02X}>" for b in p.encode()] for p in parts)
    return [token for tokens in in_bytes for token in tokens]


# ---- byte-level ----


@pytest.mark.parametrize("text", TEXTS)
def test_a_byte_level_tokenizer_survives_the_way_through_metadata(text: str) -> None:
    backend = byte_level()
    found = read_tokenizer(header()).backend
    assert found.encode(text).ids == backend.encode(text).ids
    plain = found.encode(text, add_special_tokens=False).ids
    assert plain == backend.encode(text, add_special_tokens=False).ids
    assert found.decode(plain) == backend.decode(plain)


@given(text=st.text())
def test_any_text_is_its_bytes(text: str) -> None:
    tokenizer = Tokenizer(FILES)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()


FILES = read_tokenizer(header())


@pytest.mark.parametrize(
    ("pre", "text", "words"),
    [
        ("gpt-2", "don't 1234  x", ["don", "'t", "Ġ1234", "Ġ", "Ġx"]),
        ("gpt-2", "DON'T", ["DON", "'", "T"]),
        ("smollm", "a 1234\n\n", ["a", "Ġ", "1", "2", "3", "4", "ĊĊ"]),
        ("llama-bpe", "DON'T 1234567\n\n x", ["DON", "'T", "Ġ", "123", "456", "7", "ĊĊ", "Ġx"]),
        ("llama-bpe", "a.b_c", ["a", ".b", "_c"]),
        ("qwen2", "x 12", ["x", "Ġ", "1", "2"]),
        ("qwen2", "cafe\u0301", ["cafÃ©"]),
        ("llama-bpe", "cafe\u0301", ["cafe", "ÌģĠ".removesuffix("Ġ")]),
        ("gpt-4o", "HelloWorld's 1234/\n", ["Hello", "World's", "Ġ", "123", "4", "/Ċ"]),
        ("tekken", "HelloWorld's 12", ["Hello", "World", "'s", "Ġ", "1", "2"]),
    ],
)
def test_words_are_cut_as_the_file_says(pre: str, text: str, words: list[str]) -> None:
    backend = read_tokenizer(header(pre=pre)).backend
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    assert backend.pre_tokenizer is not None
    assert [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)] == words


@pytest.mark.parametrize(
    ("pre", "given_bos", "has_bos"),
    [
        ("gpt-2", None, False),
        ("gpt-2", True, True),
        ("llama-bpe", None, True),
        ("llama-bpe", False, False),
    ],
)
def test_a_text_begins_with_bos_where_the_file_or_its_kind_says(
    pre: str, given_bos: bool | None, has_bos: bool
) -> None:
    backend = read_tokenizer(header(pre=pre, add_bos_token=given_bos)).backend
    assert (backend.encode("a").ids[0] == 0) is has_bos
    both = read_tokenizer(header(add_eos_token=True)).backend.encode("a").ids
    assert (both[0], both[-1]) == (0, 1)


def test_a_chat_begins_with_one_bos() -> None:
    chat = Chat(messages=[{"role": "user", "content": "hi"}])
    [prompt] = Tokenizer(FILES).encode_chats([chat])
    assert prompt.token_ids.count(0) == 1


# ---- SentencePiece ----


@given(text=st.text("abc é", max_size=24))
def test_pieces_merge_in_the_order_of_their_scores(text: str) -> None:
    spaced = f" {text}" if text and not text.startswith(" ") else text
    assert SENTENCEPIECE.encode(text, add_special_tokens=False).tokens == merged(spaced)
    assert UNSPACED.encode(text, add_special_tokens=False).tokens == merged(text)


SENTENCEPIECE = read_tokenizer(sentencepiece()).backend
UNSPACED = read_tokenizer(sentencepiece(add_space_prefix=False)).backend


@pytest.mark.parametrize("text", ["", "a", "ab  c", "日本 a\n", "😀"])
def test_a_text_of_pieces_and_bytes_is_decoded_again(text: str) -> None:
    ids = SENTENCEPIECE.encode(text).ids
    assert ids[0] == 1  # Llama 2's begins with BOS
    assert SENTENCEPIECE.decode(ids) == text
    assert UNSPACED.decode(UNSPACED.encode(text).ids) == text


def test_a_unigram_tokenizer_survives_the_way_through_metadata() -> None:
    backend = metaspace()
    state = json.loads(backend.to_str())["model"]["vocab"]
    tokens, scores = zip(*state, strict=True)
    kinds = [2, 3, 3, *[1] * (len(tokens) - 3)]
    facts: dict[str, Any] = {"model": "t5", "tokens": list(tokens), "scores": list(scores)}
    found = read_tokenizer(sentencepiece(**facts, token_type=kinds, add_bos_token=False)).backend
    for text in ("a", " a b", "ab é😀"):
        assert found.encode(text).tokens == backend.encode(text).tokens


# ---- what else is said ----


def test_special_tokens_and_templates_have_names() -> None:
    metadata = {
        **llama_metadata(),
        "tokenizer.ggml.padding_token_id": 3,
        "tokenizer.chat_template.tool_use": "tools",
    }
    files = read_tokenizer(Header(Path("m.gguf"), metadata, {}))
    assert files.special_tokens == {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<|end|>",
    }
    assert files.chat_templates == {
        "default": metadata["tokenizer.chat_template"],
        "tool_use": "tools",
    }


def test_replies_end_at_named_tokens_and_at_marks_of_a_turn() -> None:
    assert end_token_ids(header()) == [1, 3]
    assert end_token_ids(header(eot_token_id=2)) == [1, 2, 3]
    assert end_token_ids(header(eos_token_id=None, tokens=None)) == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tokens": None}, "has no tokenizer"),
        ({"tokens": []}, "has no tokenizer"),
        ({"tokens": [1, 2]}, "tokens is .* a list of texts"),
        ({"token_type": [1]}, "token_type is .* a list of 3"),
        ({"model": "bert"}, "model is 'bert'; supported: gpt2, llama, t5"),
        ({"pre": "mine"}, "pre is 'mine'; supported: gpt-2"),
        ({"pre": None}, "pre is None; supported"),
        ({"merges": ["ab"]}, "'ab' is not two parts"),
        ({"merges": ["hello wörld"]}, "tokenizer is damaged"),
        ({"bos_token_id": 100000}, "bos_token_id is 100000; an id below"),
        ({"bos_token_id": "x"}, "bos_token_id is 'x'"),
        ({"add_bos_token": 3}, "add_bos_token is 3; true or false"),
        ({"model": "llama"}, "scores is None; a list of 3"),
    ],
)
def test_a_tokenizer_that_cannot_be_used_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=named):
        read_tokenizer(header(**changes))
