"""The lists of tokens in a GGUF file's metadata, checked."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final

from sandwich.checkpoint.gguf.header import Header
from sandwich.errors import ModelError

PREFIX: Final = "tokenizer.ggml."


class TokenKind(IntEnum):
    """Values of `token_type` that matter here."""

    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4


class Vocabulary:
    """The lists of tokens that every kind has."""

    def __init__(self, header: Header) -> None:
        self.file = header.file
        self._metadata = header.metadata
        self.tokens: list[str] = self.strings("tokens")
        if not self.tokens:
            raise ModelError(
                f"{self.file}: has no tokenizer ({PREFIX}tokens); give a file that holds one"
            )
        types = self.get("token_type")
        self.types: list[Any] = types if types is not None else [1] * len(self.tokens)
        if not isinstance(self.types, list) or len(self.types) != len(self.tokens):
            raise self.error("token_type", f"a list of {len(self.tokens)} numbers is needed")

    def get(self, key: str, default: Any = None) -> Any:
        return self._metadata.get(PREFIX + key, default)

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, "true or false is needed")
        return value

    def strings(self, key: str) -> list[str]:
        """A list of texts; empty if there is none."""
        values = self.get(key, [])
        if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
            raise self.error(key, "a list of texts is needed")
        return values

    def scores(self) -> list[float]:
        values = self.get("scores")
        if not isinstance(values, list) or len(values) != len(self.tokens):
            raise self.error("scores", f"a list of {len(self.tokens)} numbers is needed")
        return values

    def ids(self) -> dict[str, int]:
        """Token -> id, the first of equal ones."""
        return {token: index for index, token in reversed(list(enumerate(self.tokens)))}

    def token(self, key: str) -> str | None:
        """The token whose id stands under `key`."""
        index = self.get(key)
        if index is None:
            return None
        if not isinstance(index, int) or not 0 <= index < len(self.tokens):
            raise self.error(key, f"an id below {len(self.tokens)} is needed")
        return self.tokens[index]

    def error(self, key: str, needed: str) -> ModelError:
        value = repr(self.get(key))
        shown = value if len(value) <= 80 else value[:80] + "..."
        return ModelError(f"{self.file}: {PREFIX}{key} is {shown}; {needed}")

    def added(self, *kinds: TokenKind) -> list[str]:
        """Tokens of these kinds that are some text, in the order of their ids."""
        pairs = zip(self.tokens, self.types, strict=True)
        return [token for token, kind in pairs if kind in kinds and token]
