"""A tiny random model: what is asked of an engine beside the numbers' types changes no bit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from sandwich import LLM, SamplingParams
from sandwich.text.output import RequestOutput

NUM_TOKENS = 9
PROMPTS = [[(7 * i * i + 3 * i + shift) % 500 + 5 for i in range(70 - shift)] for shift in range(3)]
PARAMS = SamplingParams(
    temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=20, prompt_logprobs=3
)
PLAIN: dict[str, Any] = {
    "quantization": "int4",
    "max_num_seqs": 4,
    "max_num_batched_tokens": 256,
    "max_model_len": 128,
}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "one core": {"cpu_bind": str(min(os.sched_getaffinity(0)))},
    "chunks of a few tokens": {"max_num_batched_tokens": 37},
    "one sequence at a time": {"max_num_seqs": 1, "enable_prefix_caching": False},
    "decode rides in prefill": {"mixed_steps": "ride", "max_num_batched_tokens": 48},
    "side by side": {"mixed_steps": "corun", "max_model_len": 512},
}


def answers(folder: Path, **options: Any) -> list[Any]:
    """Tokens of the answers, and the likeliest at each place with what the model gives them."""
    given = {"model": "tiny", "random_weights": True, "cache_dir": folder, **PLAIN, **options}
    with LLM(**given) as llm:
        prompts = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
        return [exact(result) for result in llm.generate(prompts, PARAMS, use_tqdm=False)]


def exact(result: RequestOutput) -> list[Any]:
    [output] = result.outputs
    rows = [*(result.prompt_logprobs or ()), *(output.logprobs or ())]
    scores = [row and sorted((id_, each.logprob) for id_, each in row.items()) for row in rows]
    return [output.token_ids, scores]


@pytest.mark.slow
def test_answers_have_the_same_bits_however_an_engine_is_configured(tmp_path: Path) -> None:
    """In the format with everything that could differ: groups, minima, rounded inputs."""
    expected = answers(tmp_path)
    for prompt, (_, scores) in zip(PROMPTS, expected, strict=True):
        assert len(scores) == len(prompt) + NUM_TOKENS
    for name, options in CONFIGURATIONS.items():
        assert answers(tmp_path, **options) == expected, name
