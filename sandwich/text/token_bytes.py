"""What bytes a token of the vocabulary stands for, and which tokens do not yet have a fixed text.

Vocabularies write bytes in three ways: byte-level alphabets (GPT-2, Llama 3), `<0x0A>` tokens
beside SentencePiece pieces (Llama 2), or plain text. Which one it is, the tokenizer's decoder says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_level_alphabet() -> dict[str, int]:
    """Character -> byte: printable Latin-1 is itself, the rest stand from U+0100 on (GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + index): byte for index, byte in enumerate(others)
    }


def incomplete_utf8_suffix(data: bytes) -> int:
    """How many bytes at the end begin a UTF-8 character that is not complete yet (0 to 3)."""
    for length in range(1, min(3, len(data)) + 1):
        byte = data[-length]
        if byte & 0xC0 == 0x80:  # a continuation byte: its lead is further left
            continue
        expected = 2 if 0xC2 <= byte < 0xE0 else 3 if 0xE0 <= byte < 0xF0 else 4
        return length if 0xC2 <= byte < 0xF5 and length < expected else 0
    return 0


class TokenBytes:
    """The bytes of one vocabulary. `decoder`: JSON of the tokenizer's decoder (b"null": none)."""

    def __init__(self, decoder: bytes) -> None:
        steps = list(_steps(json.loads(decoder)))
        kinds = {step["type"] for step in steps}
        self._alphabet = _byte_level_alphabet() if "ByteLevel" in kinds else None
        self._has_byte_tokens = "ByteFallback" in kinds
        self._replacements = [pair for step in steps if (pair := _replacement(step))]

    def of(self, token: str) -> bytes:
        """The bytes of a vocabulary entry; a leading space is kept."""
        if self._alphabet is not None:
            try:
                return bytes(self._alphabet[char] for char in token)
            except KeyError:  # an added token, which is stored as plain text
                return token.encode()
        if self._has_byte_tokens and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        for old, new in self._replacements:
            token = token.replace(old, new)
        return token.encode()

    def num_open(self, pending: Sequence[str]) -> int:
        """How many tokens at the end of `pending` a later token may still give another text.

        Byte-level tokens are open while what they end with is part of a character, which may begin
        in a token that also ends another one. A run of `<0x..>` tokens
        is open to its end: if one byte of it is wrong, the decoder rejects the whole run. `pending`
        begins after the last token that was not open.
        """
        if self._has_byte_tokens:
            return len(pending) if pending and _BYTE_TOKEN.fullmatch(pending[-1]) else 0
        pieces = [self.of(token) for token in pending]
        data, end, count = b"".join(pieces), sum(map(len, pieces)), 0
        # A character that something else than a continuation byte follows stays incomplete.
        while incomplete_utf8_suffix(data[:end]) and (data[end:] or b"\x80")[0] & 0xC0 == 0x80:
            count += 1
            end -= len(pieces[-count])
        return count


def _steps(decoder: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if decoder is None:
        return
    yield decoder
    for step in decoder.get("decoders", ()):
        yield from _steps(step)


def _replacement(step: dict[str, Any]) -> tuple[str, str] | None:
    if step["type"] == "Metaspace":
        return step["replacement"], " "
    if step["type"] == "Replace" and "String" in step["pattern"]:
        return step["pattern"]["String"], step["content"]
    return None
