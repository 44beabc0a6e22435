"""Prompts around a hole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers

from sandwich.errors import InvalidRequestError
from sandwich.text.infill import infill_prompt
from sandwich.text.tokenizer import Tokenizer

QWEN = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]
DEEPSEEK = ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"]


def with_tokens(folder: Path, tokens: list[str]) -> Tokenizer:
    file = folder / "tokenizer.json"
    backend = tokenizers.Tokenizer.from_file(str(file))
    backend.add_special_tokens(tokens)
    backend.save(str(file))
    return Tokenizer(folder)


@pytest.mark.parametrize("family", [QWEN, DEEPSEEK])
def test_the_hole_comes_last(
    tmp_path: Path, save_tokenizer: Callable[..., Path], family: list[str]
) -> None:
    tokenizer = with_tokens(save_tokenizer(tmp_path), family)
    begin, hole, end = map(tokenizer.token_id, family)
    first, second = (tokenizer.encode(text, add_special_tokens=False) for text in ("def f", "\n"))
    bare = [begin, *first, hole, *second, end]
    assert infill_prompt(tokenizer, "def f", "\n", add_special_tokens=False) == bare
    assert infill_prompt(tokenizer, "def f", "\n") == [tokenizer.bos_token_id, *bare]


def test_other_tokenizers_refuse(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequestError, match="no tokens to fill in"):
        infill_prompt(tokenizer, "a", "b")
