"""The Python API: `LLM(model).generate(prompts, SamplingParams(...))`, in the shape vLLM gave it.

Runs the engine on the caller's thread, without a server.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from itertools import count
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from sandwich.config import DEFAULT_MODEL
from sandwich.errors import InvalidRequestError, UnavailableError
from sandwich.llm_inputs import (
    Prompt,
    checked_params,
    engine_config,
    listed_prompts,
    read_prompt,
)
from sandwich.models.embedding import chosen_pooling
from sandwich.progress import progress_bar
from sandwich.requests.pooling import Float32Array, Pooling, unit
from sandwich.requests.request import Request, TokenEvent
from sandwich.requests.sampling_params import SamplingParams
from sandwich.text.guided import GrammarCompiler
from sandwich.text.messages import Chat, Message
from sandwich.text.output import OutputDelta, OutputStream, RequestOutput
from sandwich.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from sandwich.startup.build import EngineParts

Conversation = Sequence[Message]
_OnDelta = Callable[[OutputDelta], None]
_NO_TOKENS = SamplingParams(max_tokens=0)
_Choices = list[tuple[OutputStream, Request]]  # of one prompt


class _How(NamedTuple):
    """What a call asks for that is no SamplingParams."""

    priority: int = 0
    cache_salt: str = ""
    pooling: Pooling | None = None


class LLM:
    """A model in this process. Not thread-safe: one call at a time.

    `options` are named as the flags of the command line (dtype, max_model_len, kv_cache_size, ...);
    those of vLLM that mean nothing on a CPU are taken with a warning. Raises ConfigError,
    ModelError or MemoryLimitError if the engine cannot be built. Close it, or use it with `with`.
    """

    def __init__(self, model: str = DEFAULT_MODEL, **options: Any) -> None:
        from sandwich.startup.build import build_engine

        self._set_up(build_engine(engine_config(str(model), options)))

    @classmethod
    def from_parts(cls, parts: EngineParts) -> Self:
        """An LLM over an engine that is built already, and that it will close."""
        llm = cls.__new__(cls)
        llm._set_up(parts)
        return llm

    def _set_up(self, parts: EngineParts) -> None:
        self.tokenizer = parts.tokenizer
        self.model_config = parts.model_config
        self._engine = parts.engine
        self._generation_defaults = dict(parts.generation_defaults)
        self._grammars = GrammarCompiler(
            parts.tokenizer, parts.engine.limits.vocab_size, parts.model_config.eos_token_ids
        )
        self._embedding_use = parts.embedding_use
        self._numbers = count()
        self._open: dict[str, tuple[OutputStream, _OnDelta]] = {}  # by request id, while they run

    def get_tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self.tokenizer

    def default_sampling_params(self, **changes: Any) -> SamplingParams:
        """What the model's generation_config.json asks for, with `changes`."""
        return SamplingParams(**(self._generation_defaults | changes))

    # ---- many prompts ----

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt] | None = None,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        *,
        prompt_token_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        priority: int = 0,
        cache_salt: str = "",
    ) -> list[RequestOutput]:
        """Continue every prompt; results are in the order of the prompts.

        A prompt is a text or a list of token ids; `prompt_token_ids` may have the ids instead.
        `sampling_params`: one for all, or one for each; default: the model's. `use_tqdm`: show the
        progress on stderr. `priority`: the lower go first, where other requests run. `cache_salt`:
        the prefix cache shares with requests of the same salt alone. Nothing runs if any prompt is
        wrong: InvalidRequestError, or ContextLengthError if it is too long. UnavailableError after
        `close` or in a forked child.
        A request that fails on its way has finish_reason "error"; the others go on.
        """
        self._engine.check_usable()
        listed = listed_prompts(prompts, prompt_token_ids)
        params = self._params_of_each(sampling_params, len(listed))
        how = _How(priority, cache_salt)
        return self._run(*self._encode(listed), params, use_tqdm, how)

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        priority: int = 0,
        cache_salt: str = "",
    ) -> list[RequestOutput]:
        """Reply to one conversation (a list of {"role", "content"}), or to each of several.

        The other arguments are those of `sandwich.text.messages.Chat` and of `generate`.
        """
        self._engine.check_usable()
        is_one = bool(messages) and isinstance(messages[0], Mapping)
        conversations: Any = [messages] if is_one else messages
        chats = [
            Chat(
                messages=each,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                template_kwargs=chat_template_kwargs or {},
            )
            for each in conversations
        ]
        prompts = self.tokenizer.encode_chats(chats)
        params = self._params_of_each(sampling_params, len(prompts))
        texts = [prompt.text for prompt in prompts]
        ids, how = [prompt.token_ids for prompt in prompts], _How(priority, cache_salt)
        return self._run(texts, ids, params, use_tqdm, how)

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        pooling: str | None = None,
        *,
        priority: int = 0,
        cache_salt: str = "",
    ) -> list[Float32Array]:
        """A vector of length 1, (hidden_size,), for every prompt.

        `pooling`: "mean" of the hidden states of all tokens, or that of the "last" one; default:
        what the model was made for, or the mean. Raises as `generate`, and UnavailableError if the
        engine fails on the way.
        """
        self._engine.check_usable()
        kind = chosen_pooling(pooling, self._embedding_use)
        _, token_ids = self._encode(listed_prompts(prompts))
        how = _How(priority, cache_salt, kind)
        groups = self._prepare(token_ids, [_NO_TOKENS] * len(token_ids), how)
        ends: dict[int, OutputDelta] = {}
        streams = [
            self._submit([choices], partial(ends.__setitem__, i))[0]
            for i, choices in enumerate(groups)
        ]
        self._run_to_end(streams)
        for end in ends.values():
            if end.embedding is None:
                raise UnavailableError(end.error or "the engine ended the request")
        return [unit(end.embedding) for _, end in sorted(ends.items()) if end.embedding is not None]

    # ---- one prompt, piece by piece ----

    def stream(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        priority: int = 0,
        cache_salt: str = "",
    ) -> Generator[OutputDelta]:
        """Continue one prompt, piece by piece; closing the iterator ends the request.

        There is a piece after every step of the engine, also if it is empty.
        """
        self._engine.check_usable()
        _, [token_ids] = self._encode([prompt])
        params = self.default_sampling_params()
        if sampling_params is not None:
            params = checked_params(sampling_params)
        if params.n != 1:
            raise InvalidRequestError(
                f"n is {params.n} but a stream has one choice; set it to 1", "n"
            )
        return self._deltas(self._prepare([token_ids], [params], _How(priority, cache_salt)))

    def chat_stream(
        self, messages: Conversation, sampling_params: SamplingParams | None = None
    ) -> Generator[OutputDelta]:
        """Reply to one conversation, piece by piece."""
        [prompt] = self.tokenizer.encode_chats([Chat(messages=messages)])
        return self.stream({"prompt_token_ids": prompt.token_ids}, sampling_params)

    # ---- life ----

    def close(self) -> None:
        """End the engine and give its memory back; the LLM cannot be used afterwards."""
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # ---- inside ----

    def _params_of_each(
        self, params: SamplingParams | Sequence[SamplingParams] | None, num_prompts: int
    ) -> list[SamplingParams]:
        if params is None:
            return [self.default_sampling_params()] * num_prompts
        if not isinstance(params, list | tuple):
            return [checked_params(params)] * num_prompts
        if len(params) != num_prompts:
            raise InvalidRequestError(
                f"there are {num_prompts} prompts but {len(params)} sampling_params; "
                "give one for all or one for each",
                "sampling_params",
            )
        return [checked_params(each) for each in params]

    def _encode(self, prompts: Sequence[Prompt]) -> tuple[list[str | None], list[list[int]]]:
        """Text and token ids of every prompt; the text is None where only ids were given."""
        given = [read_prompt(index, prompt) for index, prompt in enumerate(prompts)]
        to_encode = [text for text, token_ids in given if token_ids is None and text is not None]
        encoded = iter(self.tokenizer.encode_prompts(to_encode))
        ids = [next(encoded) if token_ids is None else token_ids for _, token_ids in given]
        return [text for text, _ in given], ids

    def _prepare(
        self, token_ids: Sequence[list[int]], params: Sequence[SamplingParams], how: _How
    ) -> list[_Choices]:
        """The choices of every prompt, all checked; raises for the first one that cannot run."""
        groups = [
            [
                (
                    OutputStream(self.tokenizer, each, ids, choice),
                    self._request(ids, each, choice, how),
                )
                for choice in range(each.n)
            ]
            for ids, each in zip(token_ids, params, strict=True)
        ]
        for index, [(_, request), *_] in enumerate(groups):
            try:
                self._engine.check_request(request)
            except InvalidRequestError as error:
                error.add_note(f"in prompt {index} of {len(groups)}")
                raise
        return groups

    def _submit(self, groups: Sequence[_Choices], on_delta: _OnDelta) -> list[OutputStream]:
        for stream, request in (choice for choices in groups for choice in choices):
            self._engine.add_request(request)
            self._open[request.request_id] = (stream, on_delta)
        return [stream for choices in groups for stream, _ in choices]

    def _request(
        self, token_ids: list[int], params: SamplingParams, choice: int, how: _How
    ) -> Request:
        return Request(
            request_id=str(next(self._numbers)),
            prompt_token_ids=token_ids,
            params=params,
            eos_token_ids=self.model_config.eos_token_ids,
            choice_index=choice,
            cache_salt=how.cache_salt,
            priority=how.priority,
            pooling=how.pooling,
            logits_processor=(
                None
                if params.grammar is None
                else self._grammars.compile(params.grammar).processor()
            ),
        )

    def _run(
        self,
        texts: Sequence[str | None],
        token_ids: Sequence[list[int]],
        params: Sequence[SamplingParams],
        is_progress_shown: bool,
        how: _How,
    ) -> list[RequestOutput]:
        groups = self._prepare(token_ids, params, how)
        with progress_bar(sum(map(len, groups)), is_progress_shown) as on_delta:
            self._run_to_end(self._submit(groups, on_delta))
        rows = zip(texts, token_ids, groups, strict=True)
        return [
            RequestOutput(
                request_id=str(index),
                prompt=text,
                prompt_token_ids=ids,
                outputs=[stream.result() for stream, _ in choices],
                prompt_logprobs=choices[0][0].prompt_logprobs,
            )
            for index, (text, ids, choices) in enumerate(rows)
        ]

    def _deltas(self, groups: list[_Choices]) -> Generator[OutputDelta]:
        deltas: deque[OutputDelta] = deque()
        streams = self._submit(groups, deltas.append)
        try:
            while deltas or not streams[0].is_finished:
                if not deltas:
                    self._step()
                yield deltas.popleft() if deltas else OutputDelta()
        finally:
            self._abort(streams)

    def _run_to_end(self, streams: Sequence[OutputStream]) -> None:
        try:
            while not all(stream.is_finished for stream in streams):
                self._step()
        finally:
            self._abort(streams)

    def _step(self) -> None:
        """One step of the engine; what it gives goes to whoever waits for it."""
        for event in self._engine.step():
            self._deliver(event)

    def _deliver(self, event: TokenEvent) -> None:
        stream, on_delta = self._open[event.request_id]
        if event.finish_reason is not None:
            del self._open[event.request_id]
        was_finished = stream.is_finished
        delta = stream.feed(event)
        if not was_finished:
            on_delta(delta)
        if stream.needs_abort:
            for last_event in self._engine.abort(event.request_id):
                self._deliver(last_event)

    def _abort(self, streams: Sequence[OutputStream]) -> None:
        """End those that still run, as after an interrupt."""
        ids = [id_ for id_, (stream, _) in self._open.items() if any(stream is s for s in streams)]
        for request_id in ids:
            for event in self._engine.abort(request_id):
                self._deliver(event)
