"""The answers of Anthropic's Messages API: a message, or the events that build one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import msgspec
from msgspec import UNSET, Struct, UnsetType

from sandwich.server.call import EncodedPrompt
from sandwich.server.generation import Generation, Piece
from sandwich.server.responses import PromptProgress
from sandwich.server.talk import Talk
from sandwich.text.reasoning import Thought
from sandwich.text.reply import Part, Reply
from sandwich.text.tool_calls import CallDelta


class Usage(Struct):
    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0


class Block(Struct, kw_only=True):
    """Reasoning, text, or a call of a tool."""

    type: str
    thinking: str | UnsetType = UNSET
    signature: str | UnsetType = UNSET
    text: str | UnsetType = UNSET
    id: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    input: Any = UNSET


class Answer(Struct, kw_only=True):
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
    message: Answer | UnsetType = UNSET
    index: int | UnsetType = UNSET
    content_block: Block | UnsetType = UNSET
    delta: dict[str, Any] | UnsetType = UNSET
    usage: Usage | UnsetType = UNSET


_EMPTY: Final = {
    "text": Block(type="text", text=""),
    "thinking": Block(type="thinking", thinking="", signature=""),
}


@dataclass
class MessageFormat:
    """How the answer of one call looks; there is always one choice."""

    has_named_events: ClassVar[bool] = True

    id: str
    model: str
    talk: Talk
    _has_begun: bool = False
    _num_blocks: int = 0
    _open: str | None = None  # type of the block that is open

    def reply(self, prompt: EncodedPrompt) -> Reply:
        return self.talk.reply(prompt)

    def whole(self, generation: Generation) -> Answer:
        [choice] = generation.choices
        reply, result = choice.reply, choice.output.result()
        blocks: list[Block] = []
        if reply.reasoning:
            blocks.append(Block(type="thinking", thinking=reply.reasoning, signature=""))
        if reply.text or not (reply.reasoning or reply.calls):
            blocks.append(Block(type="text", text=reply.text))
        for call in reply.calls:
            arguments = _input(call.arguments)
            blocks.append(Block(type="tool_use", id=call.id, name=call.name, input=arguments))
        reason, sequence = _end(reply, result.finish_reason, result.stop_reason)
        return Answer(
            id=self.id,
            model=self.model,
            content=blocks,
            stop_reason=reason,
            stop_sequence=sequence,
            usage=_usage(generation),
        )

    def chunks(self, generation: Generation, piece: Piece) -> Iterator[Event]:
        """As generation.ChunkFormat."""
        choice, delta, parts = piece
        if not self._has_begun:
            self._has_begun = True
            usage = _usage(generation)
            answer = Answer(id=self.id, model=self.model, content=[], usage=usage)
            yield Event(type="message_start", message=answer)
        for part in parts:
            yield from self._part(part)
        if delta.finish_reason is not None:
            yield from self._close()
            reason, sequence = _end(choice.reply, delta.finish_reason, delta.stop_reason)
            yield Event(
                type="message_delta",
                delta={"stop_reason": reason, "stop_sequence": sequence},
                usage=_usage(generation),
            )

    def progress(self, progress: PromptProgress) -> Iterator[Event]:
        """This API has no field to ask for it."""
        yield from ()

    def closing(self, generation: Generation) -> Iterator[Event]:
        yield Event(type="message_stop")

    def _part(self, part: Part) -> Iterator[Event]:
        match part:
            case str():
                yield from self._more("text", {"type": "text_delta", "text": part})
            case Thought():
                delta = {"type": "thinking_delta", "thinking": part.text}
                yield from self._more("thinking", delta)
            case CallDelta():
                yield from self._call(part)

    def _more(self, kind: str, delta: dict[str, Any]) -> Iterator[Event]:
        """More of a block of that kind, which begins if another one is open."""
        if self._open != kind:
            yield from self._begin(_EMPTY[kind])
        yield self._delta(delta)

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
    reply: Reply, finish_reason: str | None, stop_reason: int | str | None
) -> tuple[str, str | None]:
    """stop_reason and stop_sequence in Anthropic's words."""
    if finish_reason == "length":
        return "max_tokens", None
    if reply.calls:
        return "tool_use", None
    return ("stop_sequence", stop_reason) if isinstance(stop_reason, str) else ("end_turn", None)


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
