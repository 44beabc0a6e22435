"""A running server over the null executor, whose steps a test can hold back and let go."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from sandwich.checkpoint.tokenizer_files import read_tokenizer
from sandwich.config import ServerConfig
from sandwich.engine.engine import Engine
from sandwich.executor.base import Batch, ExecutorLimits, StepOutput
from sandwich.executor.null import NullExecutor
from sandwich.models.embedding import EmbeddingUse
from sandwich.requests.request import Request
from sandwich.server.app import Server
from sandwich.server.backend import About, Backend
from sandwich.server.bridge import AsyncEngine
from sandwich.server.request_stream import RequestStream
from sandwich.server.server_limits import ServerLimits
from sandwich.text.tokenizer import Tokenizer

MODEL = "null"
EOS, BOS = 256, 257
VOCAB_SIZE = 258
DIGITS = "0123456789"
PATIENCE_S = 60.0  # how long a test waits for what must come; no test depends on its length
CHAT_TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
LIMITS = ExecutorLimits(
    block_size=8,
    num_blocks=64,
    max_num_seqs=4,
    max_num_batched_tokens=16,
    max_model_len=256,
    vocab_size=VOCAB_SIZE,
)

ABOUT = About(
    machine="a machine of two cores",
    isa="generic",
    weights="none",
    kv_cache="512 tokens",
    prefill="all cores",
    decode="one core",
    mixed="turns",
    picture='<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>',
)


def byte_ids(text: str) -> list[int]:
    """Token ids of text without BOS: byte b is token b."""
    return list(text.encode())


def digits(num_prompt_tokens: int, num_tokens: int) -> str:
    """What the model of most tests says: at position p, the last digit of p."""
    positions = range(num_prompt_tokens, num_prompt_tokens + num_tokens)
    return "".join(DIGITS[p % 10] for p in positions)


def _byte_tokenizer(*more: str) -> tokenizers.Tokenizer:
    """Token b is byte b; then end and begin of text, and more special tokens."""
    by_char = {chr(b): b for b in [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]}
    others = [b for b in range(256) if b not in by_char.values()]
    by_char |= {chr(256 + i): b for i, b in enumerate(others)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=by_char, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<eos>", "<bos>", *more])
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", BOS)]
    )
    return backend


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def fim_tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With tokens around a middle that is to be filled in."""
    tokens = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")
    return _write_tokenizer(tmp_path_factory.mktemp("tokenizer"), *tokens)


def _write_tokenizer(folder: Path, *more: str) -> Path:
    _byte_tokenizer(*more).save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<bos>", "eos_token": "<eos>", "chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


class GatedExecutor(NullExecutor):
    """A null executor that can be told to wait before each step."""

    def __init__(self, limits: ExecutorLimits, text: str | None = None) -> None:
        super().__init__(limits)
        self.batches: list[Batch] = []
        self._text = None if text is None else byte_ids(text)
        self._changed = threading.Condition()
        self._num_allowed = 1 << 60

    def next_tokens(self, token_ids: Any, positions: Any) -> Any:
        tokens = super().next_tokens(token_ids, positions)
        if self._text is not None:
            tokens[:] = [self._text[(p + 1) % len(self._text)] for p in positions]
        return tokens

    def run(self, batch: Batch) -> StepOutput:
        with self._changed:
            self.batches.append(batch)
            self._changed.notify_all()
            assert self._changed.wait_for(
                lambda: len(self.batches) <= self._num_allowed, PATIENCE_S
            )
        return super().run(batch)

    def close(self) -> None:
        super().close()
        with self._changed:
            self._changed.notify_all()

    async def closed(self) -> None:
        """Until the engine's thread has let go of it."""

        def wait() -> bool:
            with self._changed:
                return self._changed.wait_for(lambda: self.is_closed, PATIENCE_S)

        assert await asyncio.to_thread(wait)

    def hold(self) -> None:
        """No step that has not begun yet may pass."""
        with self._changed:
            self._num_allowed = len(self.batches)

    def allow(self, num_steps: int = 1 << 60) -> None:
        with self._changed:
            self._num_allowed += num_steps
            self._changed.notify_all()

    async def entered(self, num_steps: int) -> None:
        """Until that many steps have begun since the start, waiting at the gate included."""

        def wait() -> bool:
            with self._changed:
                return self._changed.wait_for(lambda: len(self.batches) >= num_steps, PATIENCE_S)

        assert await asyncio.to_thread(wait)


@dataclass
class Rig:
    """A server, what is behind it, and clients in front of it."""

    server: Server
    engine: Engine
    executor: GatedExecutor
    http: aiohttp.ClientSession
    client: openai.AsyncOpenAI
    submissions: asyncio.Queue[int] = field(default_factory=asyncio.Queue)
    departures: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    aborts: asyncio.Queue[str] = field(default_factory=asyncio.Queue)

    def ready(self, backend: Backend) -> None:
        self.server.ready(backend)
        hand_over = self.bridge.submit

        def submit(stream: RequestStream, requests: Sequence[Request]) -> None:
            hand_over(stream, requests)
            self.submissions.put_nowait(len(requests))

        self.bridge.submit = submit  # type: ignore[method-assign]
        end = self.bridge.abort

        def abort(request_id: str) -> None:
            end(request_id)
            self.aborts.put_nowait(request_id)

        self.bridge.abort = abort  # type: ignore[method-assign]
        give_up = self.bridge.abandon

        def abandon(request_id: str) -> None:
            give_up(request_id)
            self.departures.put_nowait(request_id)

        self.bridge.abandon = abandon  # type: ignore[method-assign]

    async def submitted(self, num_calls: int = 1) -> None:
        """Until that many more calls have reached the engine's inbox."""
        for _ in range(num_calls):
            await asyncio.wait_for(self.submissions.get(), PATIENCE_S)

    async def left(self) -> None:
        """Until the server has noticed that the client of one more request has gone."""
        await asyncio.wait_for(self.departures.get(), PATIENCE_S)

    async def aborted(self) -> None:
        """Until the order to end one more request has reached the engine's inbox."""
        await asyncio.wait_for(self.aborts.get(), PATIENCE_S)

    @property
    def bridge(self) -> AsyncEngine:
        assert self.server.state.service is not None
        return self.server.state.service.bridge

    @property
    def url(self) -> str:
        return self.server.url

    async def post(self, path: str, body: Any) -> tuple[int, dict[str, Any]]:
        """`body` is sent as it is if it is bytes."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.http.post(self.url + path, data=data) as response:
            return response.status, await response.json()

    async def get(self, path: str) -> tuple[int, dict[str, Any]]:
        async with self.http.get(self.url + path) as response:
            return response.status, await response.json()

    async def metrics(self) -> dict[str, float]:
        """Sample name with labels -> value."""
        async with self.http.get(self.url + "/metrics") as response:
            lines = (await response.text()).splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    async def check_nothing_is_left(self) -> None:
        """All places and all blocks are free: one more request runs through and then none is."""
        await asyncio.wait_for(self.bridge.wait_until_empty(), PATIENCE_S)
        await self.client.completions.create(model=MODEL, prompt="x", max_tokens=1)
        assert self.bridge.num_places_taken == 0
        assert not self.engine.has_work()
        assert self.engine.stats.num_used_blocks == 0
        self.engine.scheduler.check_integrity()


@dataclass(frozen=True)
class Setup:
    """What a test may want different."""

    limits: ExecutorLimits = LIMITS
    max_num_queued_reqs: int = 32
    server_limits: ServerLimits = field(default_factory=ServerLimits)
    config: ServerConfig = field(default_factory=lambda: ServerConfig(port=0))
    text: str | None = DIGITS  # byte p of it, modulo, is said at position p; None: a hash
    generation_defaults: dict[str, Any] = field(default_factory=lambda: {"temperature": 0.0})
    is_ready: bool = True
    chat_template: str | None = None
    embedding_use: EmbeddingUse | None = None
    tokenizer_folder: Path | None = None  # None: the fixture's


StartRig = Callable[..., Awaitable[Rig]]


@pytest.fixture
def backend_of(tokenizer_folder: Path) -> Callable[[Setup, Engine], Backend]:
    def build(setup: Setup, engine: Engine) -> Backend:
        return Backend(
            engine=engine,
            tokenizer=Tokenizer(
                read_tokenizer(setup.tokenizer_folder or tokenizer_folder), setup.chat_template
            ),
            model_name=MODEL,
            root="/models/null",
            eos_token_ids=frozenset({EOS}),
            generation_defaults=setup.generation_defaults,
            max_num_queued_reqs=setup.max_num_queued_reqs,
            about=ABOUT,
            embedding_use=setup.embedding_use,
        )

    return build


@pytest.fixture
async def start(
    backend_of: Callable[[Setup, Engine], Backend],
) -> AsyncIterator[StartRig]:
    """Start a server: `await start(max_num_queued_reqs=1)`; it stops after the test."""
    rigs: list[Rig] = []

    async def start(**changes: Any) -> Rig:
        setup = replace(Setup(), **changes)
        executor = GatedExecutor(setup.limits, setup.text)
        engine = Engine(executor)
        server = Server(setup.config, setup.server_limits)
        await server.start()
        client = openai.AsyncOpenAI(
            base_url=server.url + "/v1",
            api_key=setup.config.api_key or "none",
            max_retries=0,
            timeout=PATIENCE_S,
        )
        rig = Rig(server, engine, executor, aiohttp.ClientSession(), client)
        rigs.append(rig)
        if setup.is_ready:
            rig.ready(backend_of(setup, engine))
        return rig

    yield start
    for rig in rigs:
        rig.executor.allow()
        await rig.client.close()
        await rig.http.close()
        await rig.server.stop()


@pytest.fixture
async def rig(start: StartRig) -> Rig:
    return await start()
