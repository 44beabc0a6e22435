"""`sandwich bench plans`: what the cost model predicts of steps beside what they take.

Every case runs on every set of cores. On a shared machine bandwidth and clocks change by the
minute, so both are sampled between the steps of a case, and its prediction is made with the
medians; kernels, barriers and the rest are those of the calibration.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from bench.record import provenance, write_json
from codegen.layout.model import ModelLayout
from codegen.spec import Phase
from platforms.machine import Machine
from platforms.probe import probe
from sandwich.config import QUANTIZATIONS, SANDWICH_CACHE_DIR, EngineConfig
from sandwich.models.presets import preset
from sandwich.startup.calibrate import DTYPES, calibrate
from sandwich.startup.quantization import weight_formats
from sandwich.startup.step_bench import MAX_SEQS, MAX_TOKENS, StepBench, StepTimer
from schedules.calibration import Calibration, load_calibration, save_calibration
from schedules.cost import Seats, StepCase, operators, step_cost
from schedules.meters import PeakMeter, ReadMeter, last_level_cache_bytes
from schedules.plan import PlanPair
from schedules.rates import MachineRates
from schedules.search import PlanSearch, on_candidate
from schedules.tiles.default_plans import default_plans, panel_width
from schedules.topotree import Candidate, TopoTree, candidates

MAX_CONTEXT: Final = 2048
SAMPLE_BYTES: Final = 128 << 20
SAMPLE_TURNS: Final = 500_000


@dataclass(frozen=True)
class PlanTime:
    """A case on a set of cores: predicted and measured, and the limits sampled meanwhile."""

    model: str
    case: StepCase
    cores: str
    num_cores: int
    predicted_us: float
    measured_us: float
    read_gbps: float
    peak_gflops: float

    @property
    def error(self) -> float:
        """Of the prediction, relative to what was measured; negative if it was too short."""
        return self.predicted_us / self.measured_us - 1

    def to_json(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "model": self.model,
            "phase": self.case.phase.value,
            "num_tokens": self.case.num_tokens,
            "context": self.case.context,
            "cores": self.cores,
            "num_cores": self.num_cores,
            "predicted_us": round(self.predicted_us, 1),
            "measured_us": round(self.measured_us, 1),
            "error": round(self.error, 4),
            "read_gbps": round(self.read_gbps, 2),
            "peak_gflops": round(self.peak_gflops, 1),
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's flags."""
    parser.add_argument(
        "--models",
        default="llama-3.2-1b,smollm-135m",
        metavar="NAME,NAME",
        help="published shapes, filled with random weights (default: llama-3.2-1b,smollm-135m)",
    )
    parser.add_argument(
        "--prefill",
        type=_prompts,
        default="32,128,512",
        metavar="N,N",
        help=f"prompt lengths in tokens, up to {MAX_TOKENS} (default: 32,128,512)",
    )
    parser.add_argument(
        "--decode",
        type=_batches,
        default="1x128,1x1024,4x512,8x128,32x128",
        metavar="BxC,BxC",
        help=f"batches of up to {MAX_SEQS} sequences and the keys of each, up to {MAX_CONTEXT} "
        "(default: 1x128,1x1024,4x512,8x128,32x128)",
    )
    parser.add_argument(
        "--candidates",
        type=int,
        default=3,
        metavar="N",
        help="sets of cores beside all of them, the best predictions of each phase (default: 3)",
    )
    parser.add_argument(
        "--repeats", type=int, default=5, metavar="N", help="timed steps of each case (default: 5)"
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default=DTYPES[0],
        help=f"type of weights and KV cache (default: {DTYPES[0]})",
    )
    parser.add_argument(
        "--quantization",
        choices=QUANTIZATIONS,
        default=QUANTIZATIONS[0],
        help="how the weights are rounded (default: none)",
    )
    parser.add_argument("--json", metavar="FILE", help="write the result to this file")


def _prompts(text: str) -> list[StepCase]:
    lengths = [_within(length, MAX_TOKENS, "prompts") for length in text.split(",")]
    return [StepCase(Phase.PREFILL, length) for length in lengths]


def _batches(text: str) -> list[StepCase]:
    cases = []
    for cell in text.split(","):
        batch, _, context = cell.partition("x")
        num_seqs = _within(batch, MAX_SEQS, "batches")
        cases.append(StepCase(Phase.DECODE, num_seqs, _within(context, MAX_CONTEXT, "contexts")))
    return cases


def _within(text: str, most: int, what: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"{text!r}: {what} are whole numbers from 1 to {most}")
    return int(text)


def main(args: argparse.Namespace) -> None:
    """Measure, print and write."""
    machine, cache_dir = probe(), SANDWICH_CACHE_DIR.read()
    calibration = load_calibration(cache_dir, machine)
    if calibration is None:
        calibration = calibrate(machine, cache_dir, lambda items, what: items)
        save_calibration(cache_dir, machine, calibration)
    cases = [*args.prefill, *args.decode]
    formats = weight_formats(EngineConfig(quantization=args.quantization), args.dtype)
    rows: list[PlanTime] = []
    for model in args.models.split(","):
        isa, shape = machine.isa_row, preset(model).shape(MAX_CONTEXT)
        layout = ModelLayout.build(
            shape, args.dtype, isa.lanes, panel_width(isa), formats.layers, formats.lm_head
        )
        trials = Trials(model, machine, layout, calibration, cache_dir)
        rows += trials.times(cases, args.candidates, args.repeats)
    result = {
        "benchmark": "plans",
        **provenance(machine),
        "weights": formats.layers.name,
        **summary(rows),
    }
    show(result, Console())
    if args.json:
        write_json(args.json, result)


@dataclass(frozen=True)
class Trials:
    """A model of a machine: which sets of cores are tried, and the times on each."""

    model: str
    machine: Machine
    layout: ModelLayout
    calibration: Calibration
    cache_dir: Path

    def times(
        self, cases: Sequence[StepCase], num_candidates: int, num_repeats: int
    ) -> Iterator[PlanTime]:
        """Every case on every set of cores."""
        dtype = self.layout.dtype
        rates = self.calibration.rates(self.machine, self.layout.weights)
        most = max(case.num_cached for case in cases)
        bench = StepBench(self.machine, preset(self.model), self.layout, dtype, most)
        with closing(bench):
            for candidate in self._candidates(rates, num_candidates):
                Console(stderr=True).print(f"{self.model} on {candidate.name}")
                plans = on_candidate(self._plans(candidate), self.machine, candidate)
                with bench.on(plans, self.cache_dir) as timer:
                    trial = CoreSetTrial(
                        self.machine, self.layout, dtype, candidate, plans, rates, timer
                    )
                    with closing(trial):
                        for case in cases:
                            yield trial.time(self.model, case, num_repeats)

    def _candidates(self, rates: MachineRates, count: int) -> list[Candidate]:
        """The default, and the best predictions of both phases."""
        found = candidates(
            TopoTree.of(self.machine, groups=self.calibration.groups_of(self.machine))
        )
        query_tile = self._plans(found[0]).prefill.query_tile
        search = PlanSearch(
            self.machine, found, self.layout, self.layout.dtype, query_tile, rates
        ).run()
        best = [p.candidate for c in (search.prefill, search.decode) for p in c.ranked[:count]]
        return list(dict.fromkeys([found[0], *best]))

    def _plans(self, candidate: Candidate) -> PlanPair:
        """The default plans for the model's weights."""
        layout = self.layout
        formats = layout.weights, layout.head
        return default_plans(self.machine.isa_row, candidate.cpus, layout.shape, *formats)


class CoreSetTrial:
    """One set of cores: steps, and samples of the limits of these cores between them."""

    def __init__(
        self,
        machine: Machine,
        layout: ModelLayout,
        kv_dtype: str,
        candidate: Candidate,
        plans: PlanPair,
        rates: MachineRates,
        timer: StepTimer,
    ) -> None:
        self._layout, self._kv_dtype, self._rates = layout, kv_dtype, rates
        self._candidate, self._timer = candidate, timer
        self._seats = Seats.of(machine, candidate.groups)
        self._query_tile = plans.prefill.query_tile
        isa, nbytes = machine.isa_row, last_level_cache_bytes(machine)
        self._read = ReadMeter(isa, candidate.cpus, nbytes, SAMPLE_BYTES)
        self._peak = PeakMeter(isa, layout.dtype, candidate.cpus, SAMPLE_TURNS)
        self._alone = PeakMeter(isa, layout.dtype, candidate.cpus[:1], SAMPLE_TURNS)
        self._alone_gflops = max(self._alone.sample() for _ in range(3))

    def time(self, model: str, case: StepCase, num_repeats: int) -> PlanTime:
        """One step to warm up, then the medians of several, and of samples between them."""
        self._timer.seconds(case)
        seconds, reads, peaks = [], [], []
        for _ in range(num_repeats):
            reads.append(self._read.sample())
            peaks.append(self._peak.sample())
            seconds.append(self._timer.seconds(case))
        read, peak = statistics.median(reads), statistics.median(peaks)
        return PlanTime(
            model,
            case,
            self._candidate.name,
            len(self._candidate.cpus),
            self._predict(case, read, peak),
            1e6 * statistics.median(seconds),
            read,
            peak,
        )

    def _predict(self, case: StepCase, read_gbps: float, peak_gflops: float) -> float:
        """Microseconds, with the limits as they are now."""
        seats = self._seats
        step = operators(self._layout, self._kv_dtype, case.step(self._query_tile))
        speed = peak_gflops / seats.num_cores / self._alone_gflops
        factor = read_gbps / seats.read_gbps(self._rates)
        rates = self._rates.as_sampled(seats.num_cores, factor, speed)
        return step_cost(step, seats, rates, frozenset(seats.nodes)).total_us

    def close(self) -> None:
        """End the meters."""
        for meter in (self._read, self._peak, self._alone):
            meter.close()


def summary(rows: Sequence[PlanTime]) -> dict[str, Any]:
    """Errors over all rows, and what it would have cost to trust the predictions."""
    cases = [
        _choice(list(group))
        for _, group in groupby(
            sorted(rows, key=lambda row: (row.model, row.case.name)),
            key=lambda row: (row.model, row.case.name),
        )
    ]
    return {
        "rows": [row.to_json() for row in rows],
        "choices": cases,
        "mean_error": round(statistics.mean(abs(row.error) for row in rows), 4),
        "worst_error": round(max(abs(row.error) for row in rows), 4),
        "worst_regret": max(case["regret"] for case in cases),
    }


def _choice(rows: Sequence[PlanTime]) -> dict[str, Any]:
    """Which cores are predicted to be the best for a case, and by how much that is wrong."""
    chosen = min(rows, key=lambda row: row.predicted_us)
    best = min(rows, key=lambda row: row.measured_us)
    return {
        "model": chosen.model,
        "case": chosen.case.name,
        "chosen": chosen.cores,
        "best": best.cores,
        "regret": round(chosen.measured_us / best.measured_us - 1, 4),
    }


def show(result: dict[str, Any], console: Console) -> None:
    """A table of all rows and the sums."""
    table = Table()
    for name in ("model", "step", "cores", "predicted", "measured", "error", "GB/s", "GFLOP/s"):
        table.add_column(name, justify="left" if name in ("model", "step", "cores") else "right")
    for row in result["rows"]:
        what = f"{row['phase']} {row['num_tokens']}"
        table.add_row(
            row["model"],
            f"{what} x {row['context']}" if row["context"] else what,
            row["cores"],
            f"{row['predicted_us'] / 1e3:.4g} ms",
            f"{row['measured_us'] / 1e3:.4g} ms",
            f"{row['error']:+.1%}",
            f"{row['read_gbps']:.3g}",
            f"{row['peak_gflops']:.3g}",
        )
    console.print(table)
    console.print(
        f"mean error {result['mean_error']:.1%}, worst {result['worst_error']:.1%}; the cores that "
        f"are predicted to be best take at most {result['worst_regret']:.1%} longer than the best"
    )
