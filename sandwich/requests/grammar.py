"""What a reply must look like: a JSON schema, a pattern, a choice or a grammar, as one value."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sandwich.errors import InvalidRequestError

Kind = Literal["json_schema", "regex", "choice", "grammar"]


@dataclass(frozen=True)
class Grammar:
    """`text`: the JSON of a schema or of a list of choices, a regular expression, or a grammar.

    A grammar is in Lark's syntax as llguidance has it, or in llama.cpp's GBNF. `is_strict`: a
    keyword of a schema that cannot be kept is refused, not left out.
    """

    kind: Kind
    text: str
    is_strict: bool = True

    @classmethod
    def json_object(cls) -> Grammar:
        """Any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | str, *, is_strict: bool = True) -> Grammar:
        """JSON that a schema describes, as an object or as text."""
        text = schema if isinstance(schema, str) else json.dumps(schema)
        return cls("json_schema", text, is_strict)

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        """Text that a regular expression matches from begin to end."""
        return cls("regex", pattern)

    @classmethod
    def choice(cls, texts: Sequence[str]) -> Grammar:
        """One of some texts."""
        if not texts or not all(isinstance(text, str) and text for text in texts):
            raise InvalidRequestError("a choice needs texts that are not empty", "choice")
        return cls("choice", json.dumps(list(texts)))

    @classmethod
    def grammar(cls, text: str) -> Grammar:
        """Text that a grammar derives from `start` (Lark) or `root` (GBNF)."""
        return cls("grammar", text)
