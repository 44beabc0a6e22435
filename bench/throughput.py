"""`sandwich bench throughput`: many requests at once through the engine, without a server."""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
from rich.console import Console

from bench.conditions import watch_and_warn
from bench.driver import BenchmarkError
from bench.flags import count
from bench.model_choice import add_model_choice, chosen_config
from bench.record import provenance, write_json
from sandwich.cli.options import add_options
from sandwich.config import EngineConfig
from sandwich.engine.engine import Engine
from sandwich.requests.request import Request
from sandwich.requests.sampling_params import SamplingParams


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's flags, and those of the engine."""
    group = add_model_choice(parser)
    for name, default, text in (
        ("num-prompts", 32, "requests"),
        ("input-len", 256, "tokens of each prompt"),
        ("output-len", 64, "tokens of each answer"),
        ("repeats", 3, "times all of it, after a warm-up with a tenth"),
    ):
        group.add_argument(
            f"--{name}", type=count, default=default, metavar="N", help=f"{text} ({default})"
        )
    group.add_argument("--json", metavar="FILE", help="write the result to this file")
    add_options(parser, EngineConfig)


def main(args: argparse.Namespace) -> None:
    """Build the engine, measure, print and write."""
    from sandwich.startup.build import build_engine

    config = chosen_config(args)
    length = config.max_model_len or args.input_len + args.output_len
    parts = build_engine(replace(config, max_model_len=length))
    conditions = watch_and_warn()
    rng = np.random.default_rng(config.weights_seed)
    sizes = args.input_len, args.output_len
    with closing(parts.engine):
        run(parts.engine, max(1, args.num_prompts // 10), *sizes, rng)
        seconds = [run(parts.engine, args.num_prompts, *sizes, rng) for _ in range(args.repeats)]
    result = {
        "benchmark": "throughput",
        **provenance(parts.machine),
        "conditions": conditions.to_json(),
        "model": config.model,
        "quantization": config.quantization,
        "plan": parts.plans.to_json(),
        "seed": config.weights_seed,
        "num_prompts": args.num_prompts,
        "input_len": args.input_len,
        "output_len": args.output_len,
        **rates(seconds, args.num_prompts, *sizes),
    }
    Console().print(
        f"{result['output_tok_per_s']:.1f} tokens/s out, {result['total_tok_per_s']:.1f} in and "
        f"out, {result['requests_per_s']:.2f} requests/s (spread {result['spread']:.0%})",
        highlight=False,
    )
    if args.json:
        write_json(args.json, result)


def run(
    engine: Engine, num_prompts: int, num_in: int, num_out: int, rng: np.random.Generator
) -> float:
    """Seconds until all requests have been answered in full; BenchmarkError if one fails."""
    params = SamplingParams(temperature=0.0, max_tokens=num_out, ignore_eos=True)
    ids = rng.integers(engine.limits.vocab_size, size=(num_prompts, num_in))
    requests = [Request(f"bench-{i}", row, params) for i, row in enumerate(ids)]
    started = time.perf_counter()
    for request in requests:
        engine.add_request(request)
    while engine.has_work():
        if errors := [event.error for event in engine.step() if event.error]:
            raise BenchmarkError(errors[0])
    return time.perf_counter() - started


def rates(seconds: list[float], num_prompts: int, num_in: int, num_out: int) -> dict[str, Any]:
    """Of the median run."""
    middle = statistics.median(seconds)
    return {
        "seconds": seconds,
        "spread": (max(seconds) - min(seconds)) / middle,
        "requests_per_s": num_prompts / middle,
        "output_tok_per_s": num_prompts * num_out / middle,
        "total_tok_per_s": num_prompts * (num_in + num_out) / middle,
    }
