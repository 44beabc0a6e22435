"""Streamed answers: what each chunk holds, and the bytes between them."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import openai
import pytest

from sandwich.server.server_limits import ServerLimits
from tests.sandwich.server.conftest import LIMITS, MODEL, PATIENCE_S, Rig, StartRig, digits

USER: Any = [{"role": "user", "content": "hi"}]
NUM_TOKENS = len("[user]hi[assistant]")
USAGE = {"stream_options": {"include_usage": True}}


async def stream(rig: Rig, path: str, body: dict[str, Any]) -> str:
    """The raw body of a streamed answer."""
    async with rig.http.post(rig.url + path, json={"stream": True} | body) as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/event-stream"
        return await response.text()


def events(raw: str) -> list[dict[str, Any]]:
    """The JSON of all events; the last one must be [DONE], and nothing else may be there."""
    frames = raw.split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""]
    data = [frame for frame in frames[:-2] if frame != ":"]
    assert all(frame.startswith("data: {") and "\n" not in frame for frame in data)
    return [json.loads(frame.removeprefix("data: ")) for frame in data]


async def chat_chunks(rig: Rig, **body: Any) -> list[dict[str, Any]]:
    return events(await stream(rig, "/v1/chat/completions", {"messages": USER} | body))


async def test_a_chat_stream_has_a_role_pieces_and_a_reason(rig: Rig) -> None:
    first, *pieces, last = await chat_chunks(rig, max_tokens=3)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert first["choices"][0]["finish_reason"] is None
    said = [chunk["choices"][0]["delta"] for chunk in pieces]
    assert said == [{"content": c} for c in digits(NUM_TOKENS, 3)]
    assert last["choices"][0]["delta"] == {}
    assert last["choices"][0]["finish_reason"] == "length"
    chunks = [first, *pieces, last]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert not any("usage" in chunk for chunk in chunks)


async def test_usage_comes_in_a_chunk_of_its_own(rig: Rig) -> None:
    *chunks, closing = await chat_chunks(rig, max_tokens=3, **USAGE)
    assert all(chunk["usage"] is None for chunk in chunks)
    assert closing["choices"] == []
    assert closing["usage"] == {
        "prompt_tokens": NUM_TOKENS,
        "completion_tokens": 3,
        "total_tokens": NUM_TOKENS + 3,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert closing["timings"]["predicted_n"] == 3
    assert closing["id"] == chunks[0]["id"]


async def test_a_text_stream_has_pieces_and_a_reason(rig: Rig) -> None:
    raw = await stream(rig, "/v1/completions", {"prompt": "hello", "max_tokens": 3} | USAGE)
    *chunks, closing = events(raw)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "678"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "length"]
    assert closing["choices"] == []
    assert closing["usage"]["completion_tokens"] == 3


async def test_openais_client_reads_both_streams(rig: Rig) -> None:
    chat: Any = await rig.client.chat.completions.create(
        model=MODEL,
        messages=USER,
        max_tokens=4,
        stream=True,
    )
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in chat]) == digits(
        NUM_TOKENS, 4
    )
    text = await rig.client.completions.create(
        model=MODEL, prompt="hello", max_tokens=4, stream=True
    )
    assert "".join([chunk.choices[0].text async for chunk in text]) == "6789"


async def test_the_choices_of_a_stream_keep_their_indices(rig: Rig) -> None:
    chunks = await chat_chunks(rig, n=3, max_tokens=2)
    for index in range(3):
        own = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(c["delta"].get("content", "") for c in own) == digits(NUM_TOKENS, 2)
        assert [c["finish_reason"] for c in own][-2:] == [None, "length"]


async def test_a_stop_string_is_held_back_and_never_sent(rig: Rig) -> None:
    raw = await stream(
        rig, "/v1/completions", {"prompt": "hello", "max_tokens": 99, "stop": ["901", "99"]}
    )
    chunks = events(raw)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "678"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["choices"][0]["stop_reason"] == "901"
    await rig.check_nothing_is_left()


async def test_text_that_only_began_a_stop_string_is_sent_in_the_end(rig: Rig) -> None:
    raw = await stream(rig, "/v1/completions", {"prompt": "hello", "max_tokens": 4, "stop": "89x"})
    assert "".join(chunk["choices"][0]["text"] for chunk in events(raw)) == "6789"


async def test_no_piece_holds_half_a_character(start: StartRig) -> None:
    rig = await start(text="日é")  # 3 + 2 bytes; prompts of 5 tokens end where the text begins
    raw = await stream(rig, "/v1/completions", {"prompt": [1] * 5, "max_tokens": 10})
    pieces = [chunk["choices"][0]["text"] for chunk in events(raw)]
    assert [piece for piece in pieces if piece] == ["日", "é", "日", "é"]


async def test_half_a_character_at_the_end_is_replaced(start: StartRig) -> None:
    rig = await start(text="日é")
    raw = await stream(rig, "/v1/completions", {"prompt": [1] * 5, "max_tokens": 4})
    assert "".join(chunk["choices"][0]["text"] for chunk in events(raw)) == "日\ufffd"


async def test_streamed_logprobs_cover_every_token_once(rig: Rig) -> None:
    chunks = await chat_chunks(rig, max_tokens=5, logprobs=True, top_logprobs=2, stop="zz")
    entries = [
        entry
        for chunk in chunks
        if chunk["choices"][0]["logprobs"]
        for entry in chunk["choices"][0]["logprobs"]["content"]
    ]
    assert [entry["token"] for entry in entries] == list(digits(NUM_TOKENS, 5))


async def test_an_echoed_prompt_comes_first_with_its_logprobs(rig: Rig) -> None:
    body = {"prompt": [0x35, 0x31, 0x32], "echo": True, "logprobs": 1, "max_tokens": 2}
    first, second = events(await stream(rig, "/v1/completions", body))
    assert first["choices"][0]["text"] == "5123"
    assert first["choices"][0]["logprobs"]["tokens"] == list("5123")
    assert first["choices"][0]["logprobs"]["token_logprobs"][0] is None
    assert second["choices"][0]["logprobs"]["tokens"] == ["4"]
    assert second["choices"][0]["logprobs"]["text_offset"] == [4]


async def test_an_echoed_prompt_alone_can_be_streamed(rig: Rig) -> None:
    body = {"prompt": "abc", "echo": True, "max_tokens": 0}
    [only] = events(await stream(rig, "/v1/completions", body))
    assert only["choices"][0]["text"] == "abc"
    assert only["choices"][0]["finish_reason"] == "length"


async def test_comments_keep_a_silent_stream_alive(start: StartRig) -> None:
    rig = await start(server_limits=ServerLimits(keep_alive_s=0.001))
    rig.executor.hold()
    body = {"messages": USER, "stream": True, "max_tokens": 1}
    async with rig.http.post(rig.url + "/v1/chat/completions", json=body) as response:
        assert response.status == 200  # before there is a token
        assert await response.content.readexactly(9) == b":\n\n" * 3
        rig.executor.allow()
        assert len(events(await response.text())) == 3


async def test_a_failure_on_the_way_is_an_event(start: StartRig) -> None:
    rig = await start()
    rig.executor.failing_runs = frozenset({1})  # whether or not it comes along with the first
    raw = await stream(rig, "/v1/completions", {"prompt": "hello", "max_tokens": 5})
    token, error = events(raw)
    assert token["choices"][0]["text"] == "6"
    assert error["error"]["type"] == "server_error"
    assert "injected failure" in error["error"]["message"]
    await rig.check_nothing_is_left()


async def test_openais_client_raises_the_error_of_a_stream(start: StartRig) -> None:
    rig = await start()
    rig.executor.failing_runs = frozenset({0})
    chunks = await rig.client.completions.create(model=MODEL, prompt="x", stream=True)
    with pytest.raises(openai.APIError, match="injected failure"):
        [chunk async for chunk in chunks]


async def test_a_request_that_is_wrong_is_refused_before_the_stream_begins(rig: Rig) -> None:
    body = {"prompt": "x" * 300, "stream": True}
    assert (await rig.post("/v1/completions", body))[0] == 400


async def test_others_go_on_while_a_long_prompt_is_prefilled(start: StartRig) -> None:
    rig = await start(limits=replace(LIMITS, max_num_batched_tokens=8))
    rig.executor.hold()
    short = asyncio.create_task(
        rig.client.completions.create(model=MODEL, prompt="a", max_tokens=3)
    )
    await rig.executor.entered(1)
    long = asyncio.create_task(
        rig.client.completions.create(model=MODEL, prompt=[1] * 80, max_tokens=1)
    )
    await rig.submitted(2)
    rig.executor.allow(6)
    assert (await asyncio.wait_for(short, PATIENCE_S)).choices[0].text == digits(2, 3)
    assert not long.done()
    rig.executor.allow()
    assert (await long).choices[0].text == "0"
