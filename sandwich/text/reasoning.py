"""Reasoning in front of a model's reply: `<think>...</think>`, told from the reply piece by piece.

Models whose chat templates name these tags write so (DeepSeek R1, Qwen 3, SmolLM 3). Some templates
end the prompt with the opening tag, and the reply then begins inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sandwich.text.output import longest_overlap

_BEGIN: Final = "<think>"
_END: Final = "</think>"


def writes_reasoning(template: str) -> bool:
    """Whether a model with this chat template thinks aloud before it replies."""
    return _END in template


def opens_reasoning(prompt: str) -> bool:
    """Whether the reply to this prompt begins inside its reasoning."""
    return prompt.rstrip().endswith(_BEGIN)


@dataclass(frozen=True, slots=True)
class Thought:
    """More of the reasoning."""

    text: str


class ReasoningParser:
    """Splits one reply. Spaces next to the tags belong to neither side."""

    def __init__(self, is_inside: bool) -> None:
        """`is_inside`: the prompt has the opening tag already."""
        self.is_inside = is_inside
        self._is_open = True  # reasoning goes on or may still begin
        self._has_begun = False  # something of this side has been told, or is known to be spaces
        self._buffer = ""

    def push(self, text: str) -> list[str | Thought]:
        """What is certain with this text."""
        self._buffer += text
        if self._is_open and not self.is_inside:
            self._look_for_begin()
        parts: list[str | Thought] = []
        if self.is_inside:
            self._think(parts)
        if not self._is_open:
            self._say(parts)
        return parts

    def flush(self) -> list[str | Thought]:
        """The reply has ended: what was held back."""
        rest, self._buffer = self._buffer, ""
        if self.is_inside:
            return [Thought(rest.rstrip())] if rest.strip() else []
        return [rest] if rest and not (self._has_begun and not rest.strip()) else []

    def _look_for_begin(self) -> None:
        """Decide whether the reply begins with reasoning, as soon as that can be known."""
        text = self._buffer.lstrip()
        if text.startswith(_BEGIN):
            self._buffer, self.is_inside = text[len(_BEGIN) :], True
        elif not _BEGIN.startswith(text):
            self._is_open = False

    def _think(self, parts: list[str | Thought]) -> None:
        text, end, behind = self._buffer.partition(_END)
        if not self._has_begun:
            text = text.lstrip()
        if end:
            text, self._buffer = text.rstrip(), behind
            self.is_inside = self._is_open = False
        else:
            num_held = longest_overlap(text, _END)
            told = text[: len(text) - num_held].rstrip()
            text, self._buffer = told, text[len(told) :]
        if text:
            parts.append(Thought(text))
        self._has_begun = bool(end) or self._has_begun or bool(text)

    def _say(self, parts: list[str | Thought]) -> None:
        text = self._buffer.lstrip() if self._has_begun else self._buffer
        if text:
            parts.append(text)
            self._buffer, self._has_begun = "", False
