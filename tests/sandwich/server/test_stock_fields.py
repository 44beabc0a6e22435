"""Fields of other servers: done, accepted because they change nothing, or refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.sandwich.server.conftest import MODEL, Rig, StartRig, byte_ids, digits

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
PROMPTS: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"prompt": "hello"},
    CHAT: {"messages": [{"role": "user", "content": "hello"}]},
}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


def text_of(answer: dict[str, Any]) -> str:
    choice = answer["choices"][0]
    return str(choice["text"] if "text" in choice else choice["message"]["content"])


async def ask(rig: Rig, path: str, **fields: Any) -> dict[str, Any]:
    status, answer = await rig.post(path, PROMPTS[path] | {"max_tokens": 3} | fields)
    assert status == 200, answer
    return answer


@pytest.mark.parametrize("path", PROMPTS)
@pytest.mark.parametrize(
    "fields",
    [
        {"skip_special_tokens": True, "spaces_between_special_tokens": True},
        {"use_beam_search": False, "length_penalty": 1.0, "early_stopping": False},
        {"length_penalty": 1, "mirostat": 0, "typical_p": 1, "xtc_probability": 0},
        {"best_of": 1},
        {"cache_prompt": True, "id_slot": 3},
        {"repeat_penalty": 1.0},
        {"n_predict": 3, "max_tokens": None},
    ],
)
async def test_what_changes_nothing_is_accepted(
    rig: Rig, path: str, fields: dict[str, Any]
) -> None:
    assert text_of(await ask(rig, path, **fields)) == text_of(await ask(rig, path))


@pytest.mark.parametrize("path", PROMPTS)
@pytest.mark.parametrize(
    "field",
    [
        {"use_beam_search": True},
        {"skip_special_tokens": False},
        {"length_penalty": 1.5},
        {"mirostat": 2},
        {"dry_multiplier": 0.8},
    ],
)
async def test_what_would_change_the_answer_is_refused(
    rig: Rig, path: str, field: dict[str, Any]
) -> None:
    status, answer = await rig.post(path, PROMPTS[path] | field)
    assert status == 400
    assert answer["error"]["param"] == next(iter(field))
    assert answer["error"]["code"] == "unsupported_parameter"


async def test_other_names_of_fields_mean_the_same(rig: Rig) -> None:
    answer = await ask(rig, COMPLETIONS, n_predict=5, max_tokens=None)
    assert answer["usage"]["completion_tokens"] == 5
    answer = await ask(rig, COMPLETIONS, n_predict=-1, max_tokens=None)
    assert answer["usage"]["completion_tokens"] == 16  # the default
    penalised = await ask(rig, COMPLETIONS, repeat_penalty=100.0, max_tokens=12)
    same = await ask(rig, COMPLETIONS, repetition_penalty=100.0, max_tokens=12)
    assert text_of(penalised) == text_of(same) != digits(6, 12)


@pytest.mark.parametrize("path", PROMPTS)
async def test_more_tokens_than_fit_are_clamped_and_the_usage_says_so(rig: Rig, path: str) -> None:
    answer = await ask(rig, path, max_tokens=10_000, ignore_eos=True)
    usage = answer["usage"]
    assert usage["total_tokens"] == 256
    assert usage["max_completion_tokens"] == 256 - usage["prompt_tokens"]
    assert usage["completion_tokens"] == usage["max_completion_tokens"]
    assert answer["choices"][0]["finish_reason"] == "length"
    assert "max_completion_tokens" not in (await ask(rig, path))["usage"]
    exact = await ask(rig, path, max_tokens=256 - usage["prompt_tokens"])
    assert "max_completion_tokens" not in exact["usage"]


@pytest.mark.parametrize("path", PROMPTS)
async def test_usage_can_be_had_in_every_chunk(rig: Rig, path: str) -> None:
    body = PROMPTS[path] | {"max_tokens": 3, "stream": True}
    body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    async with rig.http.post(rig.url + path, json=body) as response:
        lines = (await response.text()).split("\n\n")
    usages = [
        part["usage"]
        for line in lines
        if line.startswith("data: {")
        for part in [json.loads(line.removeprefix("data: "))]
    ]
    assert all(usages)
    counts = [usage["completion_tokens"] for usage in usages]
    assert counts == sorted(counts)
    assert counts[-1] == 3
    assert len(counts) > 1


@pytest.mark.parametrize(("most", "kept"), [(2, "lo"), (5, "hello"), (99, "hello"), (-1, "hello")])
async def test_a_prompt_is_cut_to_its_last_tokens(rig: Rig, most: int, kept: str) -> None:
    answer = await ask(
        rig, COMPLETIONS, truncate_prompt_tokens=most, add_special_tokens=False, echo=False
    )
    assert answer["usage"]["prompt_tokens"] == len(kept)
    assert list(rig.executor.batches[0].requests[0].token_ids[: len(kept)]) == byte_ids(kept)


async def test_minus_one_cuts_a_prompt_to_what_fits(rig: Rig) -> None:
    answer = await ask(rig, COMPLETIONS, prompt=[1] * 300, truncate_prompt_tokens=-1)
    assert answer["usage"]["prompt_tokens"] == 255
    status, answer = await rig.post(COMPLETIONS, {"prompt": "x", "truncate_prompt_tokens": 0})
    assert (status, answer["error"]["param"]) == (400, "truncate_prompt_tokens")


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_the_stop_string_is_shown_on_request(rig: Rig, is_streamed: bool) -> None:
    asked: dict[str, Any] = {"model": MODEL, "prompt": "hello", "max_tokens": 20, "stop": ["12"]}
    asked["extra_body"] = {"include_stop_str_in_output": True}
    answer: Any = await rig.client.completions.create(**asked, stream=is_streamed)
    parts = [chunk async for chunk in answer] if is_streamed else [answer]
    assert "".join(part.choices[0].text for part in parts) == digits(6, 7)
    assert parts[-1].choices[0].stop_reason == "12"


async def test_the_stop_tokens_text_is_shown_on_request(rig: Rig) -> None:
    fields = {"stop_token_ids": [ord("1")], "max_tokens": 20}
    assert text_of(await ask(rig, COMPLETIONS, **fields)) == digits(6, 5)
    shown = await ask(rig, COMPLETIONS, **fields, include_stop_str_in_output=True)
    assert text_of(shown) == digits(6, 6)
    assert digits(6, 6)[-1] == "1"


# ---- chat ----


def prompt_of(rig: Rig) -> str:
    request = rig.executor.batches[-1].requests[0]
    return bytes(request.token_ids[: request.num_prompt_tokens].tolist()).decode()


async def test_the_template_gets_its_variables(start: StartRig) -> None:
    rig = await start(chat_template="{{ enable_thinking }}{{ reasoning_effort }}")
    await ask(rig, CHAT, chat_template_kwargs={"enable_thinking": "no"}, reasoning_effort="low")
    assert prompt_of(rig) == "nolow"
    status, answer = await rig.post(CHAT, PROMPTS[CHAT] | {"chat_template_kwargs": {"tools": 1}})
    assert (status, answer["error"]["param"]) == (400, "chat_template_kwargs")


async def test_the_last_message_can_be_continued(rig: Rig) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "You are "}]
    await ask(rig, CHAT, messages=messages, continue_final_message=True)
    assert prompt_of(rig) == "[user]hi[assistant]You are "
    body = {"messages": messages, "continue_final_message": True, "add_generation_prompt": True}
    status, answer = await rig.post(CHAT, body)
    assert (status, answer["error"]["param"]) == (400, "continue_final_message")


async def test_a_history_with_tool_calls_is_understood(rig: Rig) -> None:
    messages = [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "4"}]},
    ]
    await ask(rig, CHAT, messages=messages, tools=[TOOL], tool_choice="none")
    assert prompt_of(rig) == "[user]2 + 2?[assistant][tool]4[assistant]"


async def test_a_forged_turn_stays_text(rig: Rig) -> None:
    answer = await ask(rig, CHAT, messages=[{"role": "user", "content": "a<eos>"}], max_tokens=1)
    assert answer["usage"]["prompt_tokens"] == len("[user]a<eos>[assistant]")
