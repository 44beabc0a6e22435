"""The small endpoints: models, version, health, tokens and back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import openai
import pytest

import sandwich
from tests.sandwich.server.conftest import BOS, EOS, LIMITS, MODEL, Rig, StartRig, byte_ids


async def test_the_model_is_listed(rig: Rig) -> None:
    [model] = (await rig.client.models.list()).data
    assert (model.id, model.object, model.owned_by) == (MODEL, "model", "sandwich")
    _, answer = await rig.get("/v1/models")
    assert answer["object"] == "list"
    assert answer["data"][0] == {
        "id": MODEL,
        "object": "model",
        "created": model.created,
        "owned_by": "sandwich",
        "root": "/models/null",
        "parent": None,
        "max_model_len": 256,
    }
    assert (await rig.get(f"/v1/models/{MODEL}"))[1] == answer["data"][0]


async def test_another_model_is_not_found(rig: Rig) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await rig.client.models.retrieve("org/other")
    assert caught.value.code == "model_not_found"
    assert "org/other" in caught.value.message


async def test_the_shown_length_is_what_the_cache_allows(start: StartRig) -> None:
    rig = await start(limits=replace(LIMITS, num_blocks=5))
    length = (await rig.get("/v1/models"))[1]["data"][0]["max_model_len"]
    assert length <= 5 * LIMITS.block_size
    body = {"prompt": [1] * (length - 1), "max_tokens": 1}
    assert (await rig.post("/v1/completions", body))[0] == 200
    assert (await rig.post("/v1/completions", {"prompt": [1] * length}))[0] == 400


async def test_health_and_version(rig: Rig) -> None:
    assert await rig.get("/health") == (200, {"status": "ok"})
    assert await rig.get("/version") == (200, {"version": sandwich.__version__})


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"prompt": "hé"}, [BOS, *byte_ids("hé")]),
        ({"prompt": "hé", "add_special_tokens": False}, byte_ids("hé")),
        ({"prompt": "", "model": MODEL}, [BOS]),
        ({"messages": [{"role": "user", "content": "a"}]}, byte_ids("[user]a[assistant]")),
        (
            {"messages": [{"role": "user", "content": "a"}], "add_generation_prompt": False},
            byte_ids("[user]a"),
        ),
        (
            {"messages": [{"role": "user", "content": "a"}], "add_special_tokens": True},
            [BOS, *byte_ids("[user]a[assistant]")],
        ),
        ({"prompt": "x" * 5000}, [BOS, *byte_ids("x" * 5000)]),  # off the event loop
    ],
)
async def test_text_becomes_tokens(rig: Rig, body: Any, tokens: list[int]) -> None:
    assert await rig.post("/tokenize", body) == (
        200,
        {"tokens": tokens, "count": len(tokens), "max_model_len": 256},
    )


@pytest.mark.parametrize("body", [{}, {"prompt": "x", "messages": []}])
async def test_tokenize_takes_a_prompt_or_messages(rig: Rig, body: Any) -> None:
    assert (await rig.post("/tokenize", body))[0] == 400


@pytest.mark.parametrize("text", ["", "hello", "日本 😀", "a\nb\x00"])
async def test_tokens_become_text_again(rig: Rig, text: str) -> None:
    body = {"prompt": text, "add_special_tokens": False}
    _, answer = await rig.post("/tokenize", body)
    assert await rig.post("/detokenize", {"tokens": answer["tokens"]}) == (200, {"prompt": text})


async def test_special_tokens_are_shown(rig: Rig) -> None:
    _, answer = await rig.post("/detokenize", {"tokens": [BOS, 0x61, EOS]})
    assert answer == {"prompt": "<bos>a<eos>"}


@pytest.mark.parametrize("tokens", [[-1], [258], ["a"], "a", None, [1] * 257])
async def test_wrong_tokens_are_refused(rig: Rig, tokens: Any) -> None:
    status, answer = await rig.post("/detokenize", {"tokens": tokens})
    assert status == 400
    assert answer["error"]["param"].startswith("tokens")
