"""`sandwich plan [MODEL]`: how a model would run on this machine, or on a recorded one.

Nothing is loaded: the model is its shape, the machine its record.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from sandwich.cli.options import add_model_argument, add_options, build_config
from sandwich.config import EngineConfig

if TYPE_CHECKING:
    from platforms.machine import Machine
    from sandwich.memory_plan import MemoryPlan
    from sandwich.models.config import ModelConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--simulate",
        metavar="MACHINE",
        help="plan for another machine: the name of a recorded one, or a file that "
        "`sandwich probe --json` wrote there",
    )
    add_options(parser, EngineConfig, without_groups=("server", "development"))


def main(args: argparse.Namespace) -> None:
    from sandwich.planning import make_plans
    from schedules.topotree import TopoTree, render

    config = build_config(EngineConfig, args)
    machine = _machine(args.simulate, config.isa)
    model = model_config(config.model)
    plans, memory, result = make_plans(config, machine, model)
    if args.json:
        report = {"model": config.model_name, "machine": machine.fingerprint, **plans.to_json()}
        for choice in (result.prefill, result.decode):
            report[choice.phase.value] |= choice.to_json()
        if result.mixed:
            report["mixed"] |= result.mixed.to_json()
        report["candidates"] = result.candidates_json()
        report["rates"] = asdict(result.rates)
        print(json.dumps(report | {"memory": _memory_record(memory)}, indent=2))
        return
    print(f"{config.model_name} on {machine.cpu_model} with {machine.isa}")
    print(f"weights  packed once in panels of {plans.panel} columns, for both phases")
    print(plans.prefill.render())
    print(plans.decode.render())
    print(memory.render())
    print("\n".join(result.render()))
    uses = {"prefill": plans.prefill.cpus, "decode": plans.decode.cpus}
    tree = TopoTree.of(machine, sorted({*machine.usable_cpus(), *chain(*uses.values())}))
    print("\n".join(render(tree, uses)))


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
    from sandwich.hub import resolve_model
    from sandwich.models.config import ModelConfig
    from sandwich.models.presets import PRESETS, preset

    return preset(model) if model in PRESETS else ModelConfig.from_folder(resolve_model(model))


def _memory_record(memory: MemoryPlan) -> dict[str, Any]:
    return {
        "dtype": memory.layout.dtype,
        "weights": memory.layout.weights.name,
        "lm_head": memory.layout.lm_head.format.name,
        "kv_cache_dtype": memory.kv.dtype,
        "max_model_len": memory.max_model_len,
        "num_cache_tokens": memory.num_cache_tokens,
        "weight_bytes": memory.layout.weight_bytes,
        "kv_cache_bytes": memory.kv_bytes,
        "workspace_bytes": memory.workspace_bytes,
        "total_bytes": memory.total_bytes,
        "limit_bytes": memory.budget.limit_bytes,
    }
