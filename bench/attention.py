"""`sandwich bench attention`: the attention kernel alone, beside the limits of the cores.

It is timed inside whole steps of small models, by the timers that programs can have, so that caches
are as they are in a step. Decode reads keys and values: its limit is read bandwidth. Prefill
multiplies: its limit is the peak, and the share that the step's own products reach stands beside.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.conditions import watch_and_warn
from bench.flags import count, counts
from bench.record import provenance
from bench.store import Store
from codegen.layout.kv_format import KV_DTYPES, KvFormat
from codegen.layout.model import DEFAULT_BLOCK_SIZE, ModelLayout
from codegen.spec import ModelShape, Phase
from platforms.machine import Machine
from platforms.probe import probe
from sandwich.config import SANDWICH_CACHE_DIR, EngineConfig
from sandwich.executor.base import Batch
from sandwich.executor.rehearsal import rehearsal
from sandwich.models.config import ModelConfig
from sandwich.models.presets import preset
from sandwich.startup.quantization import weight_formats
from sandwich.startup.step_bench import MAX_TOKENS, StepBench, StepTimer
from schedules.meters import PeakMeter, ReadMeter, last_level_cache_bytes
from schedules.tiles.default_plans import default_plans, panel_width

DTYPE = "bfloat16"  # of the cache, if nobody says
KEYS = ("head_dim", "group", "phase", "context", "batch", "dtype")
NUM_LAYERS, NUM_KV_HEADS, INTERMEDIATE, VOCAB = 4, 2, 256, 512
READ_BYTES, PEAK_TURNS = 256 << 20, 1_000_000


@dataclass(frozen=True)
class Case:
    """A step: decode of `batch` sequences with `context` keys, or the last chunk of a prompt."""

    phase: Phase
    context: int
    batch: int = 1

    @property
    def chunk(self) -> int:
        """New tokens of each sequence."""
        return min(self.context, MAX_TOKENS) if self.phase is Phase.PREFILL else 1

    def batch_for(self, vocab_size: int) -> Batch:
        sequences = [(self.context - self.chunk, self.chunk)] * self.batch
        return rehearsal(self.phase, sequences, DEFAULT_BLOCK_SIZE, vocab_size)

    def flops(self, shape: ModelShape) -> int:
        """Of the products with keys and with values; a token sees itself and all before it."""
        keys = sum(range(self.context - self.chunk + 1, self.context + 1))
        return 4 * shape.num_layers * shape.num_heads * shape.head_dim * keys * self.batch

    def nbytes(self, shape: ModelShape, kv_dtype: str) -> int:
        """Of all keys and values, once."""
        heads = 2 * shape.num_layers * shape.num_kv_heads
        return heads * KvFormat(kv_dtype).nbytes(shape.head_dim) * self.context * self.batch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's flags."""
    for name, default, text in (
        ("head-dims", "64,80,96,128,256", "values of a head"),
        ("groups", "1,3,4,8", "query heads of a KV head"),
        ("contexts", "128,512,2048,8192,32768", "keys"),
        ("batches", "1,8", "sequences that decode together; 8 only up to 2048 keys"),
    ):
        parser.add_argument(
            f"--{name}", type=counts, default=default, metavar="N,N", help=f"{text} ({default})"
        )
    parser.add_argument(
        "--dtype", choices=KV_DTYPES, default=DTYPE, help=f"of the KV cache ({DTYPE})"
    )
    parser.add_argument("--repeats", type=count, default=7, metavar="N", help="steps (7)")
    parser.add_argument("--isa", metavar="NAME", help="an instruction set (the best one)")
    parser.add_argument("--json", metavar="FILE", help="write the result here, shape by shape")
    parser.add_argument("--resume", action="store_true", help="keep the rows that FILE has")


def main(args: argparse.Namespace) -> None:
    """Measure what the file lacks, and print all of it."""
    machine = probe(isa=args.isa)
    header = {
        "benchmark": "attention",
        **provenance(machine),
        "conditions": watch_and_warn().to_json(),
    }
    store = Store.open(args.json, header, KEYS, args.resume)
    cases = [
        *(Case(Phase.PREFILL, context) for context in args.contexts),
        *(
            Case(Phase.DECODE, context, batch)
            for context, batch in itertools.product(args.contexts, args.batches)
            if batch == 1 or context <= 2048
        ),
    ]
    say = Console(stderr=True, highlight=False).print
    for head_dim, group in itertools.product(args.head_dims, args.groups):
        key = {"head_dim": head_dim, "group": group, "dtype": args.dtype}
        todo = [case for case in cases if not store.holds(**key, **_names(case))]
        if todo:
            say(f"heads of {head_dim}, {group} to a KV head")
            for row in measure(machine, head_dim, group, args.dtype, todo, args.repeats):
                store.add({**key, **row})
    show(store.rows, Console())


def _names(case: Case) -> dict[str, Any]:
    return {"phase": case.phase.value, "context": case.context, "batch": case.batch}


def measure(
    machine: Machine, head_dim: int, group: int, dtype: str, cases: list[Case], repeats: int
) -> list[dict[str, Any]]:
    """A row for each case, with the limits as they were between its repetitions."""
    isa, cpus = machine.isa_row, machine.usable_cpus()
    model = attention_model(head_dim, group, max(case.context for case in cases))
    shape = model.shape(model.max_position_embeddings)
    products = KvFormat(dtype).product_dtype
    formats = weight_formats(EngineConfig(quantization="none"), products)
    both = formats.layers, formats.lm_head
    plans = default_plans(isa, cpus, shape, *both)
    layout = ModelLayout.build(shape, products, isa.lanes, panel_width(isa), *both)
    most = max(case.context * case.batch for case in cases)
    rows = []
    with (
        closing(ReadMeter(isa, cpus, last_level_cache_bytes(machine), READ_BYTES)) as read,
        closing(PeakMeter(isa, products, cpus, num_turns=PEAK_TURNS)) as peak,
        closing(StepBench(machine, model, layout, dtype, most)) as bench,
        bench.on(plans, _cache_dir(), has_timers=True) as timer,
    ):
        for case in cases:
            meter = read if case.phase is Phase.DECODE else peak
            seconds, limits, gemms = [], [], []
            for i in range(repeats + 1):
                attention_ns, gemm_ns = _step(timer, case, shape.vocab_size)
                limit = meter.sample()
                if i:  # the first step warms up
                    seconds.append(attention_ns / 1e9)
                    gemms.append(gemm_ns / 1e9)
                    limits.append(limit)
            rows.append(_row(case, layout, dtype, seconds, gemms, limits))
    return rows


def attention_model(head_dim: int, group: int, max_context: int) -> ModelConfig:
    """A model of a few layers whose attention is as large as the rest lets it be."""
    return replace(
        preset("smollm-135m"),
        name=f"attention-{head_dim}-{group}",
        num_layers=NUM_LAYERS,
        num_heads=NUM_KV_HEADS * group,
        num_kv_heads=NUM_KV_HEADS,
        head_dim=head_dim,
        hidden_size=NUM_KV_HEADS * group * head_dim,
        intermediate_size=INTERMEDIATE,
        vocab_size=VOCAB,
        max_position_embeddings=max_context,
    )


def _cache_dir() -> Path:
    cache_dir: Path = SANDWICH_CACHE_DIR.read()
    return cache_dir


def _step(timer: StepTimer, case: Case, vocab_size: int) -> tuple[int, int]:
    """Nanoseconds of attention, and of the products before and after it."""
    timer.executor.run(case.batch_for(vocab_size))
    spent = timer.executor.operator_ns(case.phase)
    return spent["attention"], spent["qkv"] + spent["o"]


def _row(
    case: Case,
    layout: ModelLayout,
    dtype: str,
    seconds: list[float],
    gemms: list[float],
    limits: list[float],
) -> dict[str, Any]:
    shape = layout.shape
    flops, nbytes = case.flops(shape), case.nbytes(shape, dtype)
    work = nbytes if case.phase is Phase.DECODE else flops
    weights = sum(panels.n * panels.k for panels in (layout.panels("qkv"), layout.panels("o")))
    gemm_flops = 2 * case.chunk * case.batch * shape.num_layers * weights
    middle, limit = statistics.median(seconds), statistics.median(limits)
    row = {
        **_names(case),
        "seconds": middle,
        "spread": (max(seconds) - min(seconds)) / middle,
        "kv_bytes": nbytes,
        "gflops": flops / middle / 1e9,
        "gbps": nbytes / middle / 1e9,
        "limit": limit,
        "limit_ratio": work / middle / 1e9 / limit,
    }
    if case.phase is Phase.PREFILL:
        row["gemm_ratio"] = gemm_flops / statistics.median(gemms) / 1e9 / limit
    return row


def _order(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("phase", "head_dim", "group", "batch", "context"))


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """A line for each row."""
    table = Table(title="attention: prefill GFLOP/s, decode GB/s", title_justify="left")
    for column in ("head", "group", "phase", "context", "batch", "us", "rate", "of it", "GEMMs"):
        table.add_column(column, justify="right")
    for row in sorted(rows, key=_order):
        is_decode = row["phase"] == Phase.DECODE.value
        table.add_row(
            str(row["head_dim"]),
            str(row["group"]),
            row["phase"],
            str(row["context"]),
            str(row["batch"]),
            f"{1e6 * row['seconds']:.0f}",
            f"{row['gbps']:.1f}" if is_decode else f"{row['gflops']:.0f}",
            f"{row['limit_ratio']:.0%}",
            "" if is_decode else f"{row['gemm_ratio']:.0%}",
        )
    console.print(table)
