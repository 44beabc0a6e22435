"""A backend at work: the bridge to its engine, and text to tokens without holding up the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from msgspec import UNSET, UnsetType

from sandwich.engine.engine import check_token_ids
from sandwich.requests.grammar import Grammar
from sandwich.server.backend import Backend
from sandwich.server.bridge import AsyncEngine, Observer
from sandwich.server.errors import ModelNotFoundError
from sandwich.server.server_limits import ServerLimits
from sandwich.text.guided import CompiledGrammar, GrammarCompiler
from sandwich.text.infill import infill_prompt
from sandwich.text.messages import Chat
from sandwich.text.tokenizer import ChatPrompt

ResultT = TypeVar("ResultT")

_NUM_TOKENIZER_THREADS = 2


class Service:
    """Serves one backend, from `start` to `stop`."""

    def __init__(self, backend: Backend, limits: ServerLimits, observer: Observer) -> None:
        self.backend = backend
        self.limits = limits
        self.tokenizer = backend.tokenizer
        self.bridge = AsyncEngine(backend.engine, backend.max_num_queued_reqs, observer)
        self._grammars = GrammarCompiler(
            backend.tokenizer, backend.engine.limits.vocab_size, sorted(backend.eos_token_ids)
        )
        self._pool = ThreadPoolExecutor(_NUM_TOKENIZER_THREADS, "sandwich-tokenizer")

    def start(self) -> None:
        self.bridge.start()

    async def stop(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        await self.bridge.stop()

    def check_model(self, name: str | UnsetType) -> None:
        """Raise ModelNotFoundError unless `name` is the served model; no name means that one."""
        if name is not UNSET and name != self.backend.model_name:
            raise ModelNotFoundError(name, self.backend.model_name)

    async def encode(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[int]]:
        """Token ids of each text."""

        def encode() -> list[list[int]]:
            # Not `encode` for each: that one holds the GIL, and with it the loop, to its end.
            return self.tokenizer.encode_prompts(texts, add_special_tokens)

        return await self._off_the_loop(encode, sum(map(len, texts)))

    async def encode_prompts(
        self, prompts: Sequence[str | list[int]], add_special_tokens: bool
    ) -> list[list[int]]:
        """Token ids of each prompt; those that came as token ids are checked."""
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        encoded = iter(await self.encode(texts, add_special_tokens) if texts else ())
        found = []
        for prompt in prompts:
            if not isinstance(prompt, str):
                self.check_token_ids(prompt, "prompt")
            found.append(next(encoded) if isinstance(prompt, str) else prompt)
        return found

    async def encode_around(self, prefix: str, suffix: str, add_special_tokens: bool) -> list[int]:
        """Token ids of a prompt that is continued between prefix and suffix."""
        encode = partial(infill_prompt, self.tokenizer, prefix, suffix, add_special_tokens)
        return await self._off_the_loop(encode, len(prefix) + len(suffix))

    async def encode_chat(self, chat: Chat) -> ChatPrompt:
        """A conversation's prompt."""

        def encode() -> ChatPrompt:
            [prompt] = self.tokenizer.encode_chats([chat])
            return prompt

        num_chars = sum(len(str(message.get("content", ""))) for message in chat.messages)
        return await self._off_the_loop(encode, num_chars)

    async def compile_grammar(self, grammar: Grammar) -> CompiledGrammar:
        """The grammar for this model. Raises InvalidRequestError if it cannot be used."""
        compile_it = partial(self._grammars.compile, grammar)
        return await asyncio.get_running_loop().run_in_executor(self._pool, compile_it)

    def check_token_ids(self, token_ids: Sequence[int], param: str) -> None:
        """Raise InvalidRequestError for an id the model does not have."""
        check_token_ids(param, token_ids, self.backend.engine.limits.vocab_size)

    async def _off_the_loop(self, work: Callable[[], ResultT], num_chars: int) -> ResultT:
        """Run `work` here if it is short, else on a thread."""
        if num_chars <= self.limits.max_inline_chars:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)
