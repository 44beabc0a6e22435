"""The memory plan: what is decided for the user, what is refused, and what the refusal says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from codegen.layout.model import ModelLayout
from platforms.cgroup import CgroupLimits
from platforms.process_limits import Limits
from sandwich.config import EngineConfig
from sandwich.errors import MemoryLimitError, ModelError
from sandwich.models.presets import preset
from sandwich.options import parse_nbytes
from sandwich.startup.memory_plan import (
    RESERVE_BYTES,
    MemoryBudget,
    MemoryPlan,
    longest_context,
    plan_memory,
)

GIB = 1 << 30
LLAMA_1B = preset("llama-3.2-1b")  # 32 KiB of bf16 cache a token, 1 MiB a block
WORKSPACE = 64 << 20


def make_limits(available: int, cgroup: int | None = None) -> Limits:
    return Limits(
        affinity=(0,),
        cgroup=CgroupLimits("none", None, None, None, cgroup, None, None),
        memory_nodes=(0,),
        memory_total_bytes=64 * GIB,
        memory_limit_bytes=cgroup,
        memory_available_bytes=available,
        selection=(),
    )


def plan(available: int, dtype: str = "bfloat16", **options: Any) -> MemoryPlan:
    engine = EngineConfig(**options)
    shape = LLAMA_1B.shape(longest_context(LLAMA_1B, engine.max_model_len))
    layout = ModelLayout.build(shape, dtype, lanes=16, panel=64)
    return plan_memory(LLAMA_1B, layout, dtype, WORKSPACE, engine, make_limits(available))


def test_by_default_every_sequence_gets_some_context() -> None:
    made = plan(64 * GIB, max_model_len=8192)
    assert made.num_cache_tokens == 32 * 2048
    assert made.max_model_len == 8192
    assert made.notes == ()


def test_the_cache_of_few_sequences_holds_one_longest_at_least() -> None:
    made = plan(64 * GIB, max_num_seqs=1)
    assert made.num_cache_tokens == made.max_model_len == 131072


def test_short_sequences_need_no_larger_cache_than_they_can_fill() -> None:
    assert plan(64 * GIB, max_model_len=100).num_cache_tokens == 32 * 128


def test_the_default_cache_takes_a_share_of_what_is_free() -> None:
    made = plan(4 * GIB, max_model_len=1024)
    free = 4 * GIB - RESERVE_BYTES - WORKSPACE - made.layout.weight_bytes
    assert 0.45 * free < made.kv_bytes <= 0.5 * free


def test_without_a_given_length_a_small_machine_gets_shorter_sequences_and_is_told() -> None:
    made = plan(4 * GIB)
    assert made.max_model_len == made.num_cache_tokens < 131072
    assert made.layout.shape.max_model_len == made.max_model_len
    assert "--max-model-len" in made.notes[0]
    assert made.notes[0] in made.render()


def test_a_given_length_may_take_more_than_the_share() -> None:
    free = 4 * GIB - RESERVE_BYTES - WORKSPACE - 2_480_000_000
    num_tokens = int(0.9 * free) // (32 << 10)
    made = plan(4 * GIB, max_model_len=num_tokens)
    assert made.max_model_len == num_tokens
    assert num_tokens <= made.num_cache_tokens < num_tokens + 32


def test_a_given_length_that_does_not_fit_is_refused_with_the_length_that_does() -> None:
    with pytest.raises(MemoryLimitError, match=r"--max-model-len \d+ or less") as caught:
        plan(4 * GIB, max_model_len=131072)
    fitting = int(str(caught.value).partition("--max-model-len ")[2].split()[0])
    assert plan(4 * GIB, max_model_len=fitting).max_model_len == fitting


def test_weights_that_do_not_fit_are_refused_with_both_sizes() -> None:
    with pytest.raises(MemoryLimitError, match=r"2\.3\d GiB of weights") as caught:
        plan(2 * GIB)
    assert caught.value.needed > caught.value.limit >= 2 * GIB
    assert "smaller model" in str(caught.value)


def test_float32_weights_that_do_not_fit_are_told_of_bfloat16() -> None:
    with pytest.raises(MemoryLimitError, match="--dtype bfloat16"):
        plan(4 * GIB, dtype="float32")


@pytest.mark.parametrize(("asked", "num_blocks"), [("1MiB", 1), ("2097151", 1), ("1GiB", 1024)])
def test_a_given_cache_size_is_used_in_whole_blocks(asked: str, num_blocks: int) -> None:
    made = plan(8 * GIB, kv_cache_size=asked)
    assert made.kv.num_blocks == num_blocks
    assert made.kv_bytes <= parse_nbytes(asked)
    assert made.max_model_len == num_blocks * 32


def test_a_cache_size_below_one_block_is_refused() -> None:
    with pytest.raises(MemoryLimitError, match="larger --kv-cache-size"):
        plan(8 * GIB, kv_cache_size=(1 << 20) - 1)


def test_a_cache_size_beyond_what_is_free_is_refused_with_the_size_that_fits() -> None:
    with pytest.raises(MemoryLimitError, match=r"--kv-cache-size \d+MiB or less") as caught:
        plan(8 * GIB, kv_cache_size="8GiB")
    fitting = str(caught.value).partition("--kv-cache-size ")[2].split()[0]
    assert plan(8 * GIB, kv_cache_size=fitting).kv.num_blocks > 1000


def test_a_given_length_and_a_smaller_given_cache_contradict_each_other() -> None:
    with pytest.raises(MemoryLimitError, match="--max-model-len 1024 or less"):
        plan(8 * GIB, max_model_len=1025, kv_cache_size="32MiB")
    assert plan(8 * GIB, max_model_len=1024, kv_cache_size="32MiB").kv.num_blocks == 32


def test_a_length_beyond_the_model_is_refused() -> None:
    assert longest_context(LLAMA_1B, 131072) == longest_context(LLAMA_1B, None) == 131072
    with pytest.raises(ModelError, match="at most 131072 tokens"):
        longest_context(LLAMA_1B, 131073)


def test_the_tighter_limit_counts_and_is_named() -> None:
    budget = MemoryBudget.of(make_limits(4 * GIB), memory_limit=3 * GIB)
    assert (budget.limit_bytes, budget.source) == (3 * GIB, "--memory-limit")
    budget = MemoryBudget.of(make_limits(4 * GIB, cgroup=50 * GIB), memory_limit=64 * GIB)
    assert budget.limit_bytes == 4 * GIB + budget.process_bytes
    assert "cgroup is limited to 50.00 GiB" in budget.source


def test_what_the_process_has_counts_against_the_limit_of_its_cgroup() -> None:
    budget = MemoryBudget.of(make_limits(50 * GIB, cgroup=50 * GIB), memory_limit=None)
    assert budget.process_bytes > 0
    assert budget.limit_bytes == 50 * GIB


def test_explicit_huge_pages_count_where_they_can_hold_the_weights() -> None:
    engine, shape = EngineConfig(max_model_len=2048), LLAMA_1B.shape(2048)
    layout = ModelLayout.build(shape, "bfloat16", lanes=16, panel=64)
    arguments = (LLAMA_1B, layout, "bfloat16", WORKSPACE, engine, make_limits(GIB))
    made = plan_memory(*arguments, pool_bytes=layout.weight_bytes)
    assert made.budget.limit_bytes == GIB + layout.weight_bytes + made.budget.process_bytes
    assert "2.30 GiB of it explicit huge pages" in made.render()
    with pytest.raises(MemoryLimitError):
        plan_memory(*arguments, pool_bytes=layout.weight_bytes - 1)


def test_a_memory_limit_is_refused_with_a_higher_one_as_remedy() -> None:
    with pytest.raises(MemoryLimitError, match="a higher --memory-limit"):
        plan(64 * GIB, memory_limit="2GiB")


def test_the_plan_prints_every_part_and_the_sum() -> None:
    made = plan(8 * GIB, max_model_len=4096, kv_cache_size="1GiB")
    made = replace(made, budget=replace(made.budget, process_bytes=100 << 20))
    text = made.render()
    for part in ("2.30 GiB", "1.00 GiB", "64.0 MiB", "32768 tokens of 32 KiB", "llama-3.2-1b"):
        assert part in text
    assert made.total_bytes == sum(
        (made.layout.weight_bytes, made.kv_bytes, WORKSPACE, RESERVE_BYTES, 100 << 20)
    )
