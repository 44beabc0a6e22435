"""JSON objects that are not complete yet: which members are there, and how far they go."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Final

_STRING: Final = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
# A string, perhaps cut off at the end of the text, or a bracket.
_MARK: Final = re.compile(r'"(?:[^"\\]|\\.)*(?:"|\\?$)|[{}\[\]]', re.DOTALL)
_SCALAR: Final = re.compile(r"[^\s,}\]]*")
_SPACE: Final = re.compile(r"\s*")


@dataclass(frozen=True, slots=True)
class Member:
    """Where a value begins in the text, and ends, if it does."""

    start: int
    end: int | None


@dataclass(slots=True)
class PartialObject:
    """An object whose text may go on. `end`: behind its last brace. `is_broken`: it is no JSON."""

    members: dict[str, Member] = field(default_factory=dict)
    end: int | None = None
    is_broken: bool = False


def read_object(text: str, start: int = 0) -> PartialObject:
    """What is known of the object that begins at `start`."""
    found = PartialObject()
    at = _skip(text, start)
    if at == len(text):
        return found
    if text[at] != "{":
        found.is_broken = True
        return found
    at += 1
    while (at := _skip(text, at)) < len(text):
        if text[at] == "}":
            found.end = at + 1
            return found
        if text[at] == "," and found.members:
            at = _skip(text, at + 1)
        key = _STRING.match(text, at)
        if key is None:
            found.is_broken = at < len(text) and text[at] != '"'
            return found
        at = _skip(text, key.end())
        if at == len(text):
            return found
        if text[at] != ":":
            found.is_broken = True
            return found
        at = _skip(text, at + 1)
        if at == len(text):
            return found
        end = _end_of_value(text, at)
        found.members[json.loads(key[0], strict=False)] = Member(at, end)
        if end is None:
            return found
        at = end
    return found


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None
    return match.end()


def _end_of_value(text: str, start: int) -> int | None:
    """Behind the value that begins at `start`; None if it may go on."""
    if text[start] == '"':
        match = _STRING.match(text, start)
        return None if match is None else match.end()
    if text[start] not in "{[":
        match = _SCALAR.match(text, start)
        assert match is not None
        return match.end() if match.end() < len(text) else None
    depth = 0
    for mark in _MARK.finditer(text, start):
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(mark[0], 0)
        if depth == 0:
            return mark.end()
    return None
