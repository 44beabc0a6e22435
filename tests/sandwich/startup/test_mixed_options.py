"""--mixed-steps and --slo-tpot, from the flags to the plans."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from itertools import chain
from typing import Any

import pytest

from platforms.machines import load_machine
from sandwich.config import EngineConfig
from sandwich.errors import ConfigError
from sandwich.models.presets import preset
from sandwich.startup.plans import make_plans
from schedules.mixed.plan import MixedMode, MixedPlan
from schedules.plan import PlanPair

Run = Callable[..., Any]
GUEST = load_machine("epyc-guest")


def plans_of(**options: Any) -> tuple[PlanPair, int]:
    """The plans for two cores and the bytes of workspace."""
    plans, memory, _ = make_plans(EngineConfig(**options), GUEST, preset("llama-3.2-1b"))
    return plans, memory.workspace_bytes


@pytest.mark.parametrize("mode", MixedMode)
def test_a_mode_can_be_forced(mode: MixedMode) -> None:
    plans, _ = plans_of(mixed_steps=mode.value)
    assert plans.mixed.mode is mode
    assert (plans.corun is not None) == (mode is MixedMode.CORUN)


def test_the_memory_plan_counts_the_programs_that_run_side_by_side() -> None:
    assert plans_of(mixed_steps="corun")[1] > plans_of(mixed_steps="ride")[1]


def test_a_target_shortens_the_chunks() -> None:
    loose, tight = (
        plans_of(mixed_steps="turns", slo_tpot=target)[0].mixed for target in (5000, 240)
    )
    assert 0 < tight.chunk_tokens < loose.chunk_tokens
    assert "keeps the target of 240 ms" in tight.reason


def test_one_sequence_at_a_time_needs_no_riders() -> None:
    plans, _ = plans_of(max_num_seqs=1, max_num_batched_tokens=16, max_model_len=64)
    assert plans.mixed.chunk_tokens <= 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixed_steps": "waltz"}, "--mixed-steps.*'waltz' is not one of auto, turns, ride, corun"),
        ({"slo_tpot": 0}, "--slo-tpot.*above 0"),
        ({"slo_tpot": "soon"}, "--slo-tpot.*not a number of milliseconds"),
        ({"mixed_steps": "corun", "cpu_bind": "0"}, "--mixed-steps corun.*two cores"),
    ],
)
def test_a_mistake_is_refused_with_its_flag(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plans_of(**options)


def test_the_plan_says_what_happens_to_work_of_both_phases(run: Run) -> None:
    flags = ["plan", "llama-3.2-1b", "--simulate", "epyc-9655", "--slo-tpot", "20"]
    mixed = json.loads(run(*flags, "--json").out)["mixed"]
    assert MixedPlan.from_json(mixed).reason == mixed["reason"]
    assert mixed["predicted_us"] <= 20_000
    assert sorted(mixed["cores"]) == sorted(chain(*mixed["groups"]))
    assert {c["mode"] for c in mixed["candidates"]} == {mode.value for mode in MixedMode}
    text = run(*flags).out
    assert f"mixed    {mixed['mode']}: " in text
    assert f"because {mixed['reason']}" in text


@pytest.mark.slow
@pytest.mark.parametrize("mode", MixedMode)
def test_a_mixed_plan_can_be_timed(run: Run, mode: MixedMode) -> None:
    if mode is MixedMode.CORUN and len(os.sched_getaffinity(0)) < 2:
        pytest.skip("co-running takes two CPUs")
    flags = ["plan", "tiny", "--measure", "--mixed-steps", mode.value]
    mixed = json.loads(run(*flags, "--json").out)["mixed"]
    assert mixed["mode"] == mode.value
    assert mixed["measured_us"] > 0
    assert "measured_us" in mixed["candidates"][0]
