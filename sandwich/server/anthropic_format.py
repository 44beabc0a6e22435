"""The answers of Anthropic's Messages API: a message, or the events that build one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import msgspec
from msgspec import UNSET, Struct, UnsetType

from sandwich.server.generation import Choice, Generation
from sandwich.server.tools import ToolUse
from sandwich.text.output import OutputDelta
from sandwich.text.tool_calls import CallDelta, ToolCallParser


class Usage(Struct):
    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0


class Block(Struct, kw_only=True):
    """Text, or a call of a tool."""

    type: str
    text: str | UnsetType = UNSET
    id: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    input: Any = UNSET


class Reply(Struct, kw_only=True):
    id: str
    type: str = "message"
    role: str = "assistant"
    model: str
    content: list[Block]
    stop_reason: str | None = None
    stop_sequence: str | None = None
    usage: Usage


class Event(Struct, kw_only=True):
    """Any event of a stream; `type` is its name too."""

    type: str
    message: Reply | UnsetType = UNSET
    index: int | UnsetType = UNSET
    content_block: Block | UnsetType = UNSET
    delta: dict[str, Any] | UnsetType = UNSET
    usage: Usage | UnsetType = UNSET


@dataclass
class MessageFormat:
    """How the answer of one call looks; there is always one choice."""

    has_named_events: ClassVar[bool] = True

    id: str
    model: str
    tools: ToolUse | None = None
    _has_begun: bool = False
    _num_blocks: int = 0
    _open: str | None = None  # type of the block that is open
    _parser: ToolCallParser | None = field(init=False)

    def __post_init__(self) -> None:
        self._parser = None if self.tools is None else self.tools.parser()

    def whole(self, generation: Generation) -> Reply:
        [choice] = generation.choices
        result = choice.output.result()
        blocks: list[Block] = []
        arguments: list[str] = []
        for part in self._parts(result.text, is_last=True):
            if isinstance(part, str):
                blocks.append(Block(type="text", text=part))
            elif part.id is not None and part.name is not None:
                blocks.append(Block(type="tool_use", id=part.id, name=part.name, input={}))
                arguments.append(part.arguments)
            else:
                arguments[part.index] += part.arguments
        calls = [block for block in blocks if block.type == "tool_use"]
        for block, text in zip(calls, arguments, strict=True):
            block.input = _input(text)
        reason, sequence = self._end(result.finish_reason, result.stop_reason)
        return Reply(
            id=self.id,
            model=self.model,
            content=blocks,
            stop_reason=reason,
            stop_sequence=sequence,
            usage=_usage(generation),
        )

    def chunks(self, generation: Generation, choice: Choice, delta: OutputDelta) -> Iterator[Event]:
        """As generation.ChunkFormat."""
        if not self._has_begun:
            self._has_begun = True
            usage = _usage(generation)
            reply = Reply(id=self.id, model=self.model, content=[], usage=usage)
            yield Event(type="message_start", message=reply)
        for part in self._parts(delta.text, delta.finish_reason is not None):
            yield from self._text(part) if isinstance(part, str) else self._call(part)
        if delta.finish_reason is not None:
            yield from self._close()
            reason, sequence = self._end(delta.finish_reason, delta.stop_reason)
            yield Event(
                type="message_delta",
                delta={"stop_reason": reason, "stop_sequence": sequence},
                usage=_usage(generation),
            )

    def closing(self, generation: Generation) -> Iterator[Event]:
        yield Event(type="message_stop")

    def _parts(self, text: str, is_last: bool) -> list[str | CallDelta]:
        if self._parser is None:
            return [text] if text else []
        return self._parser.push(text) + (self._parser.flush() if is_last else [])

    def _text(self, text: str) -> Iterator[Event]:
        if self._open != "text":
            yield from self._begin(Block(type="text", text=""))
        yield self._delta({"type": "text_delta", "text": text})

    def _call(self, call: CallDelta) -> Iterator[Event]:
        if call.id is not None and call.name is not None:
            block = Block(type="tool_use", id=call.id, name=call.name, input={})
            yield from self._begin(block)
        if call.arguments:
            yield self._delta({"type": "input_json_delta", "partial_json": call.arguments})

    def _begin(self, block: Block) -> Iterator[Event]:
        yield from self._close()
        self._open = block.type
        yield Event(type="content_block_start", index=self._num_blocks, content_block=block)
        self._num_blocks += 1

    def _delta(self, delta: dict[str, Any]) -> Event:
        return Event(type="content_block_delta", index=self._num_blocks - 1, delta=delta)

    def _close(self) -> Iterator[Event]:
        if self._open is not None:
            self._open = None
            yield Event(type="content_block_stop", index=self._num_blocks - 1)

    def _end(
        self, finish_reason: str | None, stop_reason: int | str | None
    ) -> tuple[str, str | None]:
        """stop_reason and stop_sequence in Anthropic's words."""
        if finish_reason == "length":
            return "max_tokens", None
        if self._parser is not None and self._parser.num_calls:
            return "tool_use", None
        return (
            ("stop_sequence", stop_reason) if isinstance(stop_reason, str) else ("end_turn", None)
        )


def _usage(generation: Generation) -> Usage:
    usage = generation.usage()
    num_cached = usage.prompt_tokens_details.cached_tokens
    return Usage(usage.prompt_tokens - num_cached, usage.completion_tokens, num_cached)


def _input(text: str) -> Any:
    """The arguments as an object; those of a call that was cut off are left out."""
    try:
        return msgspec.json.decode(text)
    except ValueError:
        return {}
