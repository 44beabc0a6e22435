"""One reply of a chat as it is read: reasoning, text and calls of tools, whole and in pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sandwich.text.output import OutputDelta
from sandwich.text.reasoning import ReasoningParser, Thought
from sandwich.text.tool_calls import CallDelta, ToolCallParser

Part = str | Thought | CallDelta  # what a piece of a reply adds


@dataclass(slots=True)
class Call:
    """A call of a tool; `arguments` is JSON as the model wrote it."""

    id: str
    name: str
    arguments: str


class Reply:
    """Feed it every delta of a choice, in order. Without parsers all is text."""

    def __init__(
        self, reasoning: ReasoningParser | None = None, tools: ToolCallParser | None = None
    ) -> None:
        self.text = ""
        self.reasoning = ""
        self.calls: list[Call] = []
        self.num_reasoning_tokens = 0  # its tags included
        self._num_tokens = 0
        self._thoughts = reasoning
        self._tools = tools

    def feed(self, delta: OutputDelta) -> list[Part]:
        """What the delta adds."""
        was_thinking = self._is_thinking
        parts: list[Part] = []
        is_last = delta.finish_reason is not None
        for piece in self._split(delta.text, is_last):
            if isinstance(piece, Thought) or self._tools is None:
                parts.append(piece)
            else:
                parts += self._tools.push(piece)
        if is_last and self._tools is not None:
            parts += self._tools.flush()
        self._num_tokens += len(delta.token_ids)
        thinks = was_thinking or self._is_thinking
        if thinks or any(isinstance(part, Thought) for part in parts):
            self.num_reasoning_tokens = self._num_tokens
        self._keep(parts)
        return parts

    @property
    def _is_thinking(self) -> bool:
        return self._thoughts is not None and self._thoughts.is_inside

    def _split(self, text: str, is_last: bool) -> Sequence[str | Thought]:
        if self._thoughts is None:
            return [text] if text else []
        return self._thoughts.push(text) + (self._thoughts.flush() if is_last else [])

    def _keep(self, parts: Sequence[Part]) -> None:
        for part in parts:
            match part:
                case str():
                    self.text += part
                case Thought():
                    self.reasoning += part.text
                case CallDelta(id=str(id_), name=str(name)):
                    self.calls.append(Call(id_, name, part.arguments))
                case CallDelta():
                    self.calls[part.index].arguments += part.arguments
