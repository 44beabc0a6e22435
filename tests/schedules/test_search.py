"""Plan search on recorded machines, and the golden files of what it chooses there.

`python tests/schedules/test_search.py` writes the golden files anew; look at their differences.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from codegen.layout import ModelLayout
from codegen.spec import Phase
from platforms.machine import Machine
from platforms.machines import load_machine, recorded_machines
from platforms.sysfs import format_cpu_list
from sandwich.models.presets import preset
from schedules.plan import default_plans, panel_width
from schedules.rates import MachineRates, estimated_rates
from schedules.search import NUM_RUNNERS_UP, PhaseChoice, SearchResult, search
from schedules.topotree import TopoTree, candidates, named_candidate

GOLDEN = Path(__file__).parent / "golden"
MODEL = "llama-3.2-1b"


def search_on(
    machine: Machine, model: str = MODEL, rates: MachineRates | None = None
) -> SearchResult:
    shape = preset(model).shape(min(4096, preset(model).max_position_embeddings))
    isa = machine.isa_row
    layout = ModelLayout.build(shape, "bfloat16", isa.lanes, panel_width(isa))
    found = candidates(TopoTree.of(machine))
    rates = rates or estimated_rates(machine, "bfloat16")
    return search(machine, found, layout, "bfloat16", 4, rates)


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
    return {
        "model": MODEL,
        "prefill": choice(result.prefill),
        "decode": choice(result.decode),
        "prefill_and_decode_us": {name: f"{a} {b}" for name, (a, b) in times.items()},
    }


def golden_text(name: str) -> str:
    return json.dumps(golden_record(search_on(load_machine(name))), indent=1) + "\n"


@pytest.mark.parametrize("name", recorded_machines())
def test_the_choice_on_a_recorded_machine_is_the_golden_one(name: str) -> None:
    assert golden_text(name) == (GOLDEN / f"{name}.json").read_text()


def test_there_is_no_golden_file_without_a_machine() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(recorded_machines())


@pytest.mark.parametrize("name", recorded_machines())
@pytest.mark.parametrize("model", ["tiny", MODEL])
def test_a_choice_is_never_predicted_to_be_slower_than_all_cores(name: str, model: str) -> None:
    result = search_on(load_machine(name), model)
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
    result = search_on(load_machine("epyc-guest"), model)
    assert result.prefill.chosen.candidate.cpus == (0, 1)
    assert result.decode.chosen.candidate.cpus == (0, 1)


def test_fewer_cores_that_gain_almost_nothing_are_not_chosen() -> None:
    result = search_on(load_machine("graviton3"))
    assert result.decode.ranked[0] is not result.decode.chosen
    assert result.decode.chosen.candidate.name == "all 64 cores"
    assert "under the 2 % that count" in result.decode.reason


def test_decode_is_rated_with_the_memory_on_the_nodes_of_prefill() -> None:
    """One node reads half of it through the link, which costs more than the barriers saved."""
    machine = load_machine("epyc-7h12-2s")
    slow = replace(estimated_rates(machine, "bfloat16"), link_gbps=1.0)
    ranked = search_on(machine, rates=slow).decode.ranked
    assert all("one node" not in p.candidate.name for p in ranked[: len(ranked) // 2])


def test_the_plans_get_the_cores_that_were_chosen_and_keep_the_rest() -> None:
    machine = load_machine("epyc-9655")
    result = search_on(machine)
    plans = default_plans(machine.isa_row, machine.usable_cpus(), group_size=4)
    applied = result.applied_to(plans, machine)
    assert len(applied.prefill.cpus) == 96
    assert applied.decode.cpus == tuple(cpu for llc in range(12) for cpu in (8 * llc, 8 * llc + 1))
    assert applied.prefill.groups == ((8,) * 12,)
    assert applied.decode.groups == (tuple(map(len, result.decode.chosen.candidate.groups)),)
    assert applied.decode.tiles == plans.decode.tiles
    assert applied.panel == plans.panel


def test_cpus_that_the_user_names_are_the_only_choice_and_keep_their_order() -> None:
    machine = load_machine("epyc-7h12-2s")
    named = named_candidate("named", machine, (4, 5, 0, 1, 64))
    assert named.groups == ((4, 5), (0, 1), (64,))
    shape = preset("tiny").shape(512)
    layout = ModelLayout.build(shape, "float32", 8, 16)
    rates = estimated_rates(machine, "float32")
    result = search(machine, [named], layout, "float32", 4, rates)
    for choice in (result.prefill, result.decode):
        assert choice.chosen.candidate == named
        assert choice.reason.endswith("there is no other set of cores")


def test_a_choice_is_shown_with_its_reason_and_the_runners_up() -> None:
    result = search_on(load_machine("epyc-7h12-2s"))
    lines = result.render()
    assert lines[0].startswith("rated    prefill of 512 tokens, decode of one sequence of 1024")
    assert "23.5 an LLC group" in lines[1]
    for phase in Phase:
        (at,) = [i for i, line in enumerate(lines) if line.startswith(f"{phase.value} ")]
        assert lines[at + 1].strip().startswith("because ")
        assert [line.split()[0] for line in lines[at + 2 : at + 5]] == ["then"] * 3


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for machine_name in recorded_machines():
        (GOLDEN / f"{machine_name}.json").write_text(golden_text(machine_name))
