"""Special tokens inside a message's text stay text: a user cannot forge the end of a turn.

A chat template writes control tokens such as `<|im_end|>` around the contents of messages. Where a
content holds such a token itself, it is put between two marks before the template runs; what
the template writes has none. The marked places are then encoded without special tokens, all else
as usual (the method of transformers' `sanitize_control_tokens`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import tokenizers

from sandwich.errors import InvalidRequestError

# Where marks are taken from: rare characters (CJK extension B) that templates do not escape.
_RARE: Final = range(0x20000, 0x2A6DE)
# Encoded in front of a piece and taken away again: without it a tokenizer that puts a space in
# front of a text would do so inside the prompt.
_LEAD: Final = "\n"


@dataclass(frozen=True)
class Marks:
    """Two characters that no input holds, and the special tokens they are put around."""

    start: str
    end: str
    tokens: re.Pattern[str]

    def put(self, value: Any) -> Any:
        """`value` (a text, or an object or list with texts) with every special token marked."""
        if isinstance(value, str):
            return self.tokens.sub(f"{self.start}\\g<0>{self.end}", value)
        if isinstance(value, Mapping):
            return {key: self.put(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.put(item) for item in value]
        return value

    def take_off(self, text: str) -> str:
        return text.replace(self.start, "").replace(self.end, "")

    def split(self, text: str) -> list[str | None]:
        """[text, marked token, text, ...]; None for a mark whose partner the template cut off."""
        pattern = f"{self.start}({self.tokens.pattern}){self.end}|[{self.start}{self.end}]"
        return re.split(pattern, text)


def special_token_pattern(tokens: Iterable[str]) -> re.Pattern[str]:
    """Finds any of `tokens`, the longest first."""
    longest_first = sorted(filter(None, tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def marks_for(values: Any, tokens: re.Pattern[str], template: str) -> Marks | None:
    """Marks for the texts inside `values`; None if no special token is in them.

    They occur neither there nor in the Jinja text `template`. Raises InvalidRequestError if no
    character is left to mark with.
    """
    texts = list(_texts(values))
    if not any(tokens.search(text) for text in texts):
        return None
    used = set(template).union(*texts)
    free = list(islice((char for char in map(chr, _RARE) if char not in used), 2))
    if len(free) < 2:
        raise InvalidRequestError(
            "messages hold control tokens and every rare character of Unicode; leave one out",
            "messages",
        )
    return Marks(free[0], free[1], tokens)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


class MarkedEncoder:
    """Encodes texts with marks. `plain` has the vocabulary of `backend` and no added tokens."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        self._plain = tokenizers.Tokenizer(backend.model)
        for part in ("normalizer", "pre_tokenizer"):
            if (value := getattr(backend, part)) is not None:
                setattr(self._plain, part, value)

    def encode(self, text: str, marks: Marks) -> list[int]:
        """Token ids, without what a model wants around a text.

        Raises InvalidRequestError if the vocabulary itself makes a special token of a marked text.
        """
        first, *rest = marks.split(text)
        ids = self._ids(self._backend, first or "")
        for index, piece in enumerate(rest):
            if not piece:
                continue
            is_marked = index % 2 == 0
            piece_ids = self._inside(self._plain if is_marked else self._backend, piece)
            if is_marked and self._backend.token_to_id(piece) in piece_ids:
                raise InvalidRequestError(
                    f"messages have the control token {piece!r} inside a text, and this model's "
                    "vocabulary has no other way to write it; leave it out",
                    "messages",
                )
            ids += piece_ids
        return ids

    def _inside(self, backend: tokenizers.Tokenizer, piece: str) -> list[int]:
        """Ids of a piece that does not begin the text."""
        lead, ids = self._ids(backend, _LEAD), self._ids(backend, _LEAD + piece)
        return ids[len(lead) :] if ids[: len(lead)] == lead else self._ids(backend, piece)

    @staticmethod
    def _ids(backend: tokenizers.Tokenizer, text: str) -> list[int]:
        [encoding] = backend.encode_batch_fast([text], add_special_tokens=False)
        return encoding.ids
