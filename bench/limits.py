"""`sandwich bench limits`: what the cores of this machine can do at most, one of them and all.

Read bandwidth from memory, and multiply-adds out of registers in each type that kernels multiply.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.conditions import watch_and_warn
from bench.flags import count
from bench.record import provenance, write_json
from platforms.machine import Machine
from platforms.probe import probe
from schedules.meters import Meter, PeakMeter, ReadMeter, last_level_cache_bytes

DTYPES = ("float32", "bfloat16", "int8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's flags."""
    parser.add_argument("--repeats", type=count, default=9, metavar="N", help="samples (9)")
    parser.add_argument("--isa", metavar="NAME", help="an instruction set (the best one)")
    parser.add_argument("--json", metavar="FILE", help="write the result to this file")


def main(args: argparse.Namespace) -> None:
    """Measure, print and write."""
    machine = probe(isa=args.isa)
    result = {
        "benchmark": "limits",
        **provenance(machine),
        "conditions": watch_and_warn().to_json(),
        "rows": list(rows(machine, args.repeats)),
    }
    show(result["rows"], Console())
    if args.json:
        write_json(args.json, result)


def rows(machine: Machine, num_samples: int) -> Iterator[dict[str, Any]]:
    """The limits of one core, then of all; a warm-up sample of each is left out."""
    cpus = machine.usable_cpus()
    for some in dict.fromkeys((cpus[:1], cpus)):
        meters: dict[str, Meter] = {
            "read": ReadMeter(machine.isa_row, some, last_level_cache_bytes(machine)),
            **{dtype: PeakMeter(machine.isa_row, dtype, some) for dtype in DTYPES},
        }
        for name, meter in meters.items():
            with closing(meter):
                meter.sample()
                meter.samples.clear()
                samples = sorted(meter.sample() for _ in range(num_samples))
            yield {
                "limit": name,
                "unit": "GB/s" if name == "read" else "GFLOP/s",
                "num_cores": len(some),
                "median": meter.median,
                "best": meter.best,
                "spread": (samples[-1] - samples[0]) / meter.median,
            }


def show(found: list[dict[str, Any]], console: Console) -> None:
    """A line for each limit."""
    table = Table(title="limits", title_justify="left")
    for column in ("limit", "cores", "median", "best", "spread", "unit"):
        table.add_column(column, justify="left" if column in ("limit", "unit") else "right")
    for row in found:
        table.add_row(
            row["limit"],
            str(row["num_cores"]),
            f"{row['median']:.1f}",
            f"{row['best']:.1f}",
            f"{row['spread']:.0%}",
            row["unit"],
        )
    console.print(table)
