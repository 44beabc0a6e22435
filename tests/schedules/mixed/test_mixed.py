"""Mixed plans as values, and the choice among them on recorded machines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import chain
from typing import Any

import pytest

from codegen.layout.model import ModelLayout
from codegen.spec import WeightFormat
from platforms.machines import load_machine, recorded_machines
from sandwich.models.presets import preset
from schedules.mixed.choice import MIN_GAIN, MixedChoice, choose_mixed
from schedules.mixed.cost import MixedLoad, MixedPrediction, MixedSpace
from schedules.mixed.plan import TAKE_TURNS, MixedMode, MixedPlan, MixedPlanError
from schedules.rates import estimated_rates
from schedules.tiles.default_plans import default_plans, panel_width
from schedules.topotree import Candidate, TopoTree, candidates

CORUN = MixedPlan(MixedMode.CORUN, 64, (0, 1, 4, 5), (2, 6), "it is the best")


@pytest.mark.parametrize(
    "plan", [TAKE_TURNS, MixedPlan(MixedMode.RIDE, 32, reason="two in one"), CORUN]
)
def test_a_mixed_plan_survives_json(plan: MixedPlan) -> None:
    assert MixedPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunk_tokens": -1}, "chunk_tokens is -1"),
        ({"decode_cpus": ()}, "each needs one core"),
        ({"prefill_cpus": ()}, "each needs one core"),
        ({"decode_cpus": (1, 2)}, "that the other has not"),
        ({"mode": MixedMode.RIDE}, "only corun sets some apart"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MixedPlanError, match=message):
        replace(CORUN, **changes)


@pytest.mark.parametrize(
    "fields", [{}, CORUN.to_json() | {"mode": "waltz"}, CORUN.to_json() | {"prefill_cpus": None}]
)
def test_json_that_is_no_mixed_plan_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(MixedPlanError, match="not a mixed plan"):
        MixedPlan.from_json(fields)


def test_a_plan_says_what_it_does() -> None:
    assert TAKE_TURNS.render() == "mixed    turns: whole prompt steps, then a decode step"
    ride = MixedPlan(MixedMode.RIDE, 32).render()
    assert ride.endswith("32 prompt tokens and every decoding sequence's next in one step")
    assert CORUN.render().endswith("on 4 cores while decode runs on 2 cores: 2,6")


def test_the_plans_side_by_side_keep_their_groups_and_lose_the_others_cores() -> None:
    isa = load_machine("epyc-guest").isa_row
    plans = default_plans(isa, range(10), preset("llama-3.2-1b").shape(64))
    assert plans.corun is None
    wide = replace(plans, prefill=plans.prefill.on(range(10), ((4, 1), (3, 2))))
    mixed = MixedPlan(MixedMode.CORUN, 64, (1, 2, 3, 4, 6, 7, 9), (0, 5, 8))
    beside = replace(wide, mixed=mixed).corun
    assert beside is not None
    assert (beside.prefill.cpus, beside.decode.cpus) == (mixed.prefill_cpus, mixed.decode_cpus)
    assert beside.prefill.groups == ((3, 1), (2, 1))
    assert beside.decode.groups == ((1,), (1, 1))
    assert beside.decode.tiles == plans.decode.tiles


def test_cores_of_one_node_are_in_no_group_of_another() -> None:
    isa = load_machine("epyc-guest").isa_row
    plans = default_plans(isa, range(6), preset("llama-3.2-1b").shape(64))
    plan = plans.prefill.on(range(6), ((2,), (2, 2)))
    assert plan.groups_of((2, 3, 5)) == ((2, 1),)


def space_on(name: str, **changes: Any) -> MixedSpace:
    """All cores of a recorded machine in both phases."""
    machine = load_machine(name)
    layout = ModelLayout.build(
        preset("llama-3.2-1b").shape(4096),
        "bfloat16",
        machine.isa_row.lanes,
        panel_width(machine.isa_row),
    )
    cores = candidates(TopoTree.of(machine))[0]
    rates = estimated_rates(machine, WeightFormat("bfloat16"))
    space = MixedSpace(machine, cores, cores, layout, "bfloat16", 4, rates, 512, 512, MixedLoad())
    return replace(space, **changes)


def of_mode(choice: MixedChoice, mode: MixedMode) -> MixedPrediction:
    return next(p for p in choice.best_of_modes if p.plan.mode is mode)


@pytest.mark.parametrize("name", recorded_machines())
def test_co_running_splits_every_group_and_uses_every_core_once(name: str) -> None:
    space = space_on(name)
    found = [p.plan for p in space.predictions() if p.plan.mode is MixedMode.CORUN]
    assert found
    for plan in found:
        assert {*plan.prefill_cpus, *plan.decode_cpus} == set(space.prefill.cpus)
        sizes = {
            (len(set(group) & set(plan.prefill_cpus)), len(set(group) & set(plan.decode_cpus)))
            for group in space.prefill.groups
            if len(group) == max(map(len, space.prefill.groups))
        }
        assert len(sizes) == 1
    assert {1} <= {len(set(space.prefill.groups[0]) & set(p.decode_cpus)) for p in found}


@pytest.mark.parametrize("name", recorded_machines())
def test_the_choice_keeps_the_target_if_any_plan_does_and_then_takes_the_least_time(
    name: str,
) -> None:
    space = space_on(name)
    everything = list(space.predictions())
    shortest, longest = (f(p.tpot_us for p in everything) / 1e3 for f in (min, max))
    for target in (shortest / 2, shortest * 1.01, (shortest + longest) / 2, longest):
        choice = choose_mixed(space, target)
        keeping = [p for p in everything if p.tpot_us <= 1e3 * target]
        if keeping:
            least = min(p.request_us for p in keeping)
            assert choice.chosen.tpot_us <= 1e3 * target
            assert least <= choice.chosen.request_us <= least * (1 + MIN_GAIN) ** 2
            assert "keeps the target" in choice.plan.reason
        else:
            assert choice.chosen.tpot_us == pytest.approx(1e3 * shortest)
            assert "no mode keeps the target" in choice.plan.reason


@pytest.mark.parametrize("mode", MixedMode)
def test_a_mode_that_is_asked_for_is_chosen_with_its_best_chunk(mode: MixedMode) -> None:
    space = space_on("epyc-guest")
    choice = choose_mixed(space, 80.0, mode)
    assert choice.plan.mode is mode
    assert "asked for" in choice.plan.reason
    assert of_mode(choose_mixed(space, 80.0), mode).request_us == choice.chosen.request_us


def test_a_mode_that_takes_a_little_less_and_is_not_chosen_is_explained() -> None:
    space = space_on("kubernetes-pod")
    every = [replace(p, tpot_us=1e3) for p in space.predictions()]
    ride, corun = (
        replace(next(p for p in every if p.plan.mode is mode), request_us=us, ttft_us=ttft)
        for mode, us, ttft in ((MixedMode.RIDE, 100e3, 20e3), (MixedMode.CORUN, 99e3, 60e3))
    )

    class TwoPlans(MixedSpace):
        def predictions(self) -> Iterator[MixedPrediction]:
            return iter((ride, corun))

    choice = choose_mixed(TwoPlans(**{f.name: getattr(space, f.name) for f in fields(space)}))
    assert choice.plan.mode is MixedMode.RIDE
    assert "corun 99 ms with the first token after 60 ms instead of 20 ms" in choice.plan.reason


def test_a_tight_target_shortens_the_chunks() -> None:
    space = space_on("epyc-guest")
    loose, tight = (choose_mixed(space, ms, MixedMode.TURNS) for ms in (2000.0, 150.0))
    assert tight.plan.chunk_tokens < loose.plan.chunk_tokens
    assert tight.chosen.ttft_us > loose.chosen.ttft_us


def test_a_single_core_cannot_co_run() -> None:
    space = space_on("epyc-guest", prefill=Candidate("one", (0,), ((0,),)))
    assert choose_mixed(space).plan.mode is not MixedMode.CORUN
    with pytest.raises(MixedPlanError, match=r"one in each, CPUs 0; choose turns or ride"):
        choose_mixed(space, mode=MixedMode.CORUN)


def test_prefill_reads_from_the_nodes_of_decode() -> None:
    name = "epyc-7h12-2s"
    one_node = next(c for c in candidates(TopoTree.of(load_machine(name))) if c.name == "one node")
    wide = space_on(name, load=MixedLoad(prompt=16))
    near, far = (
        min(p.ttft_us for p in space.predictions() if p.plan.mode is MixedMode.TURNS)
        for space in (wide, replace(wide, decode=one_node))
    )
    assert far > 1.2 * near


def test_riding_costs_less_than_taking_turns_as_weights_are_read_once() -> None:
    choice = choose_mixed(space_on("epyc-7h12-2s"))
    ride, turns = (of_mode(choice, mode) for mode in (MixedMode.RIDE, MixedMode.TURNS))
    assert ride.request_us < turns.request_us


def test_a_step_has_room_for_the_riders_beside_the_chunk() -> None:
    space = space_on("epyc-guest", max_chunk_tokens=8, max_step_tokens=8)
    assert choose_mixed(space, mode=MixedMode.RIDE).plan.chunk_tokens == 4
    assert choose_mixed(space, mode=MixedMode.TURNS).plan.chunk_tokens == 8


def test_prefill_in_short_chunks_takes_bandwidth_from_the_decode_beside_it() -> None:
    wide = space_on("epyc-guest")
    narrow = replace(wide, rates=replace(wide.rates, node_gbps=wide.rates.core_gbps))

    def slowdown(space: MixedSpace) -> float:
        tpot = {
            p.plan.chunk_tokens: p.tpot_us
            for p in space.predictions()
            if p.plan.mode is MixedMode.CORUN
        }
        return tpot[16] / tpot[512]

    assert slowdown(wide) == 1
    assert slowdown(narrow) > 1.1


def test_the_choice_is_explained_in_json_and_in_words() -> None:
    choice = choose_mixed(space_on("epyc-guest"))
    fields = json.loads(json.dumps(choice.to_json()))
    assert fields["mode"] == choice.plan.mode.value
    assert fields["cores"] == list(chain(*fields["groups"])) == [0, 1]
    assert fields["predicted_us"] > 0
    assert {c["mode"] for c in fields["candidates"]} == {"turns", "ride", "corun"}
    text = "\n".join(choice.render())
    assert f"because {fields['reason']}" in text
    assert "4 sequences of 1024 tokens decode when a prompt of 512 arrives" in text
