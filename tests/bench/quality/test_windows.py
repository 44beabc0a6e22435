"""Windows cover a text once."""

from itertools import pairwise
from pathlib import Path

import pytest

from bench.quality.windows import SAMPLE, cut, read_text
from sandwich.errors import ConfigError
from sandwich.text.byte_tokenizer import byte_tokenizer
from sandwich.text.tokenizer import Tokenizer

TEXT = "def add(a, b):\n    return a + b\n"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(byte_tokenizer())


@pytest.mark.parametrize("length", [2, 3, 7, 1000])
def test_every_token_but_the_first_is_predicted_once(tokenizer: Tokenizer, length: int) -> None:
    windows = cut(tokenizer, TEXT, length)
    predicted = [token for window in windows for token in window.token_ids[1:]]
    assert predicted == tokenizer.encode(TEXT)[1:]
    assert all(2 <= len(window.token_ids) <= length for window in windows)
    assert windows[0].token_ids[0] == tokenizer.encode(TEXT)[0]
    for before, after in pairwise(windows):
        assert before.token_ids[-1] == after.token_ids[0]


@pytest.mark.parametrize("max_tokens", [1, 4, 9, 10, 11])
def test_a_limit_of_tokens_is_kept(tokenizer: Tokenizer, max_tokens: int) -> None:
    windows = cut(tokenizer, TEXT, 5, max_tokens)
    assert sum(window.num_predicted for window in windows) == max_tokens


@pytest.mark.parametrize(("length", "skip"), [(5, 1), (5, 3), (8, 4), (30, 28), (31, 15)])
def test_windows_that_skip_share_no_token_and_predict_from_there_on(
    tokenizer: Tokenizer, length: int, skip: int
) -> None:
    ids = tokenizer.encode(TEXT)
    windows = cut(tokenizer, TEXT, length, skip=skip)
    scored = [token for window in windows for token in window.token_ids[1 + skip :]]
    assert scored == [token for index, token in enumerate(ids) if index % length > skip]
    assert sum(window.num_predicted for window in windows) == len(scored)
    assert all(window.num_predicted >= 1 for window in windows)


@pytest.mark.parametrize("max_tokens", [1, 3, 4, 5])
def test_a_limit_counts_no_token_that_is_skipped(tokenizer: Tokenizer, max_tokens: int) -> None:
    windows = cut(tokenizer, TEXT, 8, max_tokens, skip=4)
    assert sum(window.num_predicted for window in windows) == max_tokens


def test_a_window_keeps_something_to_predict(tokenizer: Tokenizer) -> None:
    assert cut(tokenizer, TEXT, 5, skip=3)
    with pytest.raises(ConfigError, match=r"--skip is 4, .* at most 3"):
        cut(tokenizer, TEXT, 5, skip=4)


def test_a_text_of_one_token_predicts_nothing(tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match=r"fewer than 2 .*nothing to predict"):
        cut(tokenizer, "", 5)
    with pytest.raises(ConfigError, match="fewer than 42 "):
        cut(tokenizer, TEXT, 50, skip=40)


def test_the_sample_is_there_unless_another_text_is_named(tmp_path: Path) -> None:
    assert read_text(None) == SAMPLE.read_text(encoding="utf-8")
    file = tmp_path / "text"
    file.write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(ConfigError, match=r"--text .*text: "):
        read_text(str(file))
