"""`sandwich bench mixed`: what a new prompt does to those that decode, under each mixed plan.

Some sequences decode in the real engine when a prompt arrives; every mode of mixed steps, with the
chunks and cores that the cost model thinks best for it, takes its turn in every round. Measured
are the times from token to token (TPOT) while the prompt is prefilled, the time until its first
token (TTFT), and by both how long a request occupies the machine; the predictions stand beside.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.driver import BenchmarkError
from bench.model_choice import add_model_choice, chosen_config
from bench.record import provenance, write_json
from platforms.probe import probe
from sandwich.cli.options import add_options
from sandwich.cli.plan import model_config
from sandwich.config import EngineConfig
from sandwich.engine.engine import Engine
from sandwich.errors import ConfigError
from sandwich.requests.request import Request
from sandwich.requests.sampling_params import SamplingParams
from sandwich.startup.plans import make_plans
from schedules.mixed.choice import MixedChoice, choose_mixed
from schedules.mixed.cost import MixedLoad, MixedPrediction
from schedules.mixed.plan import TAKE_TURNS, MixedMode, MixedPlan
from schedules.plan import PlanPair

DEFAULT_SHAPE: Final = "llama-3.2-1b"
STEPS_ALONE: Final = 8  # decode steps before each prompt, to know what decoding takes by itself


@dataclass(frozen=True)
class Arrival:
    """One prompt: seconds until its first token; seconds from token to token of the streams until
    they all had one after that; the tokens that each stream had by then; and of a step before.
    """

    ttft_s: float
    gaps_s: tuple[float, ...]
    num_steps: float
    alone_s: float


class Streams:
    """Sequences that decode in an engine, and when each had its last token. The calling thread
    becomes the engine's.
    """

    def __init__(self, engine: Engine, load: MixedLoad, max_tokens: int, seed: int) -> None:
        self._engine = engine
        self._rng = np.random.default_rng(seed)
        self._num_prompts = 0
        self._last: dict[str, float] = {}
        engine.adopt_thread()
        engine.scheduler.use(TAKE_TURNS)
        names = [self._add(load.context, max_tokens) for _ in range(load.batch)]
        while len(self._last) < load.batch:
            self._step()
        self._names = frozenset(names)

    def arrive(self, plan: MixedPlan, prompt: int) -> Arrival:
        """Let a prompt come under `plan`, once the streams have decoded alone for a while."""
        self._engine.scheduler.use(plan)
        alone = [gap for _ in range(STEPS_ALONE) for gap in self._step().values()]
        arrived = time.perf_counter()
        newcomer = self._add(prompt, max_tokens=1)
        gaps: list[float] = []
        while newcomer not in self._last:
            gaps += self._step().values()
        ttft = self._last.pop(newcomer) - arrived
        waiting = set(self._names)  # for the token whose wait has the last chunk in it
        num_steps = len(gaps) / len(self._names)
        if plan.mode is not MixedMode.RIDE:  # where it came with the newcomer's
            while waiting:
                found = self._step()
                gaps += [gap for name, gap in found.items() if name in waiting]
                waiting -= found.keys()
        return Arrival(ttft, tuple(gaps), num_steps, median(alone))

    def _step(self) -> dict[str, float]:
        """A step of the engine; seconds since the last token for each stream that had one."""
        events = self._engine.step()
        now = time.perf_counter()
        gaps = {}
        for event in events:
            if event.error:
                raise BenchmarkError(event.error)
            if event.request_id in self._last:
                if event.finish_reason:
                    raise BenchmarkError("the streams ended early; give a smaller --context")
                gaps[event.request_id] = now - self._last[event.request_id]
            self._last[event.request_id] = now
        return gaps

    def _add(self, num_tokens: int, max_tokens: int) -> str:
        name = f"bench-{self._num_prompts}"
        self._num_prompts += 1
        ids = self._rng.integers(self._engine.limits.vocab_size, size=num_tokens)
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        self._engine.add_request(Request(name, ids, params))
        return name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's flags, and those of the engine."""
    group = add_model_choice(parser, DEFAULT_SHAPE)
    load = MixedLoad()
    for name, default, text in (
        ("streams", load.batch, "sequences that decode"),
        ("context", load.context, "tokens of each when the first prompt arrives"),
        ("prompt", load.prompt, "tokens of each prompt that arrives"),
        ("rounds", 3, "prompts for each mode"),
    ):
        group.add_argument(
            f"--{name}", type=int, default=default, metavar="N", help=f"{text} ({default})"
        )
    group.add_argument("--json", metavar="FILE", help="write the result to this file")
    add_options(parser, EngineConfig)


def main(args: argparse.Namespace) -> None:
    """Plan, build the engine, measure, print and write."""
    from sandwich.startup.build import build_engine

    load = MixedLoad(batch=args.streams, context=args.context, prompt=args.prompt)
    config = engine_config(args, load)
    choice = choice_for(config, load)
    plans = {p.plan.mode: p for p in choice.best_of_modes}

    def with_programs_for_all(chosen: PlanPair) -> PlanPair:
        return replace(chosen, mixed=plans.get(MixedMode.CORUN, choice.chosen).plan)

    parts = build_engine(config, with_programs_for_all)
    with closing(parts.engine):
        arrivals = measure(parts.engine, choice, args.rounds, config.weights_seed)
    result = {
        "benchmark": "mixed",
        **provenance(parts.machine),
        "model": config.model,
        "dtype": parts.dtype,
        "seed": config.weights_seed,
        "plan": parts.plans.to_json(),
        **summary(choice, arrivals),
    }
    show(result, Console())
    if args.json:
        write_json(args.json, result)


def engine_config(args: argparse.Namespace, load: MixedLoad) -> EngineConfig:
    """The flags' configuration, with room for the streams and one prompt."""
    config = chosen_config(args, DEFAULT_SHAPE)
    for name in ("streams", "context", "prompt", "rounds"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name} is {getattr(args, name)}; it is a whole number from 1 up")
    return replace(
        config,
        max_num_seqs=max(config.max_num_seqs, load.batch + 1),
        max_model_len=config.max_model_len or load.context + stream_tokens(load, args.rounds),
        mixed_steps="auto",
    )


def stream_tokens(load: MixedLoad, num_rounds: int) -> int:
    """More tokens than a stream can have by the end: fewer than the prompt has in each arrival."""
    prompts = num_rounds * len(MixedMode) * (load.prompt + STEPS_ALONE + 2)
    return prompts + load.batch * load.context + 1


def choice_for(config: EngineConfig, load: MixedLoad) -> MixedChoice:
    """What the cost model says of every mode under `load`."""
    _, _, result = make_plans(config, probe(isa=config.isa), model_config(config.model))
    assert result.mixed is not None
    return choose_mixed(replace(result.mixed.space, load=load), config.slo_tpot)


def measure(
    engine: Engine, choice: MixedChoice, num_rounds: int, seed: int
) -> dict[MixedMode, list[Arrival]]:
    """Rounds over all modes, in each of which a prompt arrives."""
    load = choice.space.load
    say = Console(stderr=True).print  # no live display: it would run beside what is timed
    say(f"prefill of {load.batch} streams")
    streams = Streams(engine, load, stream_tokens(load, num_rounds), seed)
    found: dict[MixedMode, list[Arrival]] = {p.plan.mode: [] for p in choice.best_of_modes}
    for number in range(num_rounds):
        say(f"round {number + 1} of {num_rounds}")
        for prediction in choice.best_of_modes:
            arrival = streams.arrive(prediction.plan, load.prompt)
            found[prediction.plan.mode].append(arrival)
    return found


def summary(choice: MixedChoice, arrivals: dict[MixedMode, list[Arrival]]) -> dict[str, Any]:
    """The measured part of the result. `loss` is what the choice takes longer per request than the
    best mode that was measured.
    """
    load = choice.space.load
    modes = [mode_row(p, arrivals[p.plan.mode], load) for p in choice.best_of_modes]
    return {
        "load": {"streams": load.batch, "context": load.context, "prompt": load.prompt},
        "alone_ms": round(
            1e3 * median(arrival.alone_s for found in arrivals.values() for arrival in found), 3
        ),
        "modes": modes,
        "chosen": choice.plan.mode.value,
        "reason": choice.plan.reason,
        "loss": round(modes[0]["request_ms"] / min(row["request_ms"] for row in modes) - 1, 4),
    }


def mode_row(
    prediction: MixedPrediction, arrivals: Sequence[Arrival], load: MixedLoad
) -> dict[str, Any]:
    """A mode's medians and percentiles in milliseconds, and what was predicted."""
    gaps = [1e3 * gap for arrival in arrivals for gap in arrival.gaps_s]
    requests = [
        1e3 * (a.ttft_s + max(0.0, load.reply / load.batch - a.num_steps) * a.alone_s)
        for a in arrivals
    ]
    return {
        "mode": prediction.plan.mode.value,
        "chunk_tokens": prediction.plan.chunk_tokens,
        "tpot_ms": {
            "p50": round(float(np.percentile(gaps, 50)), 2),
            "p99": round(float(np.percentile(gaps, 99)), 2),
        },
        "ttft_ms": round(1e3 * median(arrival.ttft_s for arrival in arrivals), 2),
        "request_ms": round(median(requests), 2),
        "predicted": {
            "tpot_ms": round(prediction.tpot_us / 1e3, 2),
            "ttft_ms": round(prediction.ttft_us / 1e3, 2),
            "request_ms": round(prediction.request_us / 1e3, 2),
        },
    }


def show(result: dict[str, Any], console: Console) -> None:
    """The result as a table."""
    load = result["load"]
    table = Table(
        title=f"{result['model']} {result['dtype']}: {load['streams']} streams of {load['context']}"
        f" tokens, a prompt of {load['prompt']} arrives; ms (predicted)"
    )
    for name in ("mode", "chunk", "TPOT p50", "p99", "TTFT", "request"):
        table.add_column(name, justify="left" if name == "mode" else "right")
    for row in result["modes"]:
        predicted = row["predicted"]
        table.add_row(
            row["mode"],
            str(row["chunk_tokens"]),
            f"{row['tpot_ms']['p50']:.1f} ({predicted['tpot_ms']:.1f})",
            f"{row['tpot_ms']['p99']:.1f}",
            f"{row['ttft_ms']:.0f} ({predicted['ttft_ms']:.0f})",
            f"{row['request_ms']:.0f} ({predicted['request_ms']:.0f})",
        )
    console.print(table)
    console.print(f"a decode step alone takes {result['alone_ms']:.1f} ms")
    console.print(
        f"chosen: {result['chosen']}, {100 * result['loss']:.1f} % more time per request than the "
        f"best of those measured, because {result['reason']}"
    )
