"""A text in windows of tokens, each token but the first to be predicted once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sandwich.errors import ConfigError
from sandwich.text.tokenizer import Tokenizer

# Documents of this project as they were when it was frozen: English about a subject that no model
# was trained or quantised on, under this project's own licence.
SAMPLE: Final = Path(__file__).with_name("sample.txt")


@dataclass(frozen=True)
class Window:
    """Consecutive tokens of a text; the first is there to predict the others from."""

    token_ids: tuple[int, ...]

    @property
    def num_predicted(self) -> int:
        return len(self.token_ids) - 1


def read_text(path: str | None) -> str:
    """The text to predict; ConfigError if the file is unusable."""
    file = SAMPLE if path is None else Path(path)
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--text {file}: {error}") from error


def cut(
    tokenizer: Tokenizer, text: str, length: int, max_tokens: int | None = None
) -> list[Window]:
    """Windows of up to `length` tokens, `max_tokens` predicted ones at most in all.

    A window begins with the last token of the one before. ConfigError if nothing is to predict.
    """
    windows = list(_cut(tokenizer.encode(text), length, max_tokens or math.inf))
    if not windows:
        raise ConfigError("--text has fewer than two tokens, so that there is nothing to predict")
    return windows


def _cut(ids: list[int], length: int, left: float) -> Iterator[Window]:
    for start in range(0, len(ids) - 1, length - 1):
        window = Window(tuple(ids[start : start + int(min(length, left + 1))]))
        if not window.num_predicted:
            return
        left -= window.num_predicted
        yield window
