"""Windows cover a text once; what quantisation costs on the embedded model stays within bounds."""

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from bench.perplexity import Window, cut, read_documents
from sandwich.cli import main
from sandwich.config import EMBEDDED_MODEL
from sandwich.embedded import SAMPLE_FILE
from sandwich.text.tokenizer import Tokenizer

# The goals for each quantisation, as ratios to bf16.
BOUNDS = {"int8": 1.002, "int8-w8a8": 1.01, "int4": 1.05}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(EMBEDDED_MODEL)


def joined(windows: Iterator[Window]) -> list[int]:
    """The predicted tokens of one document, in order."""
    return [token for window in windows for token in window.token_ids[1:]]


@pytest.mark.parametrize("length", [2, 3, 7, 1000])
def test_every_token_of_a_document_but_the_first_is_predicted_once(
    tokenizer: Tokenizer, length: int
) -> None:
    text = "def add(a, b):\n    return a + b\n"
    windows = list(cut(tokenizer, [text], length, None))
    assert joined(iter(windows)) == tokenizer.encode(text)[1:]
    assert all(2 <= len(window.token_ids) <= length for window in windows)
    assert windows[0].token_ids[0] == tokenizer.encode(text)[0]
    for before, after in pairwise(windows):
        assert before.token_ids[-1] == after.token_ids[0]


@pytest.mark.parametrize("max_tokens", [1, 4, 9, 10, 11])
def test_a_limit_of_tokens_is_kept_across_documents(tokenizer: Tokenizer, max_tokens: int) -> None:
    documents = ["import os, sys\n", "import re\n"] * 3
    windows = list(cut(tokenizer, documents, 5, max_tokens))
    assert sum(window.num_predicted for window in windows) == max_tokens


def test_the_default_text_is_the_one_that_travels_with_the_model() -> None:
    assert read_documents(None) == [(EMBEDDED_MODEL / SAMPLE_FILE).read_text(encoding="utf-8")]


def measure(tmp_path: Path, names: Sequence[str], *flags: str) -> dict[str, dict[str, float]]:
    """Rows of a run on the embedded model, by quantisation, held against their bounds."""
    file = tmp_path / "perplexity.json"
    command = ["bench", "perplexity", "--quantizations", ",".join(names), "--json", str(file)]
    assert main([*command, *flags]) == 0
    result = json.loads(file.read_text())
    assert {"commit", "machine", "dtype"} <= result.keys()
    rows = {row["quantization"]: row for row in result["quantizations"]}
    assert list(rows) == list(names)
    assert rows["none"]["ratio"] == 1.0
    for name in names[1:]:
        assert 0.99 < rows[name]["ratio"] < BOUNDS[name]
        assert rows[name]["weight_bytes"] < 0.55 * rows["none"]["weight_bytes"]
    return rows


def test_four_bits_cost_little_perplexity(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("none", "int4")
    measure(tmp_path, names, "--max-tokens", "300", "--executor", "reference")
    table = capsys.readouterr().out
    assert all(name in table for name in names)


@pytest.mark.slow
def test_quantisation_costs_little_perplexity_in_the_programs_that_serve(tmp_path: Path) -> None:
    rows = measure(tmp_path, ("none", *BOUNDS))
    assert rows["none"]["perplexity"] == pytest.approx(28.09, rel=0.002)  # the model's card


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--quantizations", "none,int3"], "'int3' is not one of none, int8, int8-w8a8, int4"),
        (["--quantization", "int8"], "--quantizations"),
        (["--text", "no-such-file"], "--text no-such-file"),
        (["--max-tokens", "0"], "'0' is not a whole number from 1 up"),
    ],
)
def test_a_mistake_is_one_line(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "perplexity", *flags]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
