"""A server over the null executor, on a loop and a thread of its own."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from sandwich.config import ServerConfig
from sandwich.engine.engine import Engine
from sandwich.executor.base import ExecutorLimits
from sandwich.executor.null import NullExecutor
from sandwich.server.app import Server
from sandwich.server.backend import Backend
from sandwich.text.tokenizer import Tokenizer
from tests.sandwich.server.conftest import ABOUT

VOCAB_SIZE = 257
TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
LIMITS = ExecutorLimits(
    block_size=16,
    num_blocks=512,
    max_num_seqs=4,
    max_num_batched_tokens=64,
    max_model_len=1024,
    vocab_size=VOCAB_SIZE,
)


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of bytes, without merges, so that a letter is a token."""
    folder = tmp_path_factory.mktemp("tokenizer")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(
        models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<eos>"])
    backend.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<eos>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def server_url(tokenizer_folder: Path) -> Iterator[str]:
    """Where a server listens until the end of the test."""
    server = Server(ServerConfig(port=0))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> str:
        await server.start()
        server.ready(
            Backend(
                engine=Engine(NullExecutor(LIMITS)),
                tokenizer=Tokenizer(tokenizer_folder),
                model_name="null",
                root="/models/null",
                eos_token_ids=frozenset({VOCAB_SIZE - 1}),
                generation_defaults={},
                max_num_queued_reqs=64,
                about=ABOUT,
            )
        )
        return server.url

    yield asyncio.run_coroutine_threadsafe(start(), loop).result(60)
    asyncio.run_coroutine_threadsafe(server.stop(), loop).result(60)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
