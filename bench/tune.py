"""`sandwich bench tune`: what tuning from nothing takes, and what it gains over default tiles."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.conditions import watch_and_warn
from bench.driver import BenchmarkError
from bench.flags import count
from bench.record import provenance, write_json
from platforms.probe import probe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's flags."""
    parser.add_argument(
        "--random", default="llama-3.2-1b", metavar="NAME", help="a published shape (llama-3.2-1b)"
    )
    parser.add_argument(
        "--quantization", default="none", metavar="NAME", help="as for the engine (none)"
    )
    parser.add_argument("--budget", type=count, default=60, metavar="S", help="seconds (60)")
    parser.add_argument("--json", metavar="FILE", help="write the result to this file")


def main(args: argparse.Namespace) -> None:
    """Tune with an empty cache, print and write."""
    conditions = watch_and_warn()
    found = tuned(args.random, args.quantization, args.budget)
    result = {
        "benchmark": "tune",
        **provenance(probe()),
        "conditions": conditions.to_json(),
        "model": args.random,
        "quantization": args.quantization,
        "budget": args.budget,
        **found,
    }
    gain = found["geometric_mean"]
    Console().print(
        f"{found['seconds']:.0f} s of tuning: "
        + (f"{gain:.3f} x the default tiles" if gain else "nothing was found"),
        highlight=False,
    )
    if args.json:
        write_json(args.json, result)


def tuned(shape: str, quantization: str, budget: int) -> dict[str, Any]:
    """What `sandwich tune` found within the budget; BenchmarkError with its words if it failed."""
    with tempfile.TemporaryDirectory(prefix="sandwich-tune-") as folder:
        file = Path(folder) / "found.json"
        command = [sys.executable, "-m", "sandwich", "tune", shape, "--random-weights"]
        command += ["--quantization", quantization, "--budget", str(budget)]
        command += ["--cache-dir", folder, "--json", str(file)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise BenchmarkError(f"sandwich tune failed: {done.stderr.strip()[-300:]}")
        found: dict[str, Any] = json.loads(file.read_text())
    return found
