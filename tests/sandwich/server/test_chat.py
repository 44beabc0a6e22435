"""Chat completions, not streamed, through OpenAI's client."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.sandwich.server.conftest import MODEL, Rig, StartRig, digits

USER = [{"role": "user", "content": "hi"}]
NUM_TOKENS = len("[user]hi[assistant]")


async def ask(rig: Rig, messages: Any = USER, **fields: Any) -> Any:
    return await rig.client.chat.completions.create(model=MODEL, messages=messages, **fields)


async def test_a_conversation_is_answered(rig: Rig) -> None:
    answer = await ask(rig, max_tokens=6)
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    [choice] = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == digits(NUM_TOKENS, 6)
    assert choice.finish_reason == "length"
    assert choice.logprobs is None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (NUM_TOKENS, 6)
    assert answer.timings["prompt_n"] == NUM_TOKENS


async def test_by_default_the_answer_goes_on_as_long_as_it_fits(rig: Rig) -> None:
    answer = await ask(rig)
    assert answer.usage.total_tokens == rig.engine.limits.max_model_len


@pytest.mark.parametrize("fields", [{"max_tokens": 3}, {"max_completion_tokens": 3}])
async def test_both_names_of_max_tokens_work(rig: Rig, fields: dict[str, int]) -> None:
    assert (await ask(rig, **fields)).usage.completion_tokens == 3


async def test_the_checkpoints_max_tokens_is_the_default(start: StartRig) -> None:
    rig = await start(generation_defaults={"temperature": 0.0, "max_tokens": 5})
    assert (await ask(rig)).usage.completion_tokens == 5


@pytest.mark.parametrize(
    ("messages", "rendered"),
    [
        ([{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "[user]hi"),
        (
            [
                {"role": "user", "content": [{"type": "text", "text": t} for t in ("a", "b")]},
            ],
            "[user]a\nb",
        ),
        ([{"role": "developer", "content": "x"}, *USER], "[system]x[user]hi"),
        ([{"role": "system", "content": "x", "name": "boss"}, *USER], "[system]x[user]hi"),
        (
            [*USER, {"role": "assistant", "content": "yo"}, {"role": "user", "content": "é"}],
            "[user]hi[assistant]yo[user]é",
        ),
        (
            [
                *USER,
                {"role": "assistant", "content": None, "tool_calls": [], "refusal": None},
                *USER,
            ],
            "[user]hi[assistant][user]hi",
        ),
    ],
)
async def test_messages_go_through_the_template(
    rig: Rig, messages: list[dict[str, Any]], rendered: str
) -> None:
    answer = await ask(rig, messages, max_tokens=1)
    assert answer.usage.prompt_tokens == len((rendered + "[assistant]").encode())


async def test_an_answer_can_be_sent_back_as_history(rig: Rig) -> None:
    answer = await ask(rig, max_tokens=2)
    history = [*USER, answer.choices[0].message.model_dump(), *USER]
    assert (await ask(rig, history, max_tokens=1)).usage.completion_tokens == 1


async def test_the_reply_need_not_be_opened(rig: Rig) -> None:
    answer = await ask(rig, max_tokens=1, extra_body={"add_generation_prompt": False})
    assert answer.usage.prompt_tokens == len("[user]hi")


async def test_each_choice_has_its_index(rig: Rig) -> None:
    answer = await ask(rig, n=3, max_tokens=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert {choice.message.content for choice in answer.choices} == {digits(NUM_TOKENS, 2)}
    assert answer.usage.prompt_tokens == NUM_TOKENS
    assert answer.usage.completion_tokens == 6


@pytest.mark.parametrize(("top_logprobs", "num_top"), [(None, 0), (0, 0), (1, 1), (20, 20)])
async def test_logprobs_have_the_likeliest_tokens(
    rig: Rig, top_logprobs: int | None, num_top: int
) -> None:
    fields = {} if top_logprobs is None else {"top_logprobs": top_logprobs}
    answer = await ask(rig, max_tokens=3, logprobs=True, **fields)
    content = answer.choices[0].logprobs.content
    assert "".join(entry.token for entry in content) == answer.choices[0].message.content
    for entry in content:
        assert bytes(entry.bytes) == entry.token.encode()
        assert len(entry.top_logprobs) == num_top
        assert [top.token for top in entry.top_logprobs[:1]] == [entry.token][:num_top]


async def test_the_bytes_of_logprobs_make_up_characters(start: StartRig) -> None:
    rig = await start(text="é")
    answer = await ask(rig, [{"role": "user", "content": "hey"}], max_tokens=4, logprobs=True)
    content = answer.choices[0].logprobs.content
    assert answer.choices[0].message.content == "éé"
    assert b"".join(bytes(entry.bytes) for entry in content) == "éé".encode()


async def test_a_stop_string_ends_the_answer(rig: Rig) -> None:
    answer = await ask(rig, stop=["23"])
    text = digits(NUM_TOKENS, 20)
    assert answer.choices[0].message.content == text[: text.index("23")]
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": []},
        {"tool_choice": "none"},
        {"response_format": {"type": "text"}},
        {"modalities": ["text"]},
        {"user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"},
        {"safety_identifier": "s", "prompt_cache_key": "k", "parallel_tool_calls": True},
        {"seed": 1, "presence_penalty": 0.5, "frequency_penalty": -0.5, "logit_bias": {"1": 0}},
        {"extra_body": {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "min_tokens": 2}},
        {"temperature": None, "stop": None, "stream_options": None, "n": None},
    ],
)
async def test_fields_that_ask_for_nothing_special_are_taken(
    rig: Rig, fields: dict[str, Any]
) -> None:
    assert (await ask(rig, max_tokens=2, **fields)).usage.completion_tokens == 2


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"prediction": {"type": "content", "content": ""}}, "prediction"),
    ],
)
async def test_what_cannot_be_done_is_refused(rig: Rig, fields: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError, match="not supported") as caught:
        await ask(rig, **fields)
    assert caught.value.param == param
    assert caught.value.code == "unsupported_parameter"


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ([{"role": "wizard", "content": "x"}], "messages[0].role"),
        ([*USER, {"role": "user"}], "messages[1].content"),
        ([{"content": "x"}], "messages[0].role"),
        ([{"role": "user", "content": 3}], "messages[0].content"),
        ([{"role": "user", "content": "x", "contnet": "y"}], "messages[0].contnet"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            "messages[0].content[0].type",
        ),
        ([{"role": "user", "content": [{"type": "video"}]}], "messages[0].content[0].type"),
        ([{"role": "tool", "content": "x", "function_call": {}}], "messages[0].function_call"),
        (["hi"], "messages[0]"),
        ("hi", "messages"),
    ],
)
async def test_a_wrong_message_is_named(rig: Rig, messages: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await ask(rig, messages)
    assert caught.value.param == param


async def test_contradicting_names_of_max_tokens_are_refused(rig: Rig) -> None:
    with pytest.raises(openai.BadRequestError, match="give one"):
        await ask(rig, max_tokens=3, max_completion_tokens=4)


@pytest.mark.parametrize("top_logprobs", [5, 21, -1])
async def test_top_logprobs_without_logprobs_or_out_of_range_are_refused(
    rig: Rig, top_logprobs: int
) -> None:
    with pytest.raises(openai.BadRequestError):
        await ask(rig, top_logprobs=top_logprobs, logprobs=top_logprobs != 5)
