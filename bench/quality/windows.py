"""A text in windows of tokens: each token but the first is predicted once, or, to compare with
tools that do so, those of the windows' first part not at all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sandwich.errors import ConfigError
from sandwich.text.tokenizer import Tokenizer

# This project's licence, which every model has surely read, and documents of this project as they
# were when the file was frozen, which models older than that have not.
SAMPLE: Final = Path(__file__).with_name("sample.txt")


@dataclass(frozen=True)
class Window:
    """Consecutive tokens of a text; the first is there to predict the others from.

    Of these others, `skip` are not predicted either.
    """

    token_ids: tuple[int, ...]
    skip: int = 0

    @property
    def num_predicted(self) -> int:
        return len(self.token_ids) - 1 - self.skip


def read_text(path: str | None) -> str:
    """The text to predict; ConfigError if the file is unusable."""
    file = SAMPLE if path is None else Path(path)
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--text {file}: {error}") from error


def cut(
    tokenizer: Tokenizer, text: str, length: int, max_tokens: int | None = None, skip: int = 0
) -> list[Window]:
    """Windows of up to `length` tokens, `max_tokens` predicted ones at most in all.

    A window begins with the last token of the one before; where `skip` leaves out the first
    predictions of each, behind it. ConfigError if nothing is to predict.
    """
    if skip > length - 2:
        raise ConfigError(
            f"--skip is {skip}, but a window of {length} tokens has {length - 1} to predict; at "
            f"most {length - 2} can be skipped"
        )
    windows = list(_cut(tokenizer.encode(text), length, max_tokens or math.inf, skip))
    if not windows:
        raise ConfigError(
            f"--text has fewer than {skip + 2} tokens, so that there is nothing to predict"
        )
    return windows


def _cut(ids: list[int], length: int, left: float, skip: int) -> Iterator[Window]:
    for start in range(0, len(ids) - 1, length if skip else length - 1):
        window = Window(tuple(ids[start : start + int(min(length, left + skip + 1))]), skip)
        if window.num_predicted < 1:
            return
        left -= window.num_predicted
        yield window
