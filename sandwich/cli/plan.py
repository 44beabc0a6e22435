"""`sandwich plan [MODEL]`: how a model would run on this machine, or on a recorded one.

Nothing is loaded: the model is its shape, the machine its record.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sandwich.cli.options import add_model_argument, add_options, build_config
from sandwich.config import EngineConfig
from sandwich.errors import ConfigError

if TYPE_CHECKING:
    from platforms.machine import Machine
    from sandwich.models.config import ModelConfig
    from sandwich.startup.memory_plan import MemoryPlan
    from sandwich.startup.plans import TimeSteps
    from schedules.search import SearchResult


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser, more="a published shape (llama-3.2-1b, ...) ")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--simulate",
        metavar="MACHINE",
        help="plan for another machine: the name of a recorded one, or a file that "
        "`sandwich probe --json` wrote there",
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="choose by timing real steps, with random weights: --plan-search measure",
    )
    parser.add_argument(
        "--draw",
        metavar="FILE",
        help="draw the machine with the cores of each phase into this .svg file",
    )
    add_options(parser, EngineConfig, without_groups=("server", "development"))


def main(args: argparse.Namespace) -> None:
    from sandwich.startup.plans import make_plans

    config = build_config(EngineConfig, args)
    if args.measure:
        config = replace(config, plan_search="measure")
    machine = _machine(args.simulate, config.isa)
    model = model_config(config.model)
    plans, memory, result = make_plans(config, machine, model, _time_steps(config, args.simulate))
    if args.draw:
        _draw(args.draw, config.model_name, machine, result)
    if args.json:
        report = {"model": config.model_name, "machine": machine.fingerprint, **plans.to_json()}
        for choice in (result.prefill, result.decode):
            report[choice.phase.value] |= choice.to_json()
        if result.mixed:
            report["mixed"] |= result.mixed.to_json()
        report["replicas"] = result.replicas.to_json() if result.replicas else None
        report["candidates"] = result.candidates_json()
        report["rates"] = asdict(result.rates)
        print(json.dumps(report | {"memory": _memory_record(memory)}, indent=2))
        return
    print(f"{config.model_name} on {machine.cpu_model} with {machine.isa}")
    print(f"weights  packed once in panels of {plans.panel} columns, for both phases")
    print(plans.prefill.render())
    print(plans.decode.render())
    print(memory.render())
    print("\n".join(result.render(machine.topology)))
    print("\n".join(_tree(machine, result)))


def _time_steps(config: EngineConfig, simulated: str | None) -> TimeSteps | None:
    if config.plan_search != "measure":
        return None
    if simulated is not None:
        raise ConfigError(
            f"steps cannot be timed on {simulated}; leave out --simulate or --measure"
        )
    from sandwich.startup.step_bench import timed_steps

    return timed_steps


def _tree(machine: Machine, result: SearchResult) -> list[str]:
    """The tree of the usable cores and of those that were named, with what each phase takes."""
    from schedules.topotree import TopoTree, render

    uses = {c.phase.value: c.chosen.candidate.cpus for c in (result.prefill, result.decode)}
    cpus = sorted({*machine.usable_cpus(), *chain(*uses.values())})
    tree = TopoTree.of(machine, cpus, result.hidden_groups)
    return render(tree, uses)


def _draw(file: str, model: str, machine: Machine, result: SearchResult) -> None:
    from sandwich.startup.plan_picture import draw

    draw(Path(file), model, machine, result)


def _machine(simulated: str | None, isa: str | None) -> Machine:
    """This machine, or a recorded one; with the best of its ISAs, or the one that is asked for."""
    from platforms.isa import select_isa
    from platforms.machines import load_machine
    from platforms.probe import probe

    if simulated is None:
        return probe(isa=isa)
    machine = load_machine(simulated)
    row = select_isa(machine.isa_features, isa or "auto", machine.arch)
    return replace(machine, isa=row.name)


def model_config(model: str) -> ModelConfig:
    """Of a folder or hub id, or of a published shape, as nothing is loaded."""
    from sandwich.checkpoint.formats import open_source
    from sandwich.models.config import ModelConfig
    from sandwich.models.presets import PRESETS, preset
    from sandwich.startup.hub import resolve_model

    if model in PRESETS:
        return preset(model)
    try:
        return ModelConfig.from_source(open_source(resolve_model(model)))
    except ConfigError as error:
        if "/" in model:
            raise
        raise ConfigError(f"{error}; published shapes are {', '.join(PRESETS)}") from error


def _memory_record(memory: MemoryPlan) -> dict[str, Any]:
    return {
        "dtype": memory.layout.dtype,
        "weights": memory.layout.weights.name,
        "lm_head": memory.layout.head.name,
        "kv_cache_dtype": memory.kv.dtype,
        "max_model_len": memory.max_model_len,
        "num_cache_tokens": memory.num_cache_tokens,
        "weight_bytes": memory.layout.weight_bytes,
        "kv_cache_bytes": memory.kv_bytes,
        "workspace_bytes": memory.workspace_bytes,
        "total_bytes": memory.total_bytes,
        "limit_bytes": memory.budget.limit_bytes,
    }
