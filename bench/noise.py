"""`sandwich bench noise`: what a busy neighbour on one core does to prefill and decode.

A process that spins on one of the plan's cores takes half of that core: 1 - 1 / (2 cores) of the
machine is left. Undisturbed and disturbed turns alternate.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

from rich.console import Console

from bench.conditions import watch_and_warn
from bench.driver import EngineDriver
from bench.flags import count
from bench.model_choice import add_model_choice, chosen_config
from bench.record import provenance, write_json
from sandwich.cli.options import add_options
from sandwich.config import EngineConfig

PROMPT, CONTEXT, STEPS = 512, 128, 16
SPIN = "import os, sys\nos.sched_setaffinity(0, {int(sys.argv[1])})\nprint(flush=True)\nwhile 1: 0"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's flags, and those of the engine."""
    group = add_model_choice(parser)
    group.add_argument("--rounds", type=count, default=5, metavar="N", help="pairs of turns (5)")
    group.add_argument("--json", metavar="FILE", help="write the result to this file")
    add_options(parser, EngineConfig)


def main(args: argparse.Namespace) -> None:
    """Build the engine, measure, print and write."""
    from sandwich.startup.build import build_engine

    config = chosen_config(args)
    length = config.max_model_len or 2 * PROMPT
    parts = build_engine(replace(config, max_model_len=length))
    conditions = watch_and_warn()
    with closing(parts.engine):
        cpus = parts.plans.decode.cpus
        phases = measure(EngineDriver(parts.engine, config.weights_seed), cpus[-1], args.rounds)
    result = {
        "benchmark": "noise",
        **provenance(parts.machine),
        "conditions": conditions.to_json(),
        "model": config.model,
        "quantization": config.quantization,
        "plan": parts.plans.to_json(),
        "spinning_on": cpus[-1],
        "left_by_the_machine": 1 - 0.5 / len(cpus),
        "phases": phases,
    }
    for phase, row in phases.items():
        Console().print(
            f"{phase}: {row['kept_ratio']:.2f} of its speed is left, "
            f"{result['left_by_the_machine']:.2f} is what the machine leaves",
            highlight=False,
        )
    if args.json:
        write_json(args.json, result)


def measure(driver: EngineDriver, cpu: int, num_rounds: int) -> dict[str, Any]:
    """Seconds of a prompt and of a decode step, quiet and disturbed; the first turn warms up."""
    seconds: dict[str, dict[str, list[float]]] = {
        phase: {"quiet": [], "disturbed": []} for phase in ("prefill", "decode")
    }
    _turn(driver)
    for _ in range(num_rounds):
        for phase, spent in _turn(driver).items():
            seconds[phase]["quiet"].append(spent)
        with spinning(cpu):
            for phase, spent in _turn(driver).items():
                seconds[phase]["disturbed"].append(spent)
    return {
        phase: {
            **{name: statistics.median(values) for name, values in both.items()},
            "kept_ratio": _kept(both["quiet"], both["disturbed"]),
        }
        for phase, both in seconds.items()
    }


def _kept(quiet: Sequence[float], disturbed: Sequence[float]) -> float:
    """Speed under disturbance as a part of that before it, pair by pair."""
    return statistics.median(a / b for a, b in zip(quiet, disturbed, strict=True))


def _turn(driver: EngineDriver) -> dict[str, float]:
    prefill = sum(step.seconds for step in driver.prefill(PROMPT))
    steps = [step.seconds for step in driver.decode(1, CONTEXT, STEPS, lambda index: None)]
    return {"prefill": prefill, "decode": statistics.mean(steps)}


@contextmanager
def spinning(cpu: int) -> Iterator[None]:
    """A process that keeps this CPU busy, until the end of the block."""
    environment = {**os.environ, "PYTHONNOUSERSITE": "1"}
    command = [sys.executable, "-I", "-c", SPIN, str(cpu)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()  # it spins now
            yield
        finally:
            process.kill()
