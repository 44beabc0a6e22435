"""`sandwich bench switch`: what it costs to change from one phase's plan to the other's.

The real engine makes prefill and decode steps by turns on the thread that launches them, as a
server does. A switch lasts from the return of one phase's native call to the entry of the other's,
Python included; beside it stands the same time between two steps of one phase. Either is made of
the executor's part (the output, the next batch's arrays, the launch, on another thread if need be)
and of sampling and scheduling, which are the same whether or not the phase changes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.barriers import barrier_us
from bench.driver import BenchmarkError, StopWatch
from bench.hand_over import hand_over_us
from bench.model_choice import add_model_choice, chosen_config
from bench.record import provenance, write_json
from codegen.layout.model import DEFAULT_BLOCK_SIZE
from codegen.spec import Phase
from platforms.sysfs import format_cpu_list, parse_cpu_list
from sandwich.cli.options import add_options
from sandwich.config import EngineConfig
from sandwich.engine.engine import Engine
from sandwich.errors import ConfigError
from sandwich.executor.base import Batch, Executor, NativeTime, StepOutput
from sandwich.requests.request import Request
from sandwich.requests.sampling_params import SamplingParams
from schedules.mixed.plan import TAKE_TURNS
from schedules.plan import PlanPair

NUM_WARMUPS = 4  # steps of each kind
SPARE_TOKENS = 2 * DEFAULT_BLOCK_SIZE  # a block each that the scheduler keeps for growth
PHASES = (Phase.PREFILL, Phase.DECODE)
SIGNS = {(one, other): 1 if one is not other else -1 for one in PHASES for other in PHASES}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's flags, and those of the engine."""
    group = add_model_choice(parser)
    group.add_argument(
        "--switches",
        type=int,
        default=100,
        metavar="N",
        help="turns of prefill and decode, three tokens of a sequence each (100)",
    )
    group.add_argument(
        "--prompt", type=int, default=16, metavar="N", help="tokens of each prefill step (16)"
    )
    group.add_argument(
        "--decode-cpus",
        type=parse_cpu_list,
        metavar="LIST",
        help="CPUs of the decode plan, like 0-3,8 (default: as the plan search chooses)",
    )
    group.add_argument("--json", metavar="FILE", help="write the result to this file")
    add_options(parser, EngineConfig)


def main(args: argparse.Namespace) -> None:
    """Build the engine, measure, print and write."""
    from sandwich.startup.build import build_engine

    config = engine_config(args)

    def moved(plans: PlanPair) -> PlanPair:
        return replace(plans, decode=plans.decode.on(args.decode_cpus))

    parts = build_engine(config, moved if args.decode_cpus else None)
    with closing(parts.engine):
        calls = take_turns(parts.engine, args.switches, args.prompt, config.weights_seed)
    result = {
        "benchmark": "switch",
        **provenance(parts.machine),
        "model": config.model,
        "dtype": parts.dtype,
        "seed": config.weights_seed,
        "prompt_tokens": args.prompt,
        "plan": parts.plans.to_json(),
        **summary(calls),
        "hand_over_us": hand_over_us(parts.plans),
        "barrier_us": {
            phase.value: {
                "sandwich": barrier_us(parts.isa, parts.plans.of(phase)),
                "tvm": barrier_us(parts.isa, parts.plans.of(phase), is_tvm=True),
            }
            for phase in PHASES
        },
    }
    show(result, parts.plans, Console())
    if args.json:
        write_json(args.json, result)


def engine_config(args: argparse.Namespace) -> EngineConfig:
    """The flags' configuration, with room for one sequence that decodes and one that prefills."""
    config = chosen_config(args)
    for name in ("switches", "prompt"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name} is {getattr(args, name)}; it is a whole number from 1 up")
    longest = args.prompt + 3 * (args.switches + NUM_WARMUPS) + SPARE_TOKENS
    return replace(
        config,
        max_num_seqs=2,
        max_num_batched_tokens=args.prompt,
        max_model_len=config.max_model_len or longest,
        mixed_steps="turns",
    )


class Call(NamedTuple):
    """A native call, within the executor's run from `entered` to `left`, in seconds."""

    phase: Phase
    entered: float
    native: NativeTime
    left: float


class CallLog(StopWatch):
    """An executor that notes the native calls of another one."""

    def __init__(self, executor: Executor) -> None:
        super().__init__(executor)
        self.calls: list[Call] = []

    def run(self, batch: Batch) -> StepOutput:
        entered = time.perf_counter()
        output = super().run(batch)
        if output.native is None:
            raise BenchmarkError("the executor makes no native calls; leave --executor compiled")
        self.calls.append(Call(batch.phase, entered, output.native, time.perf_counter()))
        return output


def take_turns(engine: Engine, num_turns: int, prompt: int, seed: int) -> list[Call]:
    """One sequence decodes while `num_turns` prompts are prefilled, then alone; then prompts alone.

    The calling thread becomes the engine's.
    """
    log = engine.executor = CallLog(engine.executor)
    engine.scheduler.use(TAKE_TURNS)
    rng = np.random.default_rng(seed)

    def add(name: str, max_tokens: int) -> None:
        ids = rng.integers(engine.limits.vocab_size, size=prompt)
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        engine.add_request(Request(name, ids, params))

    def steps(num_steps: int) -> None:
        for _ in range(num_steps):
            errors = [event.error for event in engine.step() if event.error]
            if errors:
                raise BenchmarkError(errors[0])

    engine.adopt_thread()
    num_all = num_turns + NUM_WARMUPS
    add("decoding", max_tokens=3 * num_all)
    steps(1)
    for i in range(num_all):
        add(f"between-{i}", max_tokens=1)
    steps(3 * num_all)
    engine.abort("decoding")
    for i in range(num_all):
        add(f"alone-{i}", max_tokens=1)
    steps(num_all)
    return log.calls


def summary(calls: Sequence[Call]) -> dict[str, Any]:
    """Times between calls of different phases, and between calls of one, in microseconds.

    added_us: a switch there and back takes so much longer than two steps of each phase, halved.
    native_us: of the calls themselves, whose first waits for sleeping workers after a switch.
    """
    pairs: dict[tuple[Phase, Phase], list[tuple[Call, Call]]] = {
        (one, other): [] for one in PHASES for other in PHASES
    }
    for before, after in pairwise(calls):
        pairs[before.phase, after.phase].append((before, after))
    kept = {pair: found[NUM_WARMUPS:] for pair, found in pairs.items()}
    prefill, decode = PHASES
    to_prefill, to_decode = kept[decode, prefill], kept[prefill, decode]
    switches = [*to_prefill, *to_decode]
    return {
        "switch_us": spread(map(whole_us, switches))
        | {
            "to_prefill": spread(map(whole_us, to_prefill)),
            "to_decode": spread(map(whole_us, to_decode)),
            "executor": spread(map(executor_us, switches)),
        },
        "stay_us": {
            phase.value: spread(map(whole_us, kept[phase, phase]))
            | {"executor": spread(map(executor_us, kept[phase, phase]))}
            for phase in PHASES
        },
        "added_us": {
            name: 0.5 * sum(sign * median(map(part, kept[pair])) for pair, sign in SIGNS.items())
            for name, part in (("whole", whole_us), ("executor", executor_us))
        },
        "native_us": {
            phase.value: {
                name: spread(1e6 * after.native.seconds for _, after in found)
                for name, found in (("switch", switched), ("stay", kept[phase, phase]))
            }
            for phase, switched in ((prefill, to_prefill), (decode, to_decode))
        },
    }


def whole_us(pair: tuple[Call, Call]) -> float:
    """Microseconds from one native call's return to the next one's entry."""
    before, after = pair
    return 1e6 * (after.native.started - before.native.ended)


def executor_us(pair: tuple[Call, Call]) -> float:
    """The executor's part of them."""
    before, after = pair
    return 1e6 * (before.left - before.native.ended + after.native.started - after.entered)


def spread(times: Iterable[float]) -> dict[str, float]:
    """Median and 99th percentile."""
    values = np.fromiter(times, float)
    return {"median": float(np.median(values)), "p99": float(np.quantile(values, 0.99))}


def show(result: dict[str, Any], plans: PlanPair, console: Console) -> None:
    """Print what a switch costs, and what it is made of."""
    for phase in PHASES:
        plan = plans.of(phase)
        ours, tvm = (result["barrier_us"][phase.value][name] for name in ("sandwich", "tvm"))
        console.print(
            f"{phase.value}: {len(plan.cpus)} cores ({format_cpu_list(plan.cpus)}), "
            f"a barrier takes {ours:.3f} us (TVM's {tvm:.3f})",
            highlight=False,
        )
    is_shared = plans.prefill.cpus == plans.decode.cpus
    hand_over = result["hand_over_us"]
    console.print(
        f"hand-over between launchers: {hand_over['there']:.1f} us there, "
        f"{hand_over['back']:.1f} back"
        + (", not needed: both plans have the same cores" if is_shared else ""),
        highlight=False,
    )
    switch, stay = result["switch_us"], result["stay_us"]
    table = Table(title="native return to native entry, us", title_justify="left")
    for column in ("", "median", "p99", "of it executor", "p99"):
        table.add_column(column, justify="right")
    for name, times in (
        ("switch", switch),
        ("prefill to prefill", stay["prefill"]),
        ("decode to decode", stay["decode"]),
    ):
        both = (times, times["executor"])
        table.add_row(name, *(f"{t[key]:.1f}" for t in both for key in ("median", "p99")))
    console.print(table)
    added = result["added_us"]
    console.print(
        f"a switch adds {added['whole']:.1f} us, of them {added['executor']:.1f} in the executor",
        highlight=False,
    )
