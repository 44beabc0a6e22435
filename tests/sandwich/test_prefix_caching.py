"""A tiny random model, compiled: answers have the same bits whether prompts were cached or not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandwich import LLM, SamplingParams
from sandwich.config import EngineConfig
from sandwich.startup.build import build_engine
from sandwich.text.output import RequestOutput

PARAMS = {"temperature": 0.9, "seed": 3, "max_tokens": 37, "ignore_eos": True, "logprobs": 20}
FORMATS: list[dict[str, Any]] = [
    {"dtype": "float32"},
    {"dtype": "bfloat16"},
    {"dtype": "bfloat16", "quantization": "int8-w8a8"},
    {"dtype": "bfloat16", "kv_cache_dtype": "float32"},
    {"dtype": "bfloat16", "kv_cache_dtype": "int8"},
]


@pytest.fixture(scope="module")
def programs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module", params=FORMATS, ids=lambda options: "-".join(options.values()))
def llms(request: pytest.FixtureRequest, programs_dir: Path) -> Iterator[tuple[LLM, LLM]]:
    """One that remembers, and one that does not."""
    options = {
        "model": "tiny",
        "random_weights": True,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 64,
        "max_model_len": 512,
        "cache_dir": programs_dir,
    } | request.param
    with LLM(**options) as caching, LLM(**options, enable_prefix_caching=False) as plain:
        yield caching, plain


def answer(llm: LLM, prompt: list[int], **changes: Any) -> RequestOutput:
    params = SamplingParams(**(PARAMS | changes))
    [result] = llm.generate({"prompt_token_ids": prompt}, params, use_tqdm=False)
    return result


def num_cached(result: RequestOutput) -> int:
    timings = result.outputs[0].timings
    assert timings is not None
    return timings.num_cached_tokens


def exact(result: RequestOutput) -> list[Any]:
    """Tokens of all choices, and the likeliest at each place with what the model gives them; equal
    only if their logits had the same bits.
    """
    return [
        (o.token_ids, [[(id_, t.candidates[id_]) for id_ in t.top_ids] for t in o.logprobs or ()])
        for o in result.outputs
    ]


def test_later_turns_and_prompts_that_part_from_them_have_the_same_bits(
    llms: tuple[LLM, LLM],
) -> None:
    caching, plain = llms
    prompt = [(7 * i * i + 3 * i) % 500 + 5 for i in range(150)]
    first = answer(caching, prompt)
    assert num_cached(first) == 0
    assert exact(first) == exact(answer(plain, prompt))
    replied = [*prompt, *first.outputs[0].token_ids]
    cases = {
        "a turn": ([*replied, 9, 8, 7], len(replied) - 1),
        "the same": (prompt, 149),
        "parts in a block": ([*prompt[:77], 400, 401, 402], 77),
        "parts in the reply": ([*replied[:161], 400], 161),
        "parts between blocks": ([*prompt[:96], 400], 96),
        "one token less than a block": ([*prompt[:31], 400], 31),
    }
    for name, (tokens, num_expected) in cases.items():
        result = answer(caching, tokens)
        assert num_cached(result) == num_expected, name
        assert exact(result) == exact(answer(plain, tokens)), name


@pytest.mark.parametrize("is_on_disk", [False, True])
def test_what_was_evicted_and_came_back_has_the_same_bits(
    programs_dir: Path, tmp_path: Path, is_on_disk: bool
) -> None:
    options: dict[str, Any] = {
        "model": "tiny",
        "random_weights": True,
        "dtype": "bfloat16",
        "max_num_seqs": 2,
        "max_num_batched_tokens": 64,
        "max_model_len": 256,
        "cache_dir": programs_dir,
    }
    parts = build_engine(EngineConfig(**options, executor="null"))
    parts.engine.close()
    options["kv_cache_size"] = 8 * parts.memory.kv.bytes_per_block
    offload: dict[str, Any] = {
        "kv_offload": 1 << 24,
        "kv_offload_dir": str(tmp_path) if is_on_disk else None,
    }
    prompts = [[(7 * i * i + k * i) % 500 + 5 for i in range(150)] for k in range(3)]
    plainly = options | {"enable_prefix_caching": False}
    with LLM(**options, **offload) as small, LLM(**plainly) as plain:
        for prompt in prompts:
            answer(small, prompt)
        again = [answer(small, prompt) for prompt in prompts]
        expected = [answer(plain, prompt) for prompt in prompts]
        store = small._engine.stats.store
    assert store is not None
    assert store.num_restored > 0
    assert [num_cached(result) for result in again] == [128] * 3
    assert [exact(result) for result in again] == [exact(result) for result in expected]


def test_choices_that_share_a_prompt_have_the_bits_of_those_that_do_not(
    llms: tuple[LLM, LLM],
) -> None:
    prompt = [(11 * i * i + i) % 500 + 6 for i in range(60)]
    together, apart = (answer(llm, prompt, n=4) for llm in llms)
    timings = [output.timings for output in together.outputs if output.timings]
    assert [each.num_cached_tokens for each in timings] == [0, 59, 59, 59]
    assert exact(together) == exact(apart)
    assert len({tuple(output.token_ids) for output in together.outputs}) == 4


def test_a_prompt_to_be_scored_has_the_same_scores_after_it_was_cached(
    llms: tuple[LLM, LLM],
) -> None:
    caching, _ = llms
    prompt = [(5 * i * i + i) % 500 + 5 for i in range(100)]
    answer(caching, prompt)
    scored = [answer(llm, prompt, prompt_logprobs=3, max_tokens=2) for llm in llms]
    assert num_cached(scored[0]) == 0
    assert scored[0].prompt_logprobs == scored[1].prompt_logprobs
    assert exact(scored[0]) == exact(scored[1])
