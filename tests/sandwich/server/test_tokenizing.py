"""Long texts are tokenised beside the event loop, which goes on, and in bounded numbers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from sandwich.server.server_limits import ServerLimits
from sandwich.server.service import Service
from sandwich.text.messages import Chat
from sandwich.text.tokenizer import ChatPrompt, Tokenizer
from tests.sandwich.server.conftest import PATIENCE_S, Rig, StartRig


class SlowTokenizer:
    """Says when and where it encodes, and waits to be let go if it is not on the loop's thread."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.threads: list[threading.Thread] = []
        self.begun = asyncio.Event()
        self.go_on = threading.Event()
        self._loop = asyncio.get_running_loop()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def encode_prompts(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[int]]:
        self._wait()
        return self._tokenizer.encode_prompts(texts, add_special_tokens)

    def encode_chats(self, chats: Sequence[Chat]) -> list[ChatPrompt]:
        self._wait()
        return self._tokenizer.encode_chats(chats)

    def _wait(self) -> None:
        self.threads.append(threading.current_thread())
        if threading.current_thread() is not threading.main_thread():
            self._loop.call_soon_threadsafe(self.begun.set)
            assert self.go_on.wait(PATIENCE_S)


@pytest.fixture
async def slow(start: StartRig) -> tuple[Rig, SlowTokenizer]:
    rig = await start(server_limits=ServerLimits(max_inline_chars=20), max_num_queued_reqs=1)
    service = rig.server.state.service
    assert isinstance(service, Service)
    tokenizer = SlowTokenizer(service.tokenizer)
    service.tokenizer = tokenizer  # type: ignore[assignment]
    return rig, tokenizer


BODIES = {
    "/v1/completions": {"prompt": ["x" * 11, "y" * 10], "max_tokens": 1},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x" * 21}], "max_tokens": 1},
    "/tokenize": {"prompt": "x" * 21},
}


@pytest.mark.parametrize("path", BODIES)
async def test_the_loop_goes_on_while_a_long_text_is_tokenised(
    slow: tuple[Rig, SlowTokenizer], path: str
) -> None:
    rig, tokenizer = slow
    call = asyncio.create_task(rig.post(path, BODIES[path]))
    await asyncio.wait_for(tokenizer.begun.wait(), PATIENCE_S)
    assert (await rig.get("/health"))[0] == 200
    short = {"prompt": "x" * 20, "max_tokens": 1}
    assert (await rig.post("/v1/completions", short))[0] == 200
    assert not call.done()
    tokenizer.go_on.set()
    assert (await call)[0] == 200
    assert [thread is threading.main_thread() for thread in tokenizer.threads] == [False, True]


async def test_a_text_that_is_being_tokenised_holds_its_place(
    slow: tuple[Rig, SlowTokenizer],
) -> None:
    rig, tokenizer = slow
    calls = [
        asyncio.create_task(rig.post("/tokenize", BODIES["/tokenize"]))
        for _ in range(rig.bridge.max_num_places + 1)
    ]
    done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    assert [call.result()[0] for call in done] == [429]
    tokenizer.go_on.set()
    statuses = [status for status, _ in await asyncio.gather(*calls)]
    assert sorted(statuses) == [200] * rig.bridge.max_num_places + [429]


async def test_leaving_while_the_text_is_tokenised_gives_the_place_back(
    slow: tuple[Rig, SlowTokenizer],
) -> None:
    rig, tokenizer = slow
    call = asyncio.create_task(rig.post("/v1/completions", BODIES["/v1/completions"]))
    await asyncio.wait_for(tokenizer.begun.wait(), PATIENCE_S)
    call.cancel()
    await asyncio.wait_for(rig.bridge.wait_until_empty(), PATIENCE_S)
    tokenizer.go_on.set()
    await rig.check_nothing_is_left()
    assert rig.engine.stats.num_finished == {"length": 1}
