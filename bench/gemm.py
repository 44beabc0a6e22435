"""`sandwich bench gemm`: the generator's GEMM beside other libraries and the limits of the cores.

Every cell is a weight matrix of a published model times M rows. Ours, the peers and samples of the
limits take turns, so that a busy neighbour hits all of them. All figures are medians.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.gemm_contest import Contestant, Ours, Problem
from bench.gemm_peer import Peer
from bench.gemm_peers import DEFAULT_PEERS, PEERS, missing_library, peer_for
from bench.gemm_picture import draw, require_matplotlib
from bench.gemm_plans import DECODE_ROWS, PlanSource, tiles_of
from bench.gemm_summary import CellTimes, PeerTimes, rows_of, show, summary_of
from bench.record import provenance, write_json
from codegen.layout import ModelLayout
from codegen.panels import PanelLayout
from codegen.spec import GEMM_ROLES, ModelShape, TileRanges, WeightFormat
from platforms.probe import probe
from sandwich.config import SANDWICH_CACHE_DIR
from sandwich.models.presets import preset
from schedules.meters import Meter, PeakMeter, ReadMeter, last_level_cache_bytes
from schedules.plan import panel_width

# Qwen2.5-7B, whose matrices are measured here like those of the presets.
_QWEN_2_5_7B = replace(
    preset("llama-3.1-8b").shape(1),
    num_layers=28,
    hidden_size=3584,
    num_heads=28,
    num_kv_heads=4,
    intermediate_size=18944,
    vocab_size=152064,
    qkv_bias=True,
)
SHAPES: dict[str, ModelShape] = {
    **{name: preset(name).shape(1) for name in ("llama-3.2-1b", "llama-3.2-3b", "llama-3.1-8b")},
    "qwen2.5-7b": _QWEN_2_5_7B,
}
# The quantised ones have the names of `--quantization` and the formats it means.
FORMATS: dict[str, WeightFormat] = {
    "bf16": WeightFormat("bfloat16"),
    "fp32": WeightFormat("float32"),
    "int8-w8a8": WeightFormat("int8", activations="int8"),
    "int8": WeightFormat("int8"),
    "int4": WeightFormat("int4", activations="int8", group=32, scale_dtype="float16"),
}
DEFAULT_M = "1,2,4,8,16,24,32,48,64,100,128,256,300,512,1024"
CACHES_OF_WEIGHTS = 4  # the copies of a matrix are this many times as large as the last cache
MIN_LLC_BYTES = 32 << 20  # where the machine hides its caches
SAMPLE_SECONDS = 0.03  # one turn of a contestant, or one call if that takes longer
MIN_ROUNDS = 2
IDLE_STEP_SECONDS = 0.004
MAX_IDLE_STEPS = 100


@dataclass(frozen=True)
class Selection:
    """What is measured, and for how long."""

    models: tuple[str, ...]
    roles: tuple[str, ...]
    formats: tuple[WeightFormat, ...]
    rows: tuple[int, ...]  # M, ascending
    peers: tuple[str, ...]
    num_rounds: int
    cell_seconds: float


@dataclass(frozen=True)
class Cores:
    """The machine as the contestants see it."""

    isa: str
    cpus: tuple[int, ...]
    llc_bytes: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's flags."""
    for name, known, text in (
        ("models", SHAPES, "whose matrices"),
        ("roles", GEMM_ROLES, "which matrices"),
        ("dtypes", FORMATS, "types of the weights"),
        ("peers", PEERS, "libraries to compare with, or none; by default all but metaschedule"),
    ):
        parser.add_argument(
            f"--{name}",
            type=_some_of(known, has_none=name == "peers"),
            default=DEFAULT_PEERS if name == "peers" else tuple(known),
            metavar="A,B",
            help=f"{text} ({','.join(known)})",
        )
    parser.add_argument(
        "--m", type=_counts, default=DEFAULT_M, metavar="N,N", help=f"rows ({DEFAULT_M})"
    )
    parser.add_argument("--isa", metavar="NAME", help="an instruction set (the best one)")
    parser.add_argument(
        "--repeats", type=_count, default=7, metavar="N", help="turns of each contestant (7)"
    )
    parser.add_argument(
        "--cell-seconds",
        type=float,
        default=2.0,
        metavar="S",
        help=f"end a cell's turns after this time, but not before {MIN_ROUNDS} turns (2)",
    )
    parser.add_argument(
        "--tune",
        type=float,
        default=0.0,
        metavar="S",
        help="first tune our kernels for so many seconds for each model and type (0)",
    )
    parser.add_argument(
        "--cache-dir",
        type=Path,
        default=SANDWICH_CACHE_DIR.read(),
        metavar="DIR",
        help="folder of tuned records and compiled programs (%(default)s)",
    )
    parser.add_argument("--json", metavar="FILE", help="write the result to this file")
    parser.add_argument(
        "--picture", metavar="FILE", help="draw ratios and roofline into this .svg or .png"
    )


def main(args: argparse.Namespace) -> None:
    """Measure, print, write and draw."""
    if args.picture:
        require_matplotlib(args.picture)
    say = Console(stderr=True, highlight=False).print
    selection = Selection(
        models=args.models,
        roles=args.roles,
        formats=tuple(FORMATS[name] for name in args.dtypes),
        rows=args.m,
        peers=present_peers(args.peers, say),
        num_rounds=args.repeats,
        cell_seconds=args.cell_seconds,
    )
    machine = probe(isa=args.isa)
    source = PlanSource(machine, selection.roles, args.cache_dir, args.tune)
    measured = measure(selection, source, say)
    result = {
        "benchmark": "gemm",
        **provenance(machine),
        "decode_rows": DECODE_ROWS,
        "tuning": source.tuning,
        **measured,
    }
    show(result, Console())
    if args.json:
        write_json(args.json, result)
    if args.picture:
        draw(result, args.picture)


def present_peers(wanted: Sequence[str], say: Callable[[str], None]) -> tuple[str, ...]:
    """Those whose library is installed; the others are named and left out."""
    present = []
    for peer in wanted:
        library = missing_library(peer)
        if library is None:
            present.append(peer)
        else:
            say(f"{peer} is left out: {library} is not installed (pip install {library})")
    return tuple(present)


def measure(selection: Selection, source: PlanSource, say: Callable[[str], None]) -> dict[str, Any]:
    """Time all cells beside the limits of the cores; the measured part of the result."""
    machine = source.machine
    isa, llc_bytes = machine.isa_row, last_level_cache_bytes(machine)
    cores = Cores(machine.isa, machine.usable_cpus(), llc_bytes)
    cells: list[CellTimes] = []
    with ExitStack() as stack:
        read = stack.enter_context(closing(ReadMeter(isa, cores.cpus, llc_bytes)))
        peaks: dict[str, Meter] = {
            weights.name: stack.enter_context(
                closing(PeakMeter(isa, product_dtype(weights), cores.cpus))
            )
            for weights in selection.formats
        }
        for weights, model in itertools.product(selection.formats, selection.models):
            layouts = ModelLayout.build(
                SHAPES[model], "bfloat16", isa.lanes, panel_width(isa), weights, weights
            )
            plans = source.plans(model, layouts, say)
            for role in selection.roles:
                layout: PanelLayout = getattr(layouts, role)
                say(f"{weights.name} {model} {role}: {layout.n} x {layout.k}")
                matrix = Matrix(model, role, layout, tiles_of(plans, role), selection, cores)
                cells += matrix.measure([read, peaks[weights.name]], say)
    return summary_of(rows_of(cells, read, peaks), read, peaks)


def product_dtype(weights: WeightFormat) -> str:
    """What a format's products are of, which sets their peak."""
    if weights.has_int8_activations:
        return "int8"
    return "bfloat16" if weights.is_quantized else weights.dtype


@dataclass(frozen=True)
class Matrix:
    """The cells of one weight matrix: contestants are built once, then M after M is measured."""

    model: str
    role: str
    layout: PanelLayout
    tiles: TileRanges
    selection: Selection
    cores: Cores

    def measure(self, meters: Sequence[Meter], say: Callable[[str], None]) -> list[CellTimes]:
        """The times of every M of the selection."""
        problem = self.problem()
        with ExitStack() as stack:
            ours = Ours(problem, self.cores.isa, self.cores.cpus, self.tiles)
            stack.callback(ours.close)
            peers: list[Peer] = []
            for name in self.selection.peers:
                if kernels := peer_for(name, self.layout.format):
                    peers.append(kernels(problem, self.cores.cpus))
                    stack.callback(peers[-1].close)
            for peer in peers:
                if not peer.is_pinned:
                    say(f"{peer.name} does not use {len(self.cores.cpus)} threads; not pinned")
            return [self._cell(m, ours, peers, meters) for m in self.selection.rows]

    def problem(self) -> Problem:
        """As many copies of the matrix as the caches cannot hold."""
        wanted = CACHES_OF_WEIGHTS * max(self.cores.llc_bytes, MIN_LLC_BYTES)
        once = Problem(self.layout, 1, max(self.selection.rows))
        return replace(once, num_copies=-(-wanted // once.weight_bytes))

    def _cell(
        self, m: int, ours: Ours, peers: Sequence[Peer], meters: Sequence[Meter]
    ) -> CellTimes:
        everyone = [ours, *peers]
        for contestant in everyone:
            contestant.prepare(m)
        times = take_turns(everyone, meters, self.selection)
        return CellTimes(
            model=self.model,
            role=self.role,
            m=m,
            problem=ours.problem,
            ours=tuple(times[ours.name]),
            peers={p.name: PeerTimes(p.setting, tuple(times[p.name]), p.trials) for p in peers},
        )


def take_turns(
    contestants: Sequence[Contestant], meters: Sequence[Meter], selection: Selection
) -> dict[str, list[float]]:
    """Seconds per call of each contestant, a figure per round; they take turns, the order too."""
    num_calls: dict[str, int] = {}
    for contestant in contestants:
        once = contestant.seconds(1)
        num_calls[contestant.name] = max(1, round(SAMPLE_SECONDS / once))
        wait_until_idle()
    times: dict[str, list[float]] = {c.name: [] for c in contestants}
    started = time.perf_counter()
    for i in range(selection.num_rounds):
        for contestant in contestants if i % 2 == 0 else reversed(contestants):
            calls = num_calls[contestant.name]
            times[contestant.name].append(contestant.seconds(calls) / calls)
            wait_until_idle()
        for meter in meters:
            meter.sample()
        if i + 1 >= MIN_ROUNDS and time.perf_counter() - started > selection.cell_seconds:
            break
    return times


def wait_until_idle() -> None:
    """Return when no thread of this process works: pools spin for up to 0.1 s after a call."""
    for _ in range(MAX_IDLE_STEPS):
        before = time.process_time()
        time.sleep(IDLE_STEP_SECONDS)
        if time.process_time() - before < IDLE_STEP_SECONDS / 4:
            return


def _some_of(known: Sequence[str] | dict[str, Any], has_none: bool) -> Callable[[str], Any]:
    def parse(text: str) -> tuple[str, ...]:
        if has_none and text == "none":
            return ()
        names = tuple(dict.fromkeys(text.split(",")))
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(known)}")
        return names

    return parse


def _counts(text: str) -> tuple[int, ...]:
    return tuple(sorted({_count(part) for part in text.split(",")}))


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)
