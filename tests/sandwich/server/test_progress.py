"""How far a long prompt is, told while it is computed, to clients that ask."""

from __future__ import annotations

from typing import Any

import pytest

from sandwich.server.server_limits import ServerLimits
from tests.sandwich.server.conftest import LIMITS, MODEL, Rig, StartRig

NUM_TOKENS = 1 + 40
CHUNK = LIMITS.max_num_batched_tokens
SOON = ServerLimits(progress_s=0.001)


async def stream(rig: Rig, is_chat: bool, **extra: Any) -> Any:
    asked: dict[str, Any] = {"model": MODEL, "max_tokens": 2, "stream": True, "extra_body": extra}
    if is_chat:
        messages = [{"role": "user", "content": "x" * (NUM_TOKENS - len("[user][assistant]"))}]
        return await rig.client.chat.completions.create(messages=messages, **asked)  # type: ignore[arg-type]
    return await rig.client.completions.create(prompt="x" * (NUM_TOKENS - 1), **asked)


@pytest.mark.parametrize("is_chat", [False, True])
async def test_each_chunk_of_the_prompt_is_told_while_it_lasts(
    start: StartRig, is_chat: bool
) -> None:
    rig = await start(server_limits=SOON)
    rig.executor.hold()
    told = []
    async for chunk in await stream(rig, is_chat, return_progress=True):
        if progress := getattr(chunk, "prompt_progress", None):
            assert chunk.choices == []
            assert (progress["total"], progress["cache"]) == (NUM_TOKENS, 0)
            told.append(progress["processed"])
            rig.executor.allow(1 if len(told) < 3 else 99)
    assert told == [0, CHUNK, 2 * CHUNK]
    await rig.check_nothing_is_left()


async def test_who_does_not_ask_is_told_nothing(start: StartRig) -> None:
    rig = await start(server_limits=ServerLimits(progress_s=0.001, keep_alive_s=0.001))
    chunks = [chunk async for chunk in await stream(rig, is_chat=False)]
    assert not any(hasattr(chunk, "prompt_progress") for chunk in chunks)
