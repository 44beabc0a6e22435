"""`sandwich bench latency`: prefill and decode of the real engine, beside the limits of its cores.

On a shared machine only figures of one run can be compared, so samples of the limits are taken
between the repetitions of what they are compared with. All figures are medians.
"""

from __future__ import annotations

import argparse
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

from rich.console import Console

from bench.barriers import barriers
from bench.driver import EngineDriver, decode_headroom
from bench.flags import count, counts
from bench.model_choice import add_model_choice, chosen_config
from bench.record import provenance, write_json
from bench.summary import DecodeTimes, PrefillTimes, decode_row, prefill_row, show
from bench.work import StepWork
from sandwich.cli.options import add_options
from sandwich.config import EngineConfig
from schedules.meters import Meter, PeakMeter, ReadMeter, last_level_cache_bytes

if TYPE_CHECKING:
    from sandwich.startup.build import EngineParts

NUM_WARMUPS = 1
STEPS_PER_READ_SAMPLE = 4


@dataclass(frozen=True)
class Cells:
    """What is measured: prompts of these lengths; these batches, each at these contexts."""

    prefill: tuple[int, ...]
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    num_repeats: int  # prompts of each length
    num_steps: int  # of decode, for each batch and context

    def max_model_len(self, max_num_batched_tokens: int) -> int:
        """Tokens that the longest sequence will have."""
        decode = max(
            context + decode_headroom(batch, context, max_num_batched_tokens)
            for batch, context in product(self.batches, self.contexts)
        )
        return max(decode + NUM_WARMUPS + self.num_steps, max(self.prefill) + 1)


Times = tuple[list[PrefillTimes], list[DecodeTimes]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's flags, and those of the engine."""
    group = add_model_choice(parser)
    for name, default, text in (
        ("prefill", "128,512", "prompt lengths in tokens"),
        ("batch", "1,4,8", "sequences that decode together"),
        ("context", "128,1024", "tokens in the cache when decoding starts"),
    ):
        group.add_argument(
            f"--{name}", type=counts, default=default, metavar="N,N", help=f"{text} ({default})"
        )
    group.add_argument(
        "--repeats", type=count, default=5, metavar="N", help="prompts of each length (5)"
    )
    group.add_argument(
        "--steps", type=count, default=32, metavar="N", help="decode steps of each kind (32)"
    )
    group.add_argument("--json", metavar="FILE", help="write the result to this file")
    add_options(parser, EngineConfig)


def main(args: argparse.Namespace) -> None:
    """Build the engine, measure, print and write."""
    from sandwich.startup.build import build_engine

    cells = Cells(args.prefill, args.batch, args.context, args.repeats, args.steps)
    config = engine_config(args, cells)
    parts = build_engine(config)
    with closing(parts.engine):
        times, read, peak = measure(parts, config.weights_seed, cells)
    result = {
        "benchmark": "latency",
        **provenance(parts.machine),
        "model": config.model,
        "dtype": parts.dtype,
        "quantization": config.quantization,
        "weights": parts.memory.weights,
        "kv_cache_dtype": parts.kv_dtype,
        "seed": config.weights_seed,
        "plan": parts.plans.to_json(),
        "barriers": barriers(parts.isa, parts.plans, parts.memory.layout),
        **summary(times, read, peak, step_work(parts)),
    }
    show(result, Console())
    if args.json:
        write_json(args.json, result)


def engine_config(args: argparse.Namespace, cells: Cells) -> EngineConfig:
    """The flags' configuration, made large enough for what is to be measured."""
    config = chosen_config(args)
    return replace(
        config,
        max_num_seqs=max(config.max_num_seqs, *cells.batches),
        max_model_len=config.max_model_len or cells.max_model_len(config.max_num_batched_tokens),
    )


def step_work(parts: EngineParts) -> StepWork:
    """What a step of the engine needs."""
    layout = parts.memory.layout
    return StepWork(parts.shape, layout.weights, layout.head, parts.kv_dtype)


def product_dtype(parts: EngineParts) -> str:
    """What the layers' products are of, which sets the peak of prefill."""
    return "int8" if parts.memory.layout.weights.has_int8_activations else parts.dtype


def measure(parts: EngineParts, seed: int, cells: Cells) -> tuple[Times, Meter, PeakMeter]:
    """Measure all cells beside the limits of the plans' cores: read bandwidth and peak."""
    plans = parts.plans
    read = ReadMeter(parts.isa, plans.decode.cpus, last_level_cache_bytes(parts.machine))
    peak = PeakMeter(parts.isa, product_dtype(parts), plans.prefill.cpus)
    with closing(read), closing(peak):
        return take_times(EngineDriver(parts.engine, seed), read, peak, cells), read, peak


def take_times(driver: EngineDriver, read: Meter, peak: Meter, cells: Cells) -> Times:
    """Every length once to warm up, then rounds over all prompts, then decode, cell by cell."""
    say = Console(stderr=True).print  # no live display: it would run beside what is timed
    prefill = [PrefillTimes(num_tokens) for num_tokens in cells.prefill]
    for times in prefill:
        driver.prefill(times.num_tokens)
    for i in range(cells.num_repeats):
        say(f"prefill, round {i + 1} of {cells.num_repeats}")
        for times in prefill:
            times.peak_gflops.append(peak.sample())
            times.seconds.append(sum(step.seconds for step in driver.prefill(times.num_tokens)))
            times.peak_gflops.append(peak.sample())
    decode = []
    for batch, context in product(cells.batches, cells.contexts):
        say(f"decode, batch {batch}, context {context}")
        decode.append(decode_times(driver, read, batch, context, cells.num_steps))
    return prefill, decode


def decode_times(
    driver: EngineDriver, read: Meter, batch: int, context: int, num_steps: int
) -> DecodeTimes:
    """Warm up, then `num_steps` steps with samples of the read bandwidth between them."""
    times = DecodeTimes(batch, context)

    def between(i: int) -> None:
        if i % STEPS_PER_READ_SAMPLE == 0:
            times.read_gbps.append(read.sample())

    times.steps += driver.decode(batch, context, NUM_WARMUPS + num_steps, between)
    del times.steps[:NUM_WARMUPS]
    return times


def summary(times: Times, read: Meter, peak: PeakMeter, work: StepWork) -> dict[str, Any]:
    """The measured part of the result: limits over the whole run, prefill, decode."""
    prefill, decode = times
    return {
        "limits": {
            "read_gbps": read.median,
            "read_gbps_best": read.best,
            "peak_dtype": peak.dtype,
            "peak_gflops": peak.median,
            "peak_gflops_best": peak.best,
        },
        "prefill": [prefill_row(row, work) for row in prefill],
        "decode": [decode_row(row, work) for row in decode],
    }
