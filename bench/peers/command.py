"""`sandwich bench peers`: this engine and others at the same work, in turns, with the same bits.

Rows are written as they are made, so that a long comparison can be made in pieces (`--resume`).
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.conditions import watch_and_warn
from bench.flags import count, positive, some_of
from bench.peers.checkpoint import as_folder, random_checkpoint
from bench.peers.contest import compare, or_absent, sweep, thread_counts
from bench.peers.engine import AbsentError, Engine, Setup
from bench.peers.llama_cpp import LlamaCpp
from bench.peers.openvino import OpenVino
from bench.peers.ours import Ours
from bench.peers.python_peers import Transformers
from bench.peers.servers import Load, compare_servers, compare_starts
from bench.peers.work import FORMATS, Work
from bench.record import provenance
from bench.serving.trace import KINDS
from bench.store import Store
from platforms.machine import Machine
from platforms.probe import probe
from sandwich.checkpoint.formats import open_source
from sandwich.config import SANDWICH_CACHE_DIR, EngineConfig
from sandwich.errors import ConfigError, SandwichError
from sandwich.startup.hub import resolve_model
from schedules.meters import Meter, PeakMeter, ReadMeter, last_level_cache_bytes

PEERS: dict[str, type[Engine]] = {peer.name: peer for peer in (LlamaCpp, OpenVino, Transformers)}
KEYS = ("model", "format", "peer", "work")
READ_BYTES, PEAK_TURNS = 256 << 20, 1_000_000
START = "start to first token"
ALL = "all"  # the work of a peer that could not be had


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's flags."""
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="folder, GGUF file, hub id or smollm2"
    )
    parser.add_argument(
        "--random", metavar="NAME", help="a published shape with random weights, in place of MODEL"
    )
    parser.add_argument(
        "--peers",
        type=some_of(PEERS),
        default=("llama.cpp",),
        metavar="A,B",
        help=f"of {','.join(PEERS)} (llama.cpp); each is installed when it is first named",
    )
    parser.add_argument(
        "--formats",
        type=some_of(FORMATS),
        default=FORMATS,
        metavar="A,B",
        help=f"of {','.join(FORMATS)} (all); a peer takes part in those it has",
    )
    parser.add_argument(
        "--work",
        type=_works,
        default="128,512,1x128,1x1024,8x128",
        metavar="W,W",
        help="prompts (TOKENS) and decode steps (BATCHxCONTEXT), or none "
        "(128,512,1x128,1x1024,8x128)",
    )
    parser.add_argument("--steps", type=count, default=16, metavar="N", help="decode steps (16)")
    parser.add_argument("--rounds", type=count, default=5, metavar="N", help="pairs (5)")
    parser.add_argument("--start", action="store_true", help="compare starts of the servers too")
    _add_serving(parser.add_argument_group("servers"))
    parser.add_argument(
        "--cache-dir",
        type=Path,
        default=SANDWICH_CACHE_DIR.read(),
        metavar="DIR",
        help="where peers and converted models are kept (%(default)s)",
    )
    parser.add_argument("--json", metavar="FILE", help="write the result here, row by row")
    parser.add_argument("--resume", action="store_true", help="keep the rows that FILE has")


def _add_serving(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--serve", type=count, metavar="N", help="compare servers too, with N requests a turn"
    )
    group.add_argument("--serve-rounds", type=count, default=3, metavar="N", help="pairs (3)")
    group.add_argument(
        "--serve-random",
        type=_sizes,
        metavar="INxOUT",
        help="random prompts of IN tokens and answers of OUT, in place of the trace",
    )
    group.add_argument(
        "--serve-kinds",
        type=some_of([kind.name for kind in KINDS]),
        default=("chat",),
        metavar="A,B",
        help="parts of the trace (chat)",
    )
    group.add_argument(
        "--serve-scale", type=positive, default=0.5, metavar="X", help="lengths of the trace (0.5)"
    )
    group.add_argument(
        "--serve-rates",
        type=_rates,
        default=(math.inf,),
        metavar="R,R",
        help="conversations that begin in a second (inf: all at once)",
    )
    group.add_argument(
        "--serve-concurrency", type=count, default=8, metavar="N", help="most at a time (8)"
    )
    group.add_argument("--ttft", type=positive, default=2000.0, metavar="MS", help="goal (2000)")
    group.add_argument("--tpot", type=positive, default=150.0, metavar="MS", help="goal (150)")


def main(args: argparse.Namespace) -> None:
    """Measure what the file lacks, and print all of it."""
    if bool(args.random) == bool(args.model):
        raise ConfigError("give either MODEL or --random NAME, so that all engines have it")
    if args.resume and not args.json:
        raise ConfigError("--resume goes on with the result in a file; name it with --json")
    machine = probe()
    say = Console(stderr=True, highlight=False, soft_wrap=True).print
    header = {
        "benchmark": "peers",
        **provenance(machine),
        "conditions": watch_and_warn().to_json(),
    }
    store = Store.open(args.json, header, KEYS, args.resume)
    folder = chosen_folder(args.random, args.model, args.cache_dir)
    for weights, peer in itertools.product(args.formats, args.peers):
        if weights in PEERS[peer].formats:
            Comparison(args, machine, folder, weights, peer, store, say).run()
    show(store.rows, Console())


def chosen_folder(shape: str | None, model: str | None, cache_dir: Path) -> Path:
    """The checkpoint that all engines get; that of a shape has the default model's tokenizer."""
    if shape:
        tokenizer = open_source(resolve_model(EngineConfig().model)).tokenizer()
        return random_checkpoint(shape, tokenizer, cache_dir)
    return as_folder(resolve_model(model or EngineConfig().model), cache_dir)


class Comparison:
    """Our engine and a peer with one format of the weights."""

    def __init__(
        self,
        args: argparse.Namespace,
        machine: Machine,
        folder: Path,
        weights: str,
        peer: str,
        store: Store,
        say: Callable[..., None],
    ) -> None:
        self.args, self.machine, self.store, self.say = args, machine, store, say
        self.key = {"model": folder.resolve().name, "format": weights, "peer": peer}
        self.works = [Work(w.kind, w.tokens, w.batch, args.steps) for w in args.work]
        self.loads = _loads(args)
        self.setup = Setup(
            cache_dir=args.cache_dir,
            folder=folder,
            format=weights,
            max_model_len=max([2048, *(work.max_model_len * 2 for work in self.works)]),
            max_batch=max([args.serve_concurrency, *(work.batch for work in self.works)]),
            num_threads=len(machine.usable_cpus()),
            say=say,
        )

    def run(self) -> None:
        """Make the rows that are missing; a peer that is absent is a row with its words."""
        works = [work for work in self.works if not self._has(work.name)]
        loads = [load for load in self.loads if not self._has(load.name)]
        wants_start = self.args.start and not self._has(START)
        if not (works or loads or wants_start):
            return
        peer = PEERS[self.key["peer"]](self.setup)
        with closing(Ours(self.setup)) as ours, closing(peer):
            try:
                ours.prepare()
            except AbsentError as error:
                raise SandwichError(error.message) from error
            try:
                peer.prepare()
                ours.use(peer.shared_model or self.setup.folder)
                self.say(f"{peer.name} {self.key['format']}: looking for the best settings")
                sweep(peer, thread_counts(self.setup.num_threads, os.cpu_count() or 1))
            except AbsentError as error:
                self._add(ALL, {"absent": error.message})
                return
            self.store.drop(**self.key, work=ALL)
            if works:
                self._offline(ours, peer, works)
            ours.close()
            peer.close()
            self._servers(ours, peer, loads, wants_start)

    def _offline(self, ours: Engine, peer: Engine, works: list[Work]) -> None:
        with ExitStack() as stack:
            meters = {
                name: stack.enter_context(closing(meter)) for name, meter in self._meters().items()
            }
            for work in works:
                row = or_absent(partial(compare, ours, peer, work, self.args.rounds, meters))
                self._add(work.name, {"settings": peer.settings, **row})

    def _servers(self, ours: Engine, peer: Engine, loads: list[Load], wants_start: bool) -> None:
        if not peer.has_server:
            return
        if wants_start:
            self._add(START, or_absent(partial(compare_starts, ours, peer, self.args.rounds)))
        for load in loads:
            rounds = self.args.serve_rounds
            row = or_absent(partial(compare_servers, ours, peer, load, rounds))
            self._add(load.name, {"settings": peer.settings, **row})

    def _meters(self) -> dict[str, Meter]:
        machine, isa = self.machine, self.machine.isa_row
        cpus, llc_bytes = machine.usable_cpus(), last_level_cache_bytes(machine)
        dtype = "bfloat16" if self.key["format"] == "bf16" else "int8"
        return {
            "read_gbps": ReadMeter(isa, cpus, llc_bytes, READ_BYTES),
            "peak_gflops": PeakMeter(isa, dtype, cpus, num_turns=PEAK_TURNS),
        }

    def _has(self, work: str) -> bool:
        return self.store.holds(**self.key, work=work)

    def _add(self, work: str, row: dict[str, Any]) -> None:
        self.store.add({**self.key, "work": work, **row})
        said = row.get("absent") or f"{row['ratio']:.2f}x"
        self.say(f"{self.key['peer']} {self.key['format']} {work}: {said}", markup=False)


def _loads(args: argparse.Namespace) -> list[Load]:
    if not args.serve:
        return []
    prompt, answer = args.serve_random or (0, 0)
    return [
        Load(
            num_requests=args.serve,
            concurrency=args.serve_concurrency,
            prompt=prompt,
            answer=answer,
            kinds=args.serve_kinds,
            scale=args.serve_scale,
            rate=rate,
            goals=(("ttft", args.ttft), ("tpot", args.tpot)),
        )
        for rate in args.serve_rates
    ]


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """A line for each row: rates of both, and the ratio with the middle half of the pairs."""
    table = Table(title="beside other engines", title_justify="left")
    for column in ("model", "format", "peer", "work", "ours", "peer's", "ratio"):
        table.add_column(column, justify="right" if column in ("ours", "peer's") else "left")
    for row in rows:
        table.add_row(row["model"], row["format"], row["peer"], row["work"], *_cells(row))
    console.print(table)


def _cells(row: dict[str, Any]) -> tuple[str, str, str]:
    if "absent" in row:
        return "", "", f"absent: {row['absent']}"
    low, high = row["ratio_quartiles"]
    ratio = f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})"
    if "runs" in row:
        ours, peer = (
            sorted(run["output_throughput"] for run in row["runs"][side])[
                len(row["runs"][side]) // 2
            ]
            for side in ("ours", "peer")
        )
        return f"{ours:.1f} tok/s", f"{peer:.1f} tok/s", ratio
    if "ours_tok_per_s" in row:
        return f"{row['ours_tok_per_s']:.1f} tok/s", f"{row['peer_tok_per_s']:.1f} tok/s", ratio
    ours_s, peer_s = (min(row[f"{side}_seconds"]) for side in ("ours", "peer"))
    return f"{ours_s:.2f} s", f"{peer_s:.2f} s", ratio


def _works(text: str) -> tuple[Work, ...]:
    if text == "none":
        return ()
    try:
        return tuple(Work.parse(part) for part in text.split(","))
    except ConfigError as error:
        raise argparse.ArgumentTypeError(error.message) from None


def _sizes(text: str) -> tuple[int, int]:
    prompt, _, answer = text.partition("x")
    return count(prompt), count(answer)


def _rates(text: str) -> tuple[float, ...]:
    return tuple(math.inf if part == "inf" else positive(part) for part in text.split(","))
