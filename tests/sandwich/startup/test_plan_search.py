"""The plan search in its two users: `sandwich plan`, and an engine whose phases differ in cores."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from codegen.spec import WeightFormat
from platforms.machine import Machine
from platforms.machines import load_machine, recorded_machines
from platforms.probe import probe
from platforms.sysfs import format_cpu_list
from sandwich.config import EngineConfig
from sandwich.errors import ConfigError
from sandwich.models.presets import preset
from sandwich.requests.request import Request
from sandwich.requests.sampling_params import SamplingParams
from sandwich.startup.build import build_engine
from sandwich.startup.plans import make_plans
from schedules.rates import MachineRates, estimated_rates

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def uncalibrated(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user has measured of this machine plays no part here."""
    monkeypatch.setattr("sandwich.startup.plans.load_calibration", lambda folder, machine: None)


@pytest.mark.parametrize("name", recorded_machines())
def test_a_model_is_planned_for_any_recorded_machine(run: Run, name: str) -> None:
    report = json.loads(run("plan", "llama-3.2-1b", "--simulate", name, "--json").out)
    machine = load_machine(name)
    assert report["machine"] == machine.fingerprint
    for phase in ("prefill", "decode"):
        choice = report[phase]
        assert choice["isa"] == machine.isa
        assert choice["cores"] == choice["cpus"] == list(chain(*choice["groups"]))
        assert choice["predicted_us"] > 0
        assert choice["measured_us"] is None
        assert choice["reason"]
        assert len(choice["steps"]) == 2
    assert report["mixed"]["predicted_us"] > 0
    assert sorted(report["prefill"]["cores"]) == sorted(machine.usable_cpus())
    assert report["candidates"][0]["predicted_us"]["decode"] <= report["decode"]["predicted_us"]
    assert report["rates"]["node_gbps"] > 0
    assert not report["rates"]["is_measured"]


def test_the_text_has_the_choices_the_runners_up_and_the_tree(run: Run) -> None:
    lines = run("plan", "llama-3.2-1b", "--simulate", "graviton3").out.splitlines()
    decode = next(i for i, line in enumerate(lines) if line.startswith("decode   all 63 cores: "))
    assert lines[decode + 1].strip().startswith("because memory is 9")
    assert lines[decode + 2].strip().startswith("then ")
    assert lines[-1] == "    LLC group 0-62  prefill 0-62  decode 0-62"


def test_the_tree_also_has_the_cores_that_no_phase_takes(run: Run) -> None:
    lines = run("plan", "tiny", "--simulate", "epyc-7h12-2s").out.splitlines()
    assert "tree     128 cores, alike at every level" in lines
    assert lines[-1].startswith("    LLC group 124-127  prefill ")
    assert lines[-1].endswith("  decode -")


def test_a_machine_from_a_file_is_planned_for_and_its_isa_may_be_forced(
    run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "machine.json"
    file.write_text(load_machine("epyc-9655").to_json())
    out = run("plan", "tiny", "--simulate", str(file), "--isa", "avx2", "--json").out
    assert json.loads(out)["prefill"]["isa"] == "avx2"


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--simulate", "pdp-11"], "epyc-7h12-2s"),
        (["--simulate", "graviton3", "--isa", "avx2"], "needs x86_64"),
        (["--simulate", "graviton3", "--cpu-bind", "64"], "CPU 64, which this process may not"),
        (["--simulate", "graviton3", "--cpu-bind", "64"], "it may use 0-63"),
        (["--simulate", "kubernetes-pod", "--cpu-bind", "2-8"], "it may use 2-7,10-15"),
        (["--simulate", "graviton3", "--cpu-bind", "3-1"], "--cpu-bind: CPU list '3-1'"),
        (["--simulate", "graviton3", "--measure"], "cannot be timed on graviton3"),
    ],
)
def test_what_cannot_be_simulated_is_refused_with_what_can(
    run: Run, options: list[str], part: str
) -> None:
    _, err = run("plan", "tiny", *options, code=2)
    assert err.startswith("error: ")
    assert part in err


def test_cpus_that_the_user_names_serve_both_phases() -> None:
    machine = load_machine("epyc-7h12-2s")
    config = EngineConfig(model="llama-3.2-1b", cpu_bind="8-9|0-1")
    plans, _, result = make_plans(config, machine, preset("llama-3.2-1b"))
    assert plans.prefill.cpus == plans.decode.cpus == (8, 9, 0, 1)
    assert result.decode.chosen.candidate.groups == ((8, 9), (0, 1))


@pytest.mark.parametrize(
    ("cpus", "warning"),
    [("2-7", "the CPU quota is 5.5 cores"), ("3,11", "share a core (3,11)"), ("2-6", "")],
)
def test_named_cpus_that_would_slow_each_other_down_are_warned_about(
    caplog: pytest.LogCaptureFixture, cpus: str, warning: str
) -> None:
    machine = load_machine("kubernetes-pod")
    with caplog.at_level("WARNING", "sandwich.startup.plans"):
        plans, _, _ = make_plans(EngineConfig(cpu_bind=cpus), machine, preset("tiny"))
    assert format_cpu_list(plans.decode.cpus) == cpus  # it is the user who decides
    assert warning in caplog.text
    assert bool(caplog.records) == bool(warning)


def test_a_model_that_is_not_there_is_refused_with_the_shapes_that_are(run: Run) -> None:
    _, err = run("plan", "llama-3.2-2b", code=2)
    assert "is no file, folder or hub id" in err
    assert "llama-3.2-1b" in err


def test_a_cpu_that_is_offline_cannot_be_named() -> None:
    machine = load_machine("graviton3")
    limits = replace(machine.limits, affinity=tuple(range(128)))
    with pytest.raises(ConfigError, match="CPU 100"):
        make_plans(EngineConfig(cpu_bind="100"), replace(machine, limits=limits), preset("tiny"))


def dear_barriers(machine: Machine, weights: WeightFormat) -> MachineRates:
    """Rates with which decode does better alone, and prefill does not."""
    return replace(estimated_rates(machine, weights), barrier_base_us=60.0)


@pytest.mark.skipif(len(probe().usable_cpus()) != 2, reason="needs a machine of two cores")
def test_phases_with_different_cores_share_weights_and_cache(
    monkeypatch: pytest.MonkeyPatch, cache_dir: Path
) -> None:
    def tokens(num_cores: int) -> list[int | None]:
        config = EngineConfig(max_num_seqs=2, max_model_len=1024, cache_dir=cache_dir)
        parts = build_engine(config)
        assert len(parts.plans.prefill.cpus) == 2
        assert len(parts.plans.decode.cpus) == num_cores
        prompt = parts.tokenizer.encode("def add(a, b):\n", add_special_tokens=True)
        params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
        parts.engine.add_request(Request("one", prompt, params))
        events = []
        while parts.engine.has_work():
            events += parts.engine.step()
        parts.engine.close()
        return [token_id for event in events for token_id in event.token_ids]

    both = tokens(2)
    monkeypatch.setattr("schedules.planner.estimated_rates", dear_barriers)
    assert tokens(1) == both
