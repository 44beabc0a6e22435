"""`sandwich bench gemm`: the generator's GEMM beside other libraries and the limits of the cores.

Every cell is a weight matrix of a published model times M rows. Ours, the peers and samples of the
limits take turns, so that a busy neighbour hits all of them. All figures are medians.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from bench.flags import count, counts, some_of
from bench.gemm.file import ResultFile
from bench.gemm.matrix import Cores, Matrix, Pace
from bench.gemm.peers import DEFAULT_PEERS, PEERS, missing_library
from bench.gemm.picture import draw, require_matplotlib
from bench.gemm.plans import DECODE_ROWS, PlanSource, tiles_of
from bench.gemm.shapes import FORMATS, ROLES, SHAPES, product_dtype
from bench.gemm.summary import cell_row, show
from bench.gemm.turns import MIN_ROUNDS, LimitMeters
from bench.record import provenance
from codegen.layout.model import ModelLayout
from codegen.spec import WeightFormat
from platforms.machine import Machine
from platforms.probe import probe
from sandwich.config import SANDWICH_CACHE_DIR
from schedules.meters import PeakMeter, ReadMeter, last_level_cache_bytes
from schedules.tiles.default_plans import panel_width

DEFAULT_M = "1,2,4,8,16,24,32,48,64,100,128,256,300,512,1024"
# Samples of the limits are about as long as turns.
READ_BYTES = 256 << 20
PEAK_TURNS = 1_000_000


@dataclass(frozen=True)
class Selection:
    """What is measured, and for how long."""

    models: tuple[str, ...]
    roles: tuple[str, ...]
    formats: tuple[WeightFormat, ...]
    rows: tuple[int, ...]  # M, ascending
    peers: tuple[str, ...]
    pace: Pace

    def parts(self) -> list[tuple[WeightFormat, str]]:
        """Formats and models, which have plans of their own."""
        return list(itertools.product(self.formats, self.models))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's flags."""
    for name, known, text in (
        ("models", SHAPES, "whose matrices"),
        ("roles", ROLES, "which matrices"),
        ("dtypes", FORMATS, "types of the weights"),
        ("peers", PEERS, "libraries to compare with, or none; by default all but metaschedule"),
    ):
        parser.add_argument(
            f"--{name}",
            type=some_of(known, has_none=name == "peers"),
            default=DEFAULT_PEERS if name == "peers" else tuple(known),
            metavar="A,B",
            help=f"{text} ({','.join(known)})",
        )
    parser.add_argument(
        "--m", type=_rows, default=DEFAULT_M, metavar="N,N", help=f"rows ({DEFAULT_M})"
    )
    parser.add_argument("--isa", metavar="NAME", help="an instruction set (the best one)")
    parser.add_argument(
        "--repeats", type=count, default=15, metavar="N", help="turns of each contestant (15)"
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
    parser.add_argument(
        "--json", metavar="FILE", help="write the result to this file, after every cell"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="keep the cells that the file of --json holds, and measure only the others",
    )
    parser.add_argument(
        "--picture", metavar="FILE", help="draw ratios and roofline into this .svg or .png"
    )


def main(args: argparse.Namespace) -> None:
    """Measure, print, write and draw."""
    if args.picture:
        require_matplotlib(args.picture)
    machine = probe(isa=args.isa)
    header = {
        "benchmark": "gemm",
        **provenance(machine),
        "decode_rows": DECODE_ROWS,
        "tuning": {"seconds": 0.0, "roles": []},
    }
    file = ResultFile.open(args.json, header, args.resume)
    with _progress() as progress:
        say = progress.console.print
        selection = Selection(
            models=args.models,
            roles=args.roles,
            formats=tuple(FORMATS[name] for name in args.dtypes),
            rows=args.m,
            peers=present_peers(args.peers, say),
            pace=Pace(args.repeats, args.cell_seconds),
        )
        source = PlanSource(
            machine, selection.roles, args.cache_dir, args.tune, file.header["tuning"]
        )
        measure(selection, source, file, progress)
    if not file.cells:
        return
    show(file.result(), Console())
    if args.picture:
        draw(file.result(), args.picture)


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


def measure(selection: Selection, source: PlanSource, file: ResultFile, progress: Progress) -> None:
    """Time the cells that `file` lacks, beside the limits of the cores, and put them there."""
    say, machine = progress.console.print, source.machine
    isa, llc_bytes = machine.isa_row, last_level_cache_bytes(machine)
    cores = Cores(machine.isa, machine.usable_cpus(), llc_bytes)
    layouts = {part: _layout(machine, *part) for part in selection.parts()}
    matrices = {
        part: list(_matrices(selection, part, layout, file, cores))
        for part, layout in layouts.items()
    }
    pace, steps = selection.pace, [matrix for part in matrices.values() for matrix in part]
    seconds = sum(matrix.expected_seconds(m, pace) for matrix in steps for m in matrix.rows)
    line = progress.add_task("", total=seconds)
    with ExitStack() as stack:
        read = stack.enter_context(closing(ReadMeter(isa, cores.cpus, llc_bytes, READ_BYTES)))
        peaks = {
            dtype: stack.enter_context(
                closing(PeakMeter(isa, dtype, cores.cpus, num_turns=PEAK_TURNS))
            )
            for dtype in dict.fromkeys(map(product_dtype, selection.formats))
        }
        for (weights, model), layout in layouts.items():
            todo = matrices[weights, model]
            plans = source.plans(model, layout, say) if todo else None
            limits = LimitMeters(read, peaks[product_dtype(weights)])
            for matrix in todo:
                assert plans is not None
                name = f"{weights.name} {model} {matrix.role}"
                say(f"{name}: {matrix.layout.n} x {matrix.layout.k}")
                progress.update(line, description=name, refresh=True)
                expected = [matrix.expected_seconds(m, pace) for m in matrix.rows]
                if missing := matrix.missing_bytes():
                    say(f"left out: it needs {missing / 1e9:.1f} GB more memory than is free")
                    progress.advance(line, sum(expected))
                    continue
                cells = matrix.measure(tiles_of(plans, matrix.role), limits, pace, say)
                for cell, done in zip(cells, expected, strict=True):
                    file.add(cell_row(cell))
                    progress.advance(line, done)
                    progress.refresh()


def _layout(machine: Machine, weights: WeightFormat, model: str) -> ModelLayout:
    isa = machine.isa_row
    return ModelLayout.build(
        SHAPES[model], "bfloat16", isa.lanes, panel_width(isa), weights, weights
    )


def _matrices(
    selection: Selection,
    part: tuple[WeightFormat, str],
    layout: ModelLayout,
    file: ResultFile,
    cores: Cores,
) -> Iterator[Matrix]:
    """The matrices of a model with the rows that have not been measured."""
    weights, model = part
    for role in selection.roles:
        rows = tuple(m for m in selection.rows if not file.holds((weights.name, model, role, m)))
        if rows:
            yield Matrix(model, role, layout.panels(role), rows, selection.peers, cores)


def _progress() -> Progress:
    """Cells on standard error, if that is a terminal; drawn between measurements alone."""
    console = Console(stderr=True, highlight=False)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
        auto_refresh=False,
        speed_estimate_period=3600,
        disable=not console.is_terminal,
    )


def _rows(text: str) -> tuple[int, ...]:
    return tuple(sorted(set(counts(text))))
