"""`sandwich plan [MODEL]`: how a model would run on this machine, without loading it."""

from __future__ import annotations

import argparse
import json

from sandwich.cli.options import add_model_argument, add_options, build_config
from sandwich.config import EngineConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_options(parser, EngineConfig, without_groups=("server", "development"))


def main(args: argparse.Namespace) -> None:
    from platforms.probe import probe
    from sandwich.hub import resolve_model
    from sandwich.models.config import ModelConfig
    from schedules.plan import default_plans

    config = build_config(EngineConfig, args)
    model = ModelConfig.from_folder(resolve_model(config.model))
    machine = probe(isa=config.isa)
    group_size = model.num_heads // model.num_kv_heads
    plans = default_plans(machine.isa_row, machine.usable_cpus(), group_size)
    if args.json:
        about = {"model": config.model_name, "machine": machine.fingerprint}
        print(json.dumps(about | plans.to_json(), indent=2))
        return
    print(f"{config.model_name} on {machine.cpu_model} with {machine.isa}")
    print(f"weights  packed in panels of {plans.panel} columns, one copy for both phases")
    print(plans.prefill.render())
    print(plans.decode.render())
