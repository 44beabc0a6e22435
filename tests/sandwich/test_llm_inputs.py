"""What callers of the Python API pass: prompts, parameters, options."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sandwich.errors import (
    ConfigError,
    ContextLengthError,
    InvalidRequestError,
)
from sandwich.llm import LLM
from sandwich.llm_inputs import Prompt
from sandwich.requests.sampling_params import SamplingParams
from sandwich.text.tokenizer import Tokenizer

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


def expected_ids(llm: LLM, prompt_ids: list[int], num_tokens: int) -> list[int]:
    executor: Any = llm._engine.executor
    return list(executor.continuation(prompt_ids, num_tokens))


def test_prompts_of_every_form_are_continued_in_their_order(llm: LLM, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("hello world")
    prompts: list[Prompt] = [
        "def add",
        {"prompt": "a"},
        {"prompt_token_ids": ids},
        {"prompt_token_ids": [70]},
    ]
    results = llm.generate(prompts, GREEDY, use_tqdm=False)
    assert [result.prompt for result in results] == ["def add", "a", None, None]
    assert [result.prompt_token_ids for result in results] == [
        tokenizer.encode("def add"),
        tokenizer.encode("a"),
        ids,
        [70],
    ]
    for result in results:
        [output] = result.outputs
        assert output.token_ids == expected_ids(llm, result.prompt_token_ids, 12)
        assert output.text == tokenizer.decode(output.token_ids)
        assert (output.finish_reason, output.stop_reason, output.logprobs) == ("length", None, None)
        assert output.timings is not None
        assert output.timings.num_output_tokens == 12


@pytest.mark.parametrize("prompt", ["def add", {"prompt": "def add"}])
def test_one_prompt_need_not_be_in_a_list(llm: LLM, prompt: str | dict[str, str]) -> None:
    [result] = llm.generate(prompt, GREEDY, use_tqdm=False)
    assert result.prompt == "def add"


def test_numpy_token_ids_are_token_ids(llm: LLM) -> None:
    [result] = llm.generate({"prompt_token_ids": np.array([70, 71])}, GREEDY, use_tqdm=False)
    assert result.prompt_token_ids == [70, 71]


@pytest.mark.parametrize(
    "wrong",
    [
        3,
        {},
        {"prompt": 3},
        {"prompt_token_ids": ["a"]},
        {"prompt": "a", "images": []},
        {"prompt_token_ids": []},
        {"prompt_token_ids": [10_000]},
        {"prompt_token_ids": [-1]},
        {"prompt_token_ids": [70] * 128},
        [],
        [70, "a"],
        [True],
        None,
    ],
)
def test_one_wrong_prompt_refuses_the_call_before_anything_runs(llm: LLM, wrong: Any) -> None:
    prompts: Any = ["def add", wrong]
    with pytest.raises(InvalidRequestError):
        llm.generate(prompts, GREEDY)
    assert not llm._engine.has_work()
    assert llm._engine.stats.num_prompt_tokens == 0


def test_the_error_says_which_prompt_is_wrong(llm: LLM) -> None:
    prompts: list[Prompt] = ["a", {"prompt_token_ids": [70] * 200}]
    with pytest.raises(ContextLengthError, match="128") as error:
        llm.generate(prompts, GREEDY)
    assert error.value.__notes__ == ["in prompt 1 of 2"]
    with pytest.raises(InvalidRequestError, match="prompt 1 is"):
        llm.generate([prompts[0], {}], GREEDY)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"prompts": None}, r"prompts is 'None' \(NoneType\) but must be a text"),
        ({"prompts": 3}, "but must be a text"),
        ({"prompts": b"a"}, "but must be a text"),
        ({"prompts": "a", "prompt_token_ids": [70]}, "give one"),
        (
            {"prompts": "a", "sampling_params": {"temperature": 0}},
            r"\(dict\) but must be a SamplingParams .* write SamplingParams\(\*\*",
        ),
        ({"prompts": "a", "sampling_params": 0.5}, r"\(float\) but must be a SamplingParams"),
        ({"prompts": ["a"], "sampling_params": [{}]}, "must be a SamplingParams"),
    ],
)
def test_arguments_of_a_wrong_type_are_told_what_to_be(
    llm: LLM, arguments: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InvalidRequestError, match=reason):
        llm.generate(**arguments)
    with pytest.raises(InvalidRequestError, match="must be a SamplingParams"):
        llm.stream("a", {"temperature": 0})  # type: ignore[arg-type]


def test_token_ids_need_no_key(llm: LLM) -> None:
    for arguments in (
        {"prompts": [[70, 71]]},
        {"prompts": [70, 71]},
        {"prompts": np.array([70, 71])},
        {"prompt_token_ids": [70, 71]},
        {"prompt_token_ids": [[70, 71]]},
    ):
        [result] = llm.generate(**arguments, sampling_params=GREEDY, use_tqdm=False)
        assert result.prompt_token_ids == [70, 71]
        assert result.outputs[0].token_ids == expected_ids(llm, [70, 71], 12)


def test_the_tokenizer_can_be_had(llm: LLM, tokenizer: Tokenizer) -> None:
    assert llm.get_tokenizer() is tokenizer


def test_options_are_named_as_the_flags_and_those_of_vllm_are_understood(
    built: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    LLM("m", kv_cache_size="1MiB", weights_seed=3, trust_remote_code=True, enforce_eager=True)
    assert (built[0].kv_cache_size, built[0].weights_seed) == (1 << 20, 3)
    assert [record.getMessage().partition(" ")[0] for record in caplog.records] == [
        "trust_remote_code",
        "enforce_eager",
    ]
    LLM("m", tensor_parallel_size=1, gpu_memory_utilization=0.9, seed=0, device="cpu")
    for option, value, reason in [
        ("tensor_parallel_size", 2, "tensor_parallel_size is 2, but one process uses every core"),
        ("device", "cuda", "models run on the CPU"),
        ("n_ctx", 4096, "--max-model-len"),
        ("max_model_length", 9, "did you mean max_model_len"),
        ("no_such_thing_at_all", 9, "unknown option no_such_thing_at_all"),
    ]:
        with pytest.raises(ConfigError, match=reason):
            LLM("m", **{option: value})
