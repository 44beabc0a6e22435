"""`sandwich bench smoke`: in three minutes, what got slower since the last time on this machine.

Ratios to limits of the same run are compared, since rates differ from day to day on a shared
machine. What is stored is only replaced when nothing got slower, or when that is accepted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.conditions import watch_and_warn
from bench.driver import BenchmarkError
from bench.record import provenance, write_json
from bench.report.command import RESULTS
from platforms.probe import probe

SHAPE = "smollm-135m"
FORMATS = {
    "bf16": ("--dtype", "bf16"),
    "int8-w8a8": ("--quantization", "int8-w8a8"),
    "int4": ("--quantization", "int4"),
}
CELLS = ("--prefill", "128,512", "--batch", "1,8", "--context", "128,1024", "--repeats", "5")
SLOWER = 0.1  # of a ratio: more than the noise between two runs of a quiet machine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's flags."""
    parser.add_argument(
        "--results",
        type=Path,
        default=RESULTS,
        metavar="DIR",
        help="the last result is DIR/<fingerprint>/smoke.json (bench/results)",
    )
    parser.add_argument(
        "--accept", action="store_true", help="store this result even if something got slower"
    )


def main(args: argparse.Namespace) -> int:
    """Measure, compare, store; 1 if something got slower and that was not accepted."""
    machine, say = probe(), Console(highlight=False, soft_wrap=True).print
    conditions = watch_and_warn()
    ratios: dict[str, float] = {}
    for name, flags in FORMATS.items():
        ratios |= {f"{name} {cell}": ratio for cell, ratio in measured(flags).items()}
    file = args.results / machine.fingerprint / "smoke.json"
    before = json.loads(file.read_text())["ratios"] if file.exists() else {}
    slower = compare(before, ratios, say)
    if slower and not args.accept:
        say(f"{slower} of {len(ratios)} got slower by more than {SLOWER:.0%}; {file} is kept")
        return 1
    file.parent.mkdir(parents=True, exist_ok=True)
    head = {"benchmark": "smoke", **provenance(machine), "conditions": conditions.to_json()}
    write_json(str(file), {**head, "model": SHAPE, "ratios": ratios})
    say(f"stored: {file}")
    return 0


def measured(flags: tuple[str, ...]) -> dict[str, float]:
    """Part of the limit in every cell of one format; BenchmarkError with the words of a failure."""
    with tempfile.TemporaryDirectory(prefix="sandwich-smoke-") as folder:
        file = Path(folder) / "latency.json"
        command = [sys.executable, "-m", "sandwich", "bench", "latency", "--random", SHAPE]
        done = subprocess.run(
            [*command, *flags, *CELLS, "--json", str(file)], capture_output=True, text=True
        )
        if done.returncode != 0:
            raise BenchmarkError(f"bench latency failed: {done.stderr.strip()[-300:]}")
        return cells(json.loads(file.read_text()))


def cells(result: dict[str, Any]) -> dict[str, float]:
    """The ratios of a result of `bench latency`."""
    prefill = {f"prefill {row['tokens']}": row["peak_ratio"] for row in result["prefill"]}
    decode = {
        f"decode {row['batch']} x {row['context']}": row["bandwidth_ratio"]
        for row in result["decode"]
    }
    return prefill | decode


def compare(before: dict[str, float], now: dict[str, float], say: Callable[[str], None]) -> int:
    """Say each ratio beside the last one; how many fell by more than SLOWER."""
    slower = 0
    for cell, ratio in now.items():
        if cell not in before:
            say(f"{cell:<28} {ratio:>6.1%}  (new)")
            continue
        change = ratio / before[cell] - 1
        is_slower = change < -SLOWER
        slower += is_slower
        remark = "  SLOWER" if is_slower else ""
        say(f"{cell:<28} {ratio:>6.1%}  was {before[cell]:>6.1%}  {change:+.1%}{remark}")
    return slower
