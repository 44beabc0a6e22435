"""The answers of the Responses API: a response, or the events that build one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from msgspec import UNSET, Struct, UnsetType

from sandwich.server.call import EncodedPrompt
from sandwich.server.chat import token_logprob
from sandwich.server.generation import Generation, Piece
from sandwich.server.protocol import ResponsesBody
from sandwich.server.responses import PromptProgress, TokenLogprob
from sandwich.server.talk import Talk
from sandwich.server.wire import new_id
from sandwich.text.reasoning import Thought
from sandwich.text.reply import Part, Reply
from sandwich.text.tool_calls import CallDelta


class InputTokensDetails(Struct):
    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(Struct):
    reasoning_tokens: int


class ResponseUsage(Struct):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ContentPart(Struct, kw_only=True):
    """Text of a message (`output_text`) or of reasoning (`reasoning_text`)."""

    type: str
    text: str
    annotations: list[Any] | UnsetType = UNSET
    logprobs: list[TokenLogprob] | UnsetType = UNSET


class OutputItem(Struct, kw_only=True):
    """A message, reasoning, or a call of a function."""

    id: str
    type: str
    status: str = "in_progress"
    role: str | UnsetType = UNSET
    content: list[ContentPart] | UnsetType = UNSET
    summary: list[Any] | UnsetType = UNSET
    call_id: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class IncompleteDetails(Struct):
    reason: str


class Response(Struct, kw_only=True):
    id: str
    object: str = "response"
    created_at: float
    status: str
    error: None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: None = None
    store: bool = False
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_p: float
    truncation: str = "disabled"
    usage: ResponseUsage | None = None


class ResponseEvent(Struct, kw_only=True):
    """Any event of a stream; `type` is its name too."""

    type: str
    sequence_number: int
    response: Response | UnsetType = UNSET
    output_index: int | UnsetType = UNSET
    item: OutputItem | UnsetType = UNSET
    item_id: str | UnsetType = UNSET
    content_index: int | UnsetType = UNSET
    part: ContentPart | UnsetType = UNSET
    delta: str | UnsetType = UNSET
    text: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET
    logprobs: list[TokenLogprob] | UnsetType = UNSET


@dataclass
class ResponseFormat:
    """How the answer of one call looks; there is always one choice."""

    has_named_events: ClassVar[bool] = True

    id: str
    created_at: float  # seconds since 1970
    body: ResponsesBody
    model: str
    talk: Talk
    _num_events: int = 0
    _items: list[OutputItem] = field(default_factory=list)  # the last one grows

    def reply(self, prompt: EncodedPrompt) -> Reply:
        return self.talk.reply(prompt)

    def whole(self, generation: Generation) -> Response:
        [choice] = generation.choices
        reply, result = choice.reply, choice.output.result()
        status = _status(result.finish_reason)
        items: list[OutputItem] = []
        if reply.reasoning:
            items.append(_text_item("reasoning", reply.reasoning))
        if reply.text or not (reply.reasoning or reply.calls):
            items.append(_text_item("message", reply.text))
            if self.talk.params.logprobs is not None:
                logprobs = [token_logprob(each) for each in result.logprobs or ()]
                _part_of(items[-1]).logprobs = logprobs
        items += [_call_item(call.id, call.name, call.arguments) for call in reply.calls]
        for item in items:
            item.status = "completed"
        items[-1].status = status
        return self._response(status, items, generation)

    def chunks(self, generation: Generation, piece: Piece) -> Iterator[ResponseEvent]:
        """As generation.ChunkFormat."""
        if self._num_events == 0:
            response = self._response("in_progress", [])
            yield self._event("response.created", response=response)
            yield self._event("response.in_progress", response=response)
        logprobs = [token_logprob(each) for each in piece.delta.logprobs]
        for part in piece.parts:
            yield from self._part(part, logprobs)
            if isinstance(part, str):
                logprobs = []  # they came with the first text
        if piece.delta.finish_reason is not None:
            if not self._items:
                yield from self._begin(_text_item("message"))
            status = _status(piece.delta.finish_reason)
            yield from self._end(status)
            response = self._response(status, self._items, generation)
            yield self._event(f"response.{status}", response=response)

    def progress(self, progress: PromptProgress) -> Iterator[ResponseEvent]:
        """This API has no field to ask for it."""
        yield from ()

    def closing(self, generation: Generation) -> Iterator[ResponseEvent]:
        yield from ()

    def _part(self, part: Part, logprobs: list[TokenLogprob]) -> Iterator[ResponseEvent]:
        match part:
            case str():
                yield from self._more("message", part)
                if self.talk.params.logprobs is not None:
                    told = _part_of(self._items[-1])
                    told.logprobs = (told.logprobs or []) + logprobs
                yield self._delta("output_text", part, content_index=0, logprobs=logprobs)
            case Thought():
                yield from self._more("reasoning", part.text)
                yield self._delta("reasoning_text", part.text, content_index=0)
            case CallDelta(id=str(id_), name=str(name)):
                yield from self._begin(_call_item(id_, name, ""))
                if part.arguments:
                    yield from self._arguments(part.arguments)
            case CallDelta():
                yield from self._arguments(part.arguments)

    def _more(self, kind: str, text: str) -> Iterator[ResponseEvent]:
        """More text of an item of that kind, which begins if another one is open."""
        if not self._items or self._items[-1].type != kind:
            yield from self._begin(_text_item(kind))
        _part_of(self._items[-1]).text += text

    def _arguments(self, text: str) -> Iterator[ResponseEvent]:
        item = self._items[-1]
        assert item.arguments is not UNSET
        item.arguments += text
        yield self._delta("function_call_arguments", text)

    def _delta(self, kind: str, delta: str, **fields: Any) -> ResponseEvent:
        return self._of_item(f"response.{kind}.delta", delta=delta, **fields)

    def _begin(self, item: OutputItem) -> Iterator[ResponseEvent]:
        yield from self._end("completed")
        self._items.append(item)
        index = len(self._items) - 1
        bare = item if item.content is UNSET else _without_content(item)
        yield self._event("response.output_item.added", output_index=index, item=bare)
        if item.content is not UNSET:
            part = _part_of(item)
            yield self._of_item("response.content_part.added", content_index=0, part=part)

    def _end(self, status: str) -> Iterator[ResponseEvent]:
        """Close the last item, if there is one."""
        if not self._items:
            return
        item = self._items[-1]
        item.status = status
        if item.content is UNSET:
            kind = "response.function_call_arguments.done"
            yield self._of_item(kind, name=item.name, arguments=item.arguments)
        else:
            part = _part_of(item)
            fields: dict[str, Any] = {"content_index": 0, "text": part.text}
            if item.type == "message":
                fields["logprobs"] = part.logprobs or []
            yield self._of_item(f"response.{part.type}.done", **fields)
            yield self._of_item("response.content_part.done", content_index=0, part=part)
        index = len(self._items) - 1
        yield self._event("response.output_item.done", output_index=index, item=item)

    def _of_item(self, kind: str, **fields: Any) -> ResponseEvent:
        """An event about the last item."""
        index = len(self._items) - 1
        return self._event(kind, output_index=index, item_id=self._items[-1].id, **fields)

    def _event(self, kind: str, **fields: Any) -> ResponseEvent:
        self._num_events += 1
        return ResponseEvent(type=kind, sequence_number=self._num_events - 1, **fields)

    def _response(
        self, status: str, items: list[OutputItem], generation: Generation | None = None
    ) -> Response:
        body, params = self.body, self.talk.params
        form = UNSET if body.text is UNSET else body.text.format
        is_cut = status == "incomplete"
        return Response(
            id=self.id,
            created_at=self.created_at,
            status=status,
            incomplete_details=IncompleteDetails("max_output_tokens") if is_cut else None,
            instructions=body.instructions or None,
            max_output_tokens=body.max_output_tokens or None,
            metadata=body.metadata,
            model=self.model,
            output=items,
            parallel_tool_calls=body.parallel_tool_calls is not False,
            temperature=params.temperature,
            text={"format": {"type": "text"} if form is UNSET else form},
            tool_choice=body.tool_choice or "auto",
            tools=body.tools,
            top_p=params.top_p,
            usage=None if generation is None else _usage(generation),
        )


def _status(finish_reason: str | None) -> str:
    return "incomplete" if finish_reason == "length" else "completed"


def _text_item(kind: str, text: str = "") -> OutputItem:
    """A message or reasoning."""
    if kind == "reasoning":
        content = [ContentPart(type="reasoning_text", text=text)]
        return OutputItem(id=new_id("rs"), type=kind, summary=[], content=content)
    content = [ContentPart(type="output_text", text=text, annotations=[])]
    return OutputItem(id=new_id("msg"), type=kind, role="assistant", content=content)


def _call_item(call_id: str, name: str, arguments: str) -> OutputItem:
    kind = "function_call"
    return OutputItem(id=new_id("fc"), type=kind, call_id=call_id, name=name, arguments=arguments)


def _part_of(item: OutputItem) -> ContentPart:
    assert item.content is not UNSET
    [part] = item.content
    return part


def _without_content(item: OutputItem) -> OutputItem:
    return OutputItem(id=item.id, type=item.type, role=item.role, summary=item.summary, content=[])


def _usage(generation: Generation) -> ResponseUsage:
    usage = generation.usage()
    [choice] = generation.choices
    return ResponseUsage(
        usage.prompt_tokens,
        InputTokensDetails(usage.prompt_tokens_details.cached_tokens),
        usage.completion_tokens,
        OutputTokensDetails(choice.reply.num_reasoning_tokens),
        usage.total_tokens,
    )
