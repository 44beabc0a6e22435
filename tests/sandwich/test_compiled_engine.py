"""The whole engine on the compiled programs and a tiny model with random weights."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandwich import LLM, SamplingParams
from sandwich.config import EngineConfig
from sandwich.startup.build import build_engine

PROMPTS = [
    'def add(a, b):\n    """',
    "import os\n",
    "class Queue:\n    def __init__(self",
    "x",
    "def read(path):\n    with open(path) as file:\n        return file.read()\n\n\n" * 4,
    "#" * 200,
]
TINY: dict[str, Any] = {"model": "tiny", "random_weights": True}
GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
SAMPLED = SamplingParams(temperature=0.9, top_p=0.95, seed=11, max_tokens=24, ignore_eos=True)


@pytest.fixture(scope="module")
def programs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(
    scope="module",
    params=[("bfloat16", "ride"), ("float32", "turns"), ("bfloat16", "corun")],
    ids="-".join,
)
def llm(request: pytest.FixtureRequest, programs_dir: Path) -> Iterator[LLM]:
    dtype, mixed_steps = request.param
    if mixed_steps == "corun" and len(os.sched_getaffinity(0)) < 2:
        pytest.skip("co-running takes two CPUs")
    # 64-token prefill steps and a cache of 13 blocks: prompts are cut and requests are preempted.
    with LLM(
        **TINY,
        dtype=dtype,
        mixed_steps=mixed_steps,
        max_num_seqs=6,
        max_num_batched_tokens=64,
        max_model_len=384,
        kv_cache_size=13 * 32 * bytes_per_token(dtype),
        cache_dir=programs_dir,
    ) as llm:
        yield llm


def bytes_per_token(dtype: str) -> int:
    parts = build_engine(EngineConfig(**TINY, executor="null", dtype=dtype))
    parts.engine.close()
    return parts.memory.kv.bytes_per_block // parts.memory.kv.block_size


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_tokens_are_the_same_alone_and_in_a_batch_that_is_chunked_and_preempted(
    llm: LLM, params: SamplingParams
) -> None:
    together = llm.generate(PROMPTS, params, use_tqdm=False)
    alone = [llm.generate(prompt, params, use_tqdm=False)[0] for prompt in PROMPTS]
    assert [r.outputs[0].token_ids for r in together] == [r.outputs[0].token_ids for r in alone]
    assert all(len(result.outputs[0].token_ids) == params.max_tokens for result in together)


def test_the_highest_debug_level_reports_every_operator_and_dumps_the_code(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="sandwich")
    with LLM(**TINY, debug=5, cache_dir=tmp_path, max_num_seqs=1, max_model_len=64) as llm:
        llm.generate("x = ", SamplingParams(max_tokens=2), use_tqdm=False)
    for phase in ("prefill", "decode"):
        for operator in ("embed", "attention", "gate_up", "argmax"):
            assert any(line.startswith(f"{phase} {operator} ") for line in caplog.messages)
        for form in ("tir", "ll", "asm"):
            assert (tmp_path / "dump" / f"{phase}.{form}").stat().st_size > 1000
