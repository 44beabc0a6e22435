from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import sandwich
from sandwich.errors import (
    ContextLengthError,
    InvalidRequestError,
    UnavailableError,
)
from sandwich.llm import LLM
from sandwich.requests.sampling_params import SamplingParams
from sandwich.text.messages import Chat
from sandwich.text.tokenizer import Tokenizer

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


def test_the_package_exports_the_api() -> None:
    assert sandwich.LLM is LLM
    assert sandwich.SamplingParams is SamplingParams
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        sandwich.nothing  # noqa: B018


def test_no_prompts_have_no_results(llm: LLM) -> None:
    assert llm.generate([], GREEDY) == []


def test_many_more_prompts_than_run_at_once_all_end(llm: LLM) -> None:
    lengths = [1 + index % 5 for index in range(23)]
    prompts = [{"prompt_token_ids": [70 + index]} for index in range(23)]
    params = [replace(GREEDY, max_tokens=length) for length in lengths]
    results = llm.generate(prompts, params, use_tqdm=False)
    assert [len(result.outputs[0].token_ids) for result in results] == lengths


def test_each_prompt_may_have_its_own_params(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="2 prompts but 1 sampling_params"):
        llm.generate(["a", "b"], [GREEDY])


def test_choices_of_one_prompt_differ_and_are_repeatable(llm: LLM) -> None:
    params = SamplingParams(n=3, seed=5, temperature=2.0, max_tokens=16, ignore_eos=True)
    first, second = (llm.generate("a", params, use_tqdm=False)[0] for _ in range(2))
    assert [output.index for output in first.outputs] == [0, 1, 2]
    ids = [output.token_ids for output in first.outputs]
    assert ids == [output.token_ids for output in second.outputs]
    assert len({tuple(each) for each in ids}) == 3


def test_the_end_of_sequence_token_ends_the_text(llm: LLM) -> None:
    prompt = {"prompt_token_ids": [70]}
    bias = {1: 100.0}
    params = SamplingParams(temperature=0, logit_bias=bias)
    [result] = llm.generate(prompt, params, use_tqdm=False)
    output = result.outputs[0]
    assert (output.token_ids, output.text, output.finish_reason) == ([1], "", "stop")


def test_a_stop_string_cuts_the_text_and_frees_the_engine(llm: LLM) -> None:
    [whole] = llm.generate("def", GREEDY, use_tqdm=False)
    text = whole.outputs[0].text
    stop = text[3:5]
    assert stop not in text[:4]
    params = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True, stop=[stop])
    [result] = llm.generate("def", params, use_tqdm=False)
    output = result.outputs[0]
    assert output.text == text[:3]
    assert (output.finish_reason, output.stop_reason) == ("stop", stop)
    assert output.timings is not None


def test_logprobs_come_with_every_token(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=4, logprobs=2, prompt_logprobs=0)
    [result] = llm.generate("def add", params, use_tqdm=False)
    output = result.outputs[0]
    assert output.logprobs is not None
    for token_id, logprobs in zip(output.token_ids, output.logprobs, strict=True):
        assert logprobs[token_id].rank == 1
        assert len(logprobs.top_ids) == 2
    assert result.prompt_logprobs is not None
    assert result.prompt_logprobs[0] is None
    assert len(result.prompt_logprobs) == len(result.prompt_token_ids)


def test_the_default_params_are_the_models(make_parts: Callable[..., Any]) -> None:
    parts = make_parts({"temperature": 0.25, "top_k": 7})
    with LLM.from_parts(parts) as llm:
        assert llm.default_sampling_params().temperature == 0.25
        assert llm.default_sampling_params(temperature=0).top_k == 7
        [result] = llm.generate("a", use_tqdm=False)
    assert len(result.outputs[0].token_ids) <= SamplingParams().max_tokens  # type: ignore[operator]


def test_a_failed_request_says_so_and_the_others_go_on(make_parts: Callable[..., Any]) -> None:
    parts = make_parts(failing_runs=(1,), max_num_seqs=1)
    with LLM.from_parts(parts) as llm:
        results = llm.generate(["a", "b", "def"], GREEDY, use_tqdm=False)
    reasons = [result.outputs[0].finish_reason for result in results]
    assert sorted(reasons) == ["error", "length", "length"]  # type: ignore[type-var]
    failed = results[reasons.index("error")].outputs[0]
    assert failed.error is not None
    assert "injected failure" in failed.error


# ---- chat ----


def test_a_conversation_is_rendered_and_answered(llm: LLM, tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": "hello"}]
    [result] = llm.chat(messages, GREEDY, use_tqdm=False)
    prompt = tokenizer.render_chat(Chat(messages=messages))
    assert result.prompt == prompt
    assert result.prompt_token_ids == tokenizer.encode(prompt, add_special_tokens=False)
    assert result.prompt_token_ids.count(0) == 1  # BOS comes from the template alone
    both = llm.chat([messages, messages], GREEDY, use_tqdm=False)
    assert [each.outputs[0].token_ids for each in both] == [result.outputs[0].token_ids] * 2


def test_parts_of_a_content_are_joined_as_over_http(llm: LLM) -> None:
    parts = [{"type": "text", "text": "hello"}, {"type": "text", "text": "world"}]
    [result] = llm.chat([{"role": "user", "content": parts}], GREEDY, use_tqdm=False)
    assert result.prompt is not None
    assert "<|user|>hello\nworld<|end|>" in result.prompt


def test_the_prompt_of_a_chat_can_end_without_a_reply_or_inside_one(llm: LLM) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    [plain] = llm.chat(messages, GREEDY, use_tqdm=False, add_generation_prompt=False)
    [inside] = llm.chat(
        messages, GREEDY, use_tqdm=False, add_generation_prompt=False, continue_final_message=True
    )
    assert plain.prompt is not None
    assert inside.prompt is not None
    assert plain.prompt.endswith("<|assistant|>b<|end|>\n")
    assert inside.prompt.endswith("<|assistant|>b")


def test_an_empty_conversation_is_refused(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="must not be empty"):
        llm.chat([[]], GREEDY)


# ---- streams ----


def test_a_stream_brings_the_same_as_generate(llm: LLM) -> None:
    [whole] = llm.generate("def add", GREEDY, use_tqdm=False)
    deltas = list(llm.stream("def add", GREEDY))
    assert "".join(delta.text for delta in deltas) == whole.outputs[0].text
    assert [i for delta in deltas for i in delta.token_ids] == whole.outputs[0].token_ids
    assert [d.finish_reason for d in deltas if d.finish_reason] == ["length"]


def test_closing_a_stream_ends_its_request(llm: LLM) -> None:
    stream = llm.stream("def add", GREEDY)
    next(stream)
    assert llm._engine.has_work()
    stream.close()
    assert not llm._engine.has_work()


def test_a_stream_that_is_never_read_takes_no_place(llm: LLM) -> None:
    llm.stream("def add", GREEDY)
    assert not llm._engine.has_work()


def test_streams_and_calls_may_interleave(llm: LLM) -> None:
    [alone] = llm.generate("def add", GREEDY, use_tqdm=False)
    one, other = llm.stream("def add", GREEDY), llm.chat_stream([{"role": "user", "content": "a"}])
    texts = [next(one).text, next(other).text]
    [between] = llm.generate("hello", GREEDY, use_tqdm=False)
    texts[0] += "".join(delta.text for delta in one)
    other.close()
    assert texts[0] == alone.outputs[0].text
    assert len(between.outputs[0].token_ids) == 12


def test_a_stream_is_refused_at_the_call(llm: LLM) -> None:
    with pytest.raises(ContextLengthError):
        llm.stream({"prompt_token_ids": [70] * 128}, GREEDY)
    with pytest.raises(InvalidRequestError, match="n is 2"):
        llm.stream("a", SamplingParams(n=2))


def test_an_interrupt_leaves_nothing_running(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = iter([llm._engine.step, llm._engine.step])

    def step() -> Any:
        try:
            return next(steps)()
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(llm._engine, "step", step)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["a"] * 9, GREEDY, use_tqdm=False)
    monkeypatch.undo()
    assert not llm._engine.has_work()
    assert len(llm.generate("a", GREEDY, use_tqdm=False)) == 1


def test_a_closed_llm_says_so_at_once(make_parts: Callable[..., Any]) -> None:
    llm = LLM.from_parts(make_parts())
    llm.close()
    messages = [{"role": "user", "content": "a"}]
    for call in (
        lambda: llm.generate("a"),
        lambda: llm.generate([]),
        lambda: llm.chat(messages),
        lambda: llm.stream("a"),
        lambda: llm.chat_stream(messages),
    ):
        with pytest.raises(UnavailableError, match="closed; make a new one"):
            call()


def test_a_forked_child_is_told_why_it_cannot_generate(llm: LLM) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            llm.generate("a", GREEDY)
            message = "no error"
        except UnavailableError as error:
            message = str(error)
        llm.close()
        os.write(writer, message.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        assert "forked from" in pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    assert len(llm.generate("a", GREEDY, use_tqdm=False)) == 1  # the parent's goes on


def test_leaving_the_context_closes_the_engine(make_parts: Callable[..., Any]) -> None:
    parts = make_parts()
    with LLM.from_parts(parts):
        pass
    assert parts.engine.executor.is_closed


def test_embeddings_are_unit_vectors_in_the_order_of_the_prompts(llm: LLM) -> None:
    prompts = [{"prompt_token_ids": list(range(5, 5 + length))} for length in (1, 9, 30, 2)]
    together = llm.embed(prompts)
    alone = [llm.embed([prompt])[0] for prompt in prompts]
    for first, second in zip(together, alone, strict=True):
        np.testing.assert_allclose(first, second, atol=1e-6)
        assert abs(np.linalg.norm(first) - 1) < 1e-6
    assert not np.allclose(llm.embed(prompts[1], "last")[0], alone[1])
    with pytest.raises(InvalidRequestError, match="must be mean or last"):
        llm.embed(["a"], "cls")


def test_an_embedding_that_fails_raises(make_parts: Callable[..., Any]) -> None:
    with (
        LLM.from_parts(make_parts(failing_runs=(0,))) as llm,
        pytest.raises(UnavailableError, match="injected failure"),
    ):
        llm.embed(["a"])


def test_salt_and_priority_reach_the_requests(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    add = llm._engine.add_request

    def add_request(request: Any) -> None:
        seen.append((request.priority, request.cache_salt))
        add(request)

    monkeypatch.setattr(llm._engine, "add_request", add_request)
    asked: dict[str, Any] = {"priority": 2, "cache_salt": "me"}
    llm.generate("a", GREEDY, use_tqdm=False, **asked)
    llm.chat([{"role": "user", "content": "a"}], GREEDY, use_tqdm=False, **asked)
    llm.embed("a", **asked)
    list(llm.stream("a", GREEDY, **asked))
    assert seen == [(2, "me")] * 4
