"""Text completions, not streamed, through OpenAI's client."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.sandwich.server.conftest import (
    BOS,
    DIGITS,
    EOS,
    LIMITS,
    MODEL,
    Rig,
    StartRig,
    byte_ids,
    digits,
)


async def test_a_text_is_continued(rig: Rig) -> None:
    answer = await rig.client.completions.create(model=MODEL, prompt="hello", max_tokens=5)
    assert answer.id.startswith("cmpl-")
    assert answer.object == "text_completion"
    assert answer.model == MODEL
    [choice] = answer.choices
    assert choice.text == digits(6, 5)  # after BOS and five bytes
    assert choice.finish_reason == "length"
    assert choice.logprobs is None


async def test_usage_counts_the_tokens(rig: Rig) -> None:
    answer = await rig.client.completions.create(model=MODEL, prompt="hello", max_tokens=5)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 6
    assert answer.usage.completion_tokens == 5
    assert answer.usage.total_tokens == 11
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


async def test_usage_says_how_much_of_a_prompt_was_in_the_cache(rig: Rig) -> None:
    async def num_cached(prompt: list[int], n: int = 1, **extra: Any) -> int | None:
        answer = await rig.client.completions.create(
            model=MODEL, prompt=prompt, max_tokens=3, n=n, extra_body=extra
        )
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        return answer.usage.prompt_tokens_details.cached_tokens

    assert await num_cached([5] * 20) == 0
    assert await num_cached([5] * 20) == 19
    assert await num_cached([5] * 20, n=2) == 19
    assert await num_cached([5] * 20, cache_salt="mine") == 0
    assert await num_cached([5] * 20, cache_salt="mine") == 19


async def test_timings_tell_prefill_and_decode_apart(rig: Rig) -> None:
    _, answer = await rig.post("/v1/completions", {"prompt": "hello", "max_tokens": 5})
    timings = answer["timings"]
    assert (timings["cache_n"], timings["prompt_n"], timings["predicted_n"]) == (0, 6, 5)
    prefill_s, decode_s = timings["prompt_ms"] / 1e3, timings["predicted_ms"] / 1e3
    assert timings["prompt_per_second"] == pytest.approx(6 / prefill_s)
    # The first of the five tokens comes out of prefill.
    assert timings["predicted_per_second"] == pytest.approx(4 / decode_s)
    _, again = await rig.post("/v1/completions", {"prompt": "hello", "max_tokens": 5})
    assert (again["timings"]["cache_n"], again["timings"]["prompt_n"]) == (5, 1)


@pytest.mark.parametrize(
    ("prompt", "num_tokens"),
    [
        ("ab", [3]),
        ([1, 2, 3, 4], [4]),
        (["ab", "abc", ""], [3, 4, 1]),
        ([[7], [1, 2, 3]], [1, 3]),
    ],
)
async def test_every_kind_of_prompt_is_understood(
    rig: Rig, prompt: Any, num_tokens: list[int]
) -> None:
    answer = await rig.client.completions.create(model=MODEL, prompt=prompt, max_tokens=4)
    assert [choice.index for choice in answer.choices] == list(range(len(num_tokens)))
    assert [choice.text for choice in answer.choices] == [digits(n, 4) for n in num_tokens]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == sum(num_tokens)


async def test_special_tokens_can_be_left_out(rig: Rig) -> None:
    body = {"prompt": "abc", "max_tokens": 1, "add_special_tokens": False}
    _, answer = await rig.post("/v1/completions", body)
    assert answer["usage"]["prompt_tokens"] == 3


async def test_the_choices_of_each_prompt_stand_together(rig: Rig) -> None:
    answer = await rig.client.completions.create(
        model=MODEL, prompt=["a", "abc"], n=2, max_tokens=3
    )
    texts = [choice.text for choice in answer.choices]
    assert texts == [digits(2, 3), digits(2, 3), digits(4, 3), digits(4, 3)]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 2 + 4  # a prompt counts once, however many its choices
    assert answer.usage.completion_tokens == 12


async def test_choices_differ_and_a_seed_repeats_them(start: StartRig) -> None:
    rig = await start(text=None)
    request: dict[str, Any] = {"n": 4, "max_tokens": 8, "temperature": 50.0, "seed": 7}
    request |= {"model": MODEL, "prompt": "a", "extra_body": {"ignore_eos": True}}
    first, second = [await rig.client.completions.create(**request) for _ in range(2)]
    texts = [choice.text for choice in first.choices]
    assert len(set(texts)) == 4
    assert texts == [choice.text for choice in second.choices]


async def test_an_eos_token_ends_the_text_unseen(start: StartRig) -> None:
    rig = await start(text=None)
    request: dict[str, Any] = {"model": MODEL, "prompt": "a", "logit_bias": {str(EOS): 100}}
    answer = await rig.client.completions.create(**request)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("", "stop")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 1
    answer = await rig.client.completions.create(
        **request, max_tokens=3, extra_body={"ignore_eos": True}
    )
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("stop", "text", "reason"),
    [
        ("9", "678", "9"),
        ("901", "678", "901"),
        (["zz", "234"], "678901", "234"),
        (["34", "23"], "678901", "23"),
        ("6", "", "6"),
    ],
)
async def test_a_stop_string_is_never_in_the_text(
    rig: Rig, stop: Any, text: str, reason: str
) -> None:
    body = {"prompt": "hello", "max_tokens": 50, "stop": stop}
    _, answer = await rig.post("/v1/completions", body)
    [choice] = answer["choices"]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (
        text,
        "stop",
        reason,
    )
    await rig.check_nothing_is_left()


async def test_usage_ends_with_the_stop_string(rig: Rig) -> None:
    rig.executor.hold()
    rig.executor.allow(5)  # the fifth token completes the stop string
    call = asyncio.create_task(
        rig.client.completions.create(model=MODEL, prompt="hello", max_tokens=200, stop="90")
    )
    await rig.aborted()
    rig.executor.allow()
    usage = (await call).usage
    assert usage is not None
    assert usage.completion_tokens == 5
    assert rig.engine.stats.num_finished["abort"] == 1  # in the engine; it ran no further


async def test_a_stop_token_id_ends_the_text(rig: Rig) -> None:
    body = {"prompt": "hello", "max_tokens": 50, "stop_token_ids": [ord("1")]}
    _, answer = await rig.post("/v1/completions", body)
    [choice] = answer["choices"]
    assert (choice["text"], choice["stop_reason"]) == ("67890", ord("1"))


async def test_echo_puts_the_prompt_in_front(rig: Rig) -> None:
    answer = await rig.client.completions.create(
        model=MODEL, prompt=["hello", "a"], echo=True, max_tokens=2
    )
    assert [choice.text for choice in answer.choices] == ["hello67", "a23"]
    answer = await rig.client.completions.create(
        model=MODEL, prompt=byte_ids("héllo"), echo=True, max_tokens=1
    )
    assert answer.choices[0].text == "héllo6"


async def test_logprobs_line_up_with_the_text(rig: Rig) -> None:
    answer = await rig.client.completions.create(
        model=MODEL, prompt="hello", max_tokens=4, logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == list("6789")
    assert logprobs.text_offset == [0, 1, 2, 3]
    assert logprobs.token_logprobs is not None
    assert logprobs.top_logprobs is not None
    for token, logprob, top in zip(
        logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True
    ):
        assert len(top) == 3
        assert max(top, key=lambda text: top[text]) == token
        assert top[token] == logprob <= 0.0


async def test_the_chosen_token_is_listed_beside_the_likeliest(rig: Rig) -> None:
    body = {"prompt": "hello", "max_tokens": 1, "logprobs": 2, "logit_bias": {str(ord("x")): 100}}
    _, answer = await rig.post("/v1/completions", body)
    [top] = answer["choices"][0]["logprobs"]["top_logprobs"]
    assert list(top)[:2] == ["x", "6"]  # logprobs are of the raw distribution
    assert len(top) == 3


@pytest.mark.parametrize("max_tokens", [0, 1])
@pytest.mark.parametrize("num_prompt_tokens", [1, 2, 15, 16, 17, 40])
async def test_a_prompt_can_be_scored(rig: Rig, max_tokens: int, num_prompt_tokens: int) -> None:
    """As lm-eval does: token ids, echo, logprobs and no or one new token."""
    prompt = byte_ids((DIGITS * 5)[:num_prompt_tokens])
    answer = await rig.client.completions.create(
        model=MODEL, prompt=prompt, echo=True, logprobs=1, max_tokens=max_tokens, temperature=0
    )
    [choice] = answer.choices
    text = (DIGITS * 5)[: num_prompt_tokens + max_tokens]
    assert choice.text == text
    assert choice.finish_reason == "length"
    logprobs: Any = choice.logprobs
    assert logprobs.tokens == list(text)
    assert logprobs.text_offset == list(range(len(text)))
    assert logprobs.token_logprobs[0] is None
    # The model says the digits, so each is the likeliest after those before it.
    assert all(logprob > -0.2 for logprob in logprobs.token_logprobs[1:])
    assert answer.usage is not None
    assert answer.usage.completion_tokens == max_tokens


async def test_the_logprobs_of_a_long_prompt_are_all_there(start: StartRig) -> None:
    rig = await start(limits=replace(LIMITS, max_model_len=400, num_blocks=128))
    prompt = byte_ids((DIGITS * 40)[:300])
    answer = await rig.client.completions.create(
        model=MODEL, prompt=prompt, echo=True, logprobs=2, max_tokens=1
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    assert len(logprobs.token_logprobs) == 301


async def test_the_checkpoints_defaults_stand_between_request_and_built_in(
    start: StartRig,
) -> None:
    rig = await start(generation_defaults={"temperature": 0.0, "max_tokens": 3})
    answer = await rig.client.completions.create(model=MODEL, prompt="hello")
    assert answer.choices[0].text == "678"
    answer = await rig.client.completions.create(model=MODEL, prompt="hello", max_tokens=2)
    assert answer.choices[0].text == "67"


async def test_without_defaults_a_completion_has_16_tokens(rig: Rig) -> None:
    answer = await rig.client.completions.create(model=MODEL, prompt="hello")
    assert answer.choices[0].text == digits(6, 16)


async def test_the_length_is_used_to_its_end(rig: Rig) -> None:
    longest = rig.engine.limits.max_model_len
    answer = await rig.client.completions.create(
        model=MODEL, prompt=[1] * (longest - 3), max_tokens=3
    )
    assert answer.choices[0].text == digits(longest - 3, 3)
    answer = await rig.client.completions.create(model=MODEL, prompt=[1] * (longest - 3))
    assert answer.choices[0].text == digits(longest - 3, 3)  # a default is cut to what fits


async def test_a_prompt_of_bos_alone_is_enough(rig: Rig) -> None:
    answer = await rig.client.completions.create(model=MODEL, prompt=[BOS], max_tokens=1)
    assert answer.choices[0].text == "1"


async def test_sixteen_mixed_requests_at_once_get_their_own_answers(rig: Rig) -> None:
    async def completion(i: int) -> None:
        answer = await rig.client.completions.create(
            model=MODEL, prompt="p" * i, max_tokens=3 + i, n=1 + i % 2
        )
        assert [choice.text for choice in answer.choices] == [digits(1 + i, 3 + i)] * (1 + i % 2)

    async def stream(i: int) -> None:
        stream = await rig.client.completions.create(
            model=MODEL, prompt=[5] * (40 + i), max_tokens=10, stream=True
        )
        texts = [chunk.choices[0].text async for chunk in stream]
        assert "".join(texts) == digits(40 + i, 10)

    async def chat(i: int) -> None:
        answer = await rig.client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "q" * i}], max_tokens=7, stop="zzz"
        )
        num_prompt_tokens = len("[user]" + "q" * i + "[assistant]")
        assert answer.choices[0].message.content == digits(num_prompt_tokens, 7)

    async def refused(i: int) -> None:
        with pytest.raises(openai.BadRequestError):
            await rig.client.completions.create(model=MODEL, prompt="x", max_tokens=-i)

    kinds = (completion, stream, chat, refused)
    await asyncio.gather(*(kinds[i % 4](i) for i in range(16)))
    await rig.check_nothing_is_left()


async def test_a_logprob_that_is_none_is_null_and_no_other_is_infinite(rig: Rig) -> None:
    body = {"prompt": "ab", "max_tokens": 1, "echo": True, "logprobs": 0}
    _, answer = await rig.post("/v1/completions", body)
    first, *others = answer["choices"][0]["logprobs"]["token_logprobs"]
    assert first is None
    assert all(math.isfinite(logprob) for logprob in others)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": "a", "suffix": "b"}, "suffix"),  # this tokenizer has no tokens for it
        ({"prompt": [1], "suffix": "b"}, "suffix"),
        ({"prompt": "a", "suffix": "b", "echo": True}, "echo"),
    ],
)
async def test_a_suffix_that_cannot_be_used_is_refused(
    rig: Rig, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await rig.client.completions.create(model=MODEL, **fields)
    assert caught.value.param == param


async def test_a_middle_is_filled_in(start: StartRig, fim_tokenizer_folder: Path) -> None:
    limits = replace(LIMITS, vocab_size=LIMITS.vocab_size + 3)
    rig = await start(tokenizer_folder=fim_tokenizer_folder, limits=limits)
    answer = await rig.client.completions.create(
        model=MODEL, prompt="ab", suffix="cde", max_tokens=4
    )
    num_prompt = len(["<bos>", "<fim_prefix>", *"ab", "<fim_suffix>", *"cde", "<fim_middle>"])
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == num_prompt
    assert answer.choices[0].text == digits(num_prompt, 4)
