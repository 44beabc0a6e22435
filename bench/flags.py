"""Values of flags that benchmarks have in common: checked, and refused in one line."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Collection

WHOLE = "a whole number from {least} up"


def whole(least: int) -> Callable[[str], int]:
    """Whole numbers from `least` up."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not {WHOLE.format(least=least)}")
        return int(text)

    return parse


count = whole(1)


def counts(text: str) -> tuple[int, ...]:
    """Whole numbers from 1 up with commas between them, in their order."""
    return tuple(count(part) for part in text.split(","))


def number(text: str, is_fine: Callable[[float], bool], what: str) -> float:
    """A number for which `is_fine` holds; `what` says in words which ones these are."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value) or not is_fine(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return value


def positive(text: str) -> float:
    """Any number above 0."""
    return number(text, lambda value: 0 < value < math.inf, "a number above 0")


def ratio(text: str) -> float:
    """A number from 0 to 1."""
    return number(text, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def some_of(known: Collection[str], has_none: bool = False) -> Callable[[str], tuple[str, ...]]:
    """Known names with commas between them, each once; `none` for no name, if that is allowed."""

    def parse(text: str) -> tuple[str, ...]:
        if has_none and text == "none":
            return ()
        names = tuple(dict.fromkeys(text.split(",")))
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(known)}")
        return names

    return parse
