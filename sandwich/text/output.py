"""Token events of one request -> text, logprobs and the reason why it ended.

One OutputStream belongs to one choice of one request; the server and the Python API both use it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from sandwich.requests.pooling import Float32Array
from sandwich.requests.request import LogprobEntry, RequestTimings, TokenEvent
from sandwich.requests.sampling_params import SamplingParams
from sandwich.text.tokenizer import IncrementalDetokenizer, Tokenizer


@dataclass(frozen=True, slots=True)
class Logprob:
    """One candidate token at one position."""

    logprob: float  # natural logarithm
    rank: int  # 1 is the likeliest
    decoded_token: str  # half a character shows as U+FFFD
    bytes: bytes


@dataclass(frozen=True, slots=True)
class TokenLogprobs(Mapping[int, Logprob]):
    """The chosen token of one position and the likeliest ones: a map token id -> Logprob.

    `top_ids` are the likeliest, best first; the chosen token is in the map even if not among them.
    `text_offset` counts the characters of the text in front of the token.
    """

    token_id: int
    text_offset: int
    top_ids: tuple[int, ...]
    candidates: dict[int, Logprob]

    def __getitem__(self, token_id: int) -> Logprob:
        return self.candidates[token_id]

    def __iter__(self) -> Iterator[int]:
        return iter(self.candidates)

    def __len__(self) -> int:
        return len(self.candidates)

    @property
    def chosen(self) -> Logprob:
        return self.candidates[self.token_id]

    @classmethod
    def build(cls, entry: LogprobEntry, tokenizer: Tokenizer, text_offset: int) -> TokenLogprobs:
        def candidate(token_id: int, logprob: float, rank: int) -> Logprob:
            data = tokenizer.token_bytes(token_id)
            return Logprob(logprob, rank, data.decode("utf-8", errors="replace"), data)

        candidates = {entry.token_id: candidate(entry.token_id, entry.logprob, entry.rank)}
        top = zip(entry.top_ids, entry.top_logprobs, strict=True)
        for rank, (token_id, logprob) in enumerate(top, start=1):
            candidates.setdefault(token_id, candidate(token_id, logprob, rank))
        return cls(entry.token_id, text_offset, entry.top_ids, candidates)


PromptLogprobs = tuple[TokenLogprobs | None, ...]


@dataclass(frozen=True, slots=True)
class OutputDelta:
    """What one event adds. `token_ids` and `logprobs` (if asked for) belong to each other.

    The text is that which is certain; it may belong to earlier tokens, and that of these tokens may
    come later or, if it is part of a stop string, never.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    error: str | None = None  # the message behind finish_reason "error"
    embedding: Float32Array | None = None  # if one was asked for, at the end


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One choice, complete. `token_ids` has every token, also those whose text was cut off."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None
    finish_reason: str | None  # "stop", "length", "abort" or "error"
    stop_reason: int | str | None = None  # the stop string or stop id; None for end of sequence
    error: str | None = None  # the message behind "error"
    timings: RequestTimings | None = None

    @property
    def cumulative_logprob(self) -> float | None:
        """Sum over the tokens; None unless logprobs were asked for."""
        if self.logprobs is None:
            return None
        return sum(entry.chosen.logprob for entry in self.logprobs)


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """One prompt and its choices. `prompt` is None if only its token ids were given."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: PromptLogprobs | None = None


class StopMatcher:
    """Finds the first stop string in text that comes in pieces, and holds back what may begin one.

    First is the one that ends first, and of those the longest; so the result does not depend on how
    the text is cut into pieces. Text in front of the match is never held for longer than needed.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, piece: str) -> tuple[str, str | None]:
        """(text that is certain, the stop string that was found)."""
        if not self._stops:
            return piece, None
        text = self._held + piece
        starts = ((text.find(stop), stop) for stop in self._stops)
        matches = [(start + len(stop), start, stop) for start, stop in starts if start >= 0]
        if matches:
            _, start, stop = min(matches)
            self._held = ""
            return text[:start], stop
        num_held = max(longest_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held], None

    def flush(self) -> str:
        """No more text will come: what was held back."""
        held, self._held = self._held, ""
        return held


def longest_overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop` without being all of it."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


@dataclass(slots=True)
class OutputStream:
    """Feed it every event of a request, in order; it returns what to show and knows when to end.

    A stop string ends the output at once, with "stop", before the engine knows: `needs_abort` is
    then True and the caller aborts the request. What the engine still sends is ignored, apart from
    the timings. Stop strings are looked for after the first `min_tokens` tokens.
    """

    tokenizer: Tokenizer
    params: SamplingParams
    prompt_token_ids: Sequence[int] = ()
    index: int = 0

    token_ids: list[int] = field(init=False, default_factory=list)
    logprobs: list[TokenLogprobs] = field(init=False, default_factory=list)
    prompt_logprobs: PromptLogprobs | None = field(init=False, default=None)
    finish_reason: str | None = field(init=False, default=None)
    stop_reason: int | str | None = field(init=False, default=None)
    error: str | None = field(init=False, default=None)
    timings: RequestTimings | None = field(init=False, default=None)
    needs_abort: bool = field(init=False, default=False)
    _pieces: list[str] = field(init=False, default_factory=list)
    _num_chars: int = field(init=False, default=0)  # of detokenised text, held text included
    _detokenizer: IncrementalDetokenizer = field(init=False)
    _matcher: StopMatcher = field(init=False)

    def __post_init__(self) -> None:
        self._detokenizer = IncrementalDetokenizer(self.tokenizer, self.prompt_token_ids)
        self._matcher = StopMatcher(self.params.stop)

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def text(self) -> str:
        """All text that was certain so far."""
        return "".join(self._pieces)

    def feed(self, event: TokenEvent) -> OutputDelta:
        """Take in one event of this request. After the end it returns an empty delta."""
        self.timings = event.timings or self.timings
        if event.finish_reason is not None:
            self.needs_abort = False
        if self.is_finished:
            return OutputDelta()
        if event.prompt_logprobs is not None:
            self.prompt_logprobs = self._prompt_logprobs(event.prompt_logprobs)
        num_before = len(self.token_ids)
        text = self._take_tokens(event)
        if event.finish_reason is not None and not self.is_finished:
            text += self._end(event)
        self._pieces.append(text)
        return OutputDelta(
            text,
            tuple(self.token_ids[num_before:]),
            tuple(self.logprobs[num_before:]),
            self.finish_reason,
            self.stop_reason,
            self.error,
            event.embedding,
        )

    def result(self) -> CompletionOutput:
        """Everything so far, as one value."""
        return CompletionOutput(
            index=self.index,
            text=self.text,
            token_ids=list(self.token_ids),
            logprobs=None if self.params.logprobs is None else list(self.logprobs),
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            error=self.error,
            timings=self.timings,
        )

    def _take_tokens(self, event: TokenEvent) -> str:
        """Keep the tokens up to the one that completes a stop string; the text they make certain.

        The stop id that ends a request is not shown, unless `include_stop_str_in_output`.
        """
        text = ""
        is_stop_hidden = event.stop_reason is None or not self.params.include_stop_str_in_output
        num_shown = len(event.token_ids) - (event.finish_reason == "stop" and is_stop_hidden)
        for at, token_id in enumerate(event.token_ids):
            self.token_ids.append(token_id)
            if event.logprobs:
                entry = TokenLogprobs.build(event.logprobs[at], self.tokenizer, self._num_chars)
                self.logprobs.append(entry)
            if at < num_shown:
                text += self._match(self._detokenizer.push(token_id))
            if self.is_finished:
                self.needs_abort = event.finish_reason is None
                break
        return text

    def _match(self, piece: str) -> str:
        """Look for stop strings in more text, and end with the first; the text that is certain."""
        self._num_chars += len(piece)
        if len(self.token_ids) <= self.params.min_tokens:
            return piece
        text, stop = self._matcher.push(piece)
        if stop is not None:
            self.finish_reason, self.stop_reason = "stop", stop
            text += stop if self.params.include_stop_str_in_output else ""
        return text

    def _end(self, event: TokenEvent) -> str:
        """End as the engine says, unless the text held back has a stop string; that text."""
        text = self._match(self._detokenizer.flush())
        if not self.is_finished:
            self.finish_reason, self.stop_reason = event.finish_reason, event.stop_reason
            self.error = event.error
            text += self._matcher.flush()
        return text

    def _prompt_logprobs(self, entries: Sequence[LogprobEntry | None]) -> PromptLogprobs:
        detokenizer = IncrementalDetokenizer(self.tokenizer)
        num_chars = 0
        found: list[TokenLogprobs | None] = []
        for entry, token_id in zip(entries, self.prompt_token_ids, strict=True):
            found.append(
                None if entry is None else TokenLogprobs.build(entry, self.tokenizer, num_chars)
            )
            num_chars += len(detokenizer.push(token_id))
        return tuple(found)
