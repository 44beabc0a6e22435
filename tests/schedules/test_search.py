"""Plan search on recorded machines, and the golden files of what it chooses there.

`python tests/schedules/test_search.py` writes the golden files anew; look at their differences.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from codegen.layout.model import ModelLayout
from codegen.spec import Phase, WeightFormat
from platforms.machine import Machine
from platforms.machines import load_machine, recorded_machines
from platforms.sysfs import format_cpu_list
from sandwich.config import EngineConfig
from sandwich.models.presets import preset
from sandwich.startup.plans import make_plans
from schedules.choice import MIN_SPREAD, NUM_MEASURED, NUM_RUNNERS_UP, PhaseChoice
from schedules.cost import StepCase
from schedules.rates import Curve, MachineRates, estimated_rates
from schedules.search import PlanSearch, SearchResult
from schedules.tiles.default_plans import default_plans, panel_width
from schedules.topotree import Candidate, TopoTree, candidates, named_candidate

GOLDEN = Path(__file__).parent / "golden"
MODEL = "llama-3.2-1b"
MIXED_FIELDS = ("mode", "chunk_tokens", "prefill_cpus", "decode_cpus", "predicted_us", "reason")


def search_space(
    machine: Machine, rates: MachineRates | None = None, model: str = MODEL
) -> PlanSearch:
    shape = preset(model).shape(min(4096, preset(model).max_position_embeddings))
    isa = machine.isa_row
    layout = ModelLayout.build(shape, "bfloat16", isa.lanes, panel_width(isa))
    found = candidates(TopoTree.of(machine))
    rates = rates or estimated_rates(machine, WeightFormat("bfloat16"))
    return PlanSearch(machine, found, layout, "bfloat16", 4, rates)


def search_on(
    machine: Machine, rates: MachineRates | None = None, model: str = MODEL
) -> SearchResult:
    space = search_space(machine, rates, model)
    result = space.run()
    return replace(result, replicas=space.replicas(TopoTree.of(machine), result))


GRAVITON = load_machine("graviton3")
BF16 = WeightFormat("bfloat16")
DEAR_LINES = (GRAVITON, replace(estimated_rates(GRAVITON, BF16), group_line_ns=200.0))


def golden_record(result: SearchResult) -> dict[str, Any]:
    """What a golden file holds; CPUs are written as the kernel does."""

    def choice(choice: PhaseChoice) -> dict[str, Any]:
        fields = choice.to_json()
        return fields | {
            "cores": format_cpu_list(fields["cores"]),
            "groups": [format_cpu_list(cpus) for cpus in fields["groups"]],
        }

    times = {
        c["name"]: [c["predicted_us"]["prefill"], c["predicted_us"]["decode"]]
        for c in result.candidates_json()
    }
    assert result.mixed
    mixed = result.mixed.to_json()
    times_of_modes = {c["mode"]: c["predicted_request_us"] for c in mixed["candidates"]}
    mixed |= {name: format_cpu_list(mixed[name]) for name in ("prefill_cpus", "decode_cpus")}
    return {
        "model": MODEL,
        "prefill": choice(result.prefill),
        "decode": choice(result.decode),
        "mixed": {name: mixed[name] for name in MIXED_FIELDS} | {"request_us": times_of_modes},
        "replicas": result.replicas and result.replicas.to_json()["reason"],
        "prefill_and_decode_us": {name: f"{a} {b}" for name, (a, b) in times.items()},
    }


def golden_text(name: str) -> str:
    """What is planned for a machine that nobody has calibrated."""
    config = EngineConfig(model=MODEL, cache_dir=GOLDEN)
    _, _, result = make_plans(config, load_machine(name), preset(MODEL))
    return json.dumps(golden_record(result), indent=1) + "\n"


@pytest.mark.parametrize("name", recorded_machines())
def test_the_choice_on_a_recorded_machine_is_the_golden_one(name: str) -> None:
    assert golden_text(name) == (GOLDEN / f"{name}.json").read_text()


def test_there_is_no_golden_file_without_a_machine() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(recorded_machines())


@pytest.mark.parametrize("name", recorded_machines())
@pytest.mark.parametrize("model", ["tiny", MODEL])
def test_a_choice_is_never_predicted_to_be_slower_than_all_cores(name: str, model: str) -> None:
    result = search_on(load_machine(name), model=model)
    for choice in (result.prefill, result.decode):
        everything = next(p for p in choice.ranked if p.candidate.name.startswith("all "))
        assert choice.chosen.predicted_us <= everything.predicted_us
        times = [prediction.predicted_us for prediction in choice.ranked]
        assert times == sorted(times)
        assert choice.chosen not in choice.runners_up
        assert len(choice.runners_up) == min(NUM_RUNNERS_UP, len(times) - 1)
        assert "\n" not in choice.reason


@pytest.mark.parametrize("model", ["tiny", "smollm-135m", MODEL])
def test_a_machine_of_two_cores_uses_both_in_both_phases(model: str) -> None:
    result = search_on(load_machine("epyc-guest"), model=model)
    assert result.prefill.chosen.candidate.cpus == (0, 1)
    assert result.decode.chosen.candidate.cpus == (0, 1)


def test_fewer_cores_that_gain_almost_nothing_are_not_chosen() -> None:
    result = search_on(load_machine("epyc-9655"))
    assert result.decode.ranked[0] is not result.decode.chosen
    assert result.decode.chosen.candidate.name == "all 96 cores"
    assert "under the 2 % that count" in result.decode.reason


def test_fewer_cores_are_chosen_where_barriers_among_all_cost_more() -> None:
    result = search_on(*DEAR_LINES)
    assert len(result.decode.chosen.candidate.cpus) < 63
    assert "less time than all 63 cores" in result.decode.reason
    assert len(result.prefill.chosen.candidate.cpus) == 63


def test_prefill_is_rated_with_the_memory_on_the_nodes_of_decode() -> None:
    """One node reads half of it through the link; decode on one node would have it all there."""
    machine = load_machine("epyc-7h12-2s")
    rates = estimated_rates(machine, WeightFormat("bfloat16"))
    fast, slow = (search_on(machine, rates=replace(rates, link_gbps=gbps)) for gbps in (50.0, 0.1))

    def one_node(choice: PhaseChoice) -> float:
        return next(p.predicted_us for p in choice.ranked if p.candidate.name == "one node")

    assert slow.decode.chosen.candidate.name == "all 128 cores"
    assert one_node(slow.prefill) > 2 * one_node(fast.prefill)
    assert one_node(slow.decode) == one_node(fast.decode)


def test_the_plans_get_the_cores_that_were_chosen_and_keep_the_rest() -> None:
    machine = load_machine("epyc-9655")
    crowded = Curve(((1, 33.0), (2, 64.0), (8, 30.0)))
    rates = replace(estimated_rates(machine, WeightFormat("bfloat16")), group_gbps=crowded)
    result = search_on(machine, rates=rates)
    plans = default_plans(machine.isa_row, machine.usable_cpus(), preset("llama-3.2-1b").shape(64))
    applied = result.applied_to(plans, machine)
    chosen = result.decode.chosen.candidate
    assert len(applied.prefill.cpus) == 96
    assert applied.decode.cpus == chosen.cpus
    assert len(chosen.cpus) < 96
    assert applied.prefill.groups == ((8,) * 12,)
    assert applied.decode.groups == (tuple(map(len, chosen.groups)),)
    assert applied.decode.tiles == plans.decode.tiles
    assert applied.panel == plans.panel


class Stopwatch:
    """Makes real steps take `factor(candidate)` times the prediction, and notes what was run."""

    def __init__(self, space: PlanSearch, factor: Callable[[Candidate], float]) -> None:
        self.predicted = {
            (choice.phase, p.candidate.name): p.predicted_us
            for choice in (space.run().prefill, space.run().decode)
            for p in choice.ranked
        }
        self.factor = factor
        self.timed: list[tuple[Phase, str]] = []
        self.homes: dict[tuple[Phase, str], str] = {}

    def __call__(self, case: StepCase, candidate: Candidate, home: Candidate) -> float:
        self.timed.append((case.phase, candidate.name))
        self.homes[case.phase, candidate.name] = home.name
        return self.predicted[case.phase, candidate.name] * self.factor(candidate)


def test_real_steps_decide_between_the_best_few() -> None:
    space = search_space(load_machine("epyc-9655"))
    watch = Stopwatch(space, lambda c: 0.5 if c.name == "3 cores per LLC group" else 1.0)
    decode = space.run(watch).decode
    assert decode.chosen.candidate.name == "3 cores per LLC group"
    assert decode.chosen.measured_us == pytest.approx(0.5 * decode.chosen.predicted_us)
    assert "measured" in decode.reason
    assert decode.to_json()["measured_us"] == round(decode.chosen.measured_us or 0, 1)
    assert decode.runners_up[0].measured_us
    for (phase, name), home in watch.homes.items():  # where the memory will lie
        assert home == (name if phase is Phase.DECODE else decode.chosen.candidate.name)


def test_the_default_is_always_timed_and_what_is_hopeless_never() -> None:
    space = search_space(load_machine("epyc-9655"))
    watch = Stopwatch(space, lambda c: 1.0)
    result = space.run(watch)
    prefill = [name for phase, name in watch.timed if phase is Phase.PREFILL]
    assert prefill[0] == "all 96 cores"
    assert "1 core per LLC group" not in prefill
    decode = [name for phase, name in watch.timed if phase is Phase.DECODE]
    assert "all 96 cores" in decode
    assert len(decode) <= NUM_MEASURED
    counts = [len(p.candidate.cpus) for p in result.decode.ranked if p.measured_us]
    assert min(a / b for a, b in pairwise(sorted(counts, reverse=True))) >= MIN_SPREAD
    names = {c["name"]: c["measured_us"]["decode"] for c in result.candidates_json()}
    assert {name for name, us in names.items() if us is not None} == set(decode)


def test_a_measured_gain_that_is_too_small_leaves_the_default() -> None:
    space = search_space(load_machine("epyc-9655"))
    watch = Stopwatch(space, lambda c: 1.0 if c.name.startswith("all ") else 0.999)
    assert space.run(watch).decode.chosen.candidate.name == "all 96 cores"


def test_a_machine_with_one_set_of_cores_says_so_after_measuring() -> None:
    machine = load_machine("epyc-guest")
    space = replace(search_space(machine), found=(named_candidate("one", machine.topology, (1,)),))
    result = space.run(lambda case, candidate, home: 7.0)
    assert result.prefill.chosen.measured_us == 7.0
    assert result.prefill.reason.endswith("no other set of cores came near in the prediction")


def test_steps_of_other_sizes_are_rated_on_the_chosen_cores() -> None:
    result = search_on(*DEAR_LINES)
    assert [(o.case.num_tokens, o.case.context) for o in result.prefill.others] == [
        (32, 0),
        (128, 0),
    ]
    assert [(o.case.num_tokens, o.case.context) for o in result.decode.others] == [
        (8, 1024),
        (32, 1024),
    ]
    many = result.decode.others[-1]
    assert many.gain > 0  # arithmetic counts with 32 sequences, so more cores would do better
    assert f"{many.best.candidate.name} would take" in many.render()


def test_replicas_are_rated_where_there_are_several_nodes() -> None:
    one, two = (search_on(load_machine(n)).replicas for n in ("epyc-9655", "epyc-7h12-2s"))
    assert one is None
    assert two
    assert [len(cpus) for cpus in two.cpus] == [64, 64]
    assert two.alone_gain < -0.3  # a node has half of the bandwidth
    assert two.to_json()["reason"] == two.reason
    assert "--cpu-bind 0-63, --cpu-bind 64-127" in two.render()[1]


def test_replicas_win_where_nodes_are_far_from_each_other() -> None:
    machine = load_machine("epyc-7h12-2s")
    far = replace(estimated_rates(machine, WeightFormat("bfloat16")), far_line_ns=50_000.0)
    found = search_on(machine, rates=far).replicas
    assert found
    assert max(step.gain for step in found.steps) > 0.1
    assert "% more in decode of" in found.reason


@pytest.mark.parametrize("name", recorded_machines())
def test_every_symmetric_candidate_is_rated_in_both_phases(name: str) -> None:
    result = search_on(load_machine(name))
    found = {c.cpus for c in candidates(TopoTree.of(load_machine(name)))}
    for choice in (result.prefill, result.decode):
        assert {p.candidate.cpus for p in choice.ranked} == found


def test_cpus_that_the_user_names_are_the_only_choice_and_keep_their_order() -> None:
    machine = load_machine("epyc-7h12-2s")
    named = named_candidate("named", machine.topology, (4, 5, 0, 1, 64))
    assert named.groups == ((4, 5), (0, 1), (64,))
    shape = preset("tiny").shape(512)
    layout = ModelLayout.build(shape, "float32", 8, 16)
    rates = estimated_rates(machine, WeightFormat("float32"))
    result = PlanSearch(machine, (named,), layout, "float32", 4, rates).run()
    for choice in (result.prefill, result.decode):
        assert choice.chosen.candidate == named
        assert choice.reason.endswith("there is no other set of cores")


def test_a_choice_is_shown_with_its_reason_and_the_runners_up() -> None:
    result = search_on(load_machine("epyc-7h12-2s"))
    machine = load_machine("epyc-7h12-2s")
    lines = result.render(machine.topology)
    assert "between nodes" in lines[1]
    one_node = result.rates.render(load_machine("graviton3").topology)
    assert "between nodes" not in one_node
    assert lines[0].startswith("rated    prefill of 512 tokens, decode of one sequence of 1024")
    assert "23.5 an LLC group" in lines[1]
    for phase in Phase:
        (at,) = [i for i, line in enumerate(lines) if line.startswith(f"{phase.value} ")]
        assert lines[at + 1].strip().startswith("because ")
        assert [line.split()[0] for line in lines[at + 2 : at + 5]] == ["then"] * 3
        assert [line.split()[0] for line in lines[at + 5 : at + 7]] == [phase.value] * 2


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for machine_name in recorded_machines():
        (GOLDEN / f"{machine_name}.json").write_text(golden_text(machine_name))
