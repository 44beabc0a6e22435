"""`sandwich bench startup`: from the start of the server's process to its first token.

Once with an empty cache, where every program is compiled, then with a warm one.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from bench.conditions import watch_and_warn
from bench.flags import count
from bench.peers.command import chosen_folder
from bench.peers.engine import Setup
from bench.peers.ours import QUANTIZATION, Ours
from bench.peers.servers import running
from bench.record import provenance, write_json
from platforms.probe import probe
from sandwich.config import SANDWICH_CACHE_DIR


class Cold(Ours):
    """Our engine with another folder for what it compiles."""

    cache: str

    def command(self, port: int) -> tuple[list[str], dict[str, str]]:
        command, variables = super().command(port)
        return command, {**variables, SANDWICH_CACHE_DIR.name: self.cache}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's flags."""
    parser.add_argument("model", nargs="?", metavar="MODEL", help="folder, file or hub id")
    parser.add_argument("--random", metavar="NAME", help="a published shape with random weights")
    parser.add_argument(
        "--format", choices=QUANTIZATION, default="bf16", help="bits of the weights (bf16)"
    )
    parser.add_argument("--repeats", type=count, default=3, metavar="N", help="warm starts (3)")
    parser.add_argument("--json", metavar="FILE", help="write the result to this file")


def main(args: argparse.Namespace) -> None:
    """Start, wait for a token and stop, again and again; print and write."""
    machine, say = probe(), Console(stderr=True).print
    conditions = watch_and_warn()
    cache_dir = SANDWICH_CACHE_DIR.read()
    folder = chosen_folder(args.random, args.model, cache_dir)
    setup = Setup(cache_dir, folder, args.format, 2048, 8, len(machine.usable_cpus()), say)
    with tempfile.TemporaryDirectory(prefix="sandwich-cold-") as empty:
        engine = Cold(replace(setup, cache_dir=Path(empty)))
        engine.cache = empty
        seconds, memory = [], []
        for i in range(1 + args.repeats):
            with running(engine) as server:
                seconds.append(server.start_seconds)
                memory.append(server.memory_bytes())
            say(f"{'cold' if i == 0 else 'warm'}: {seconds[-1]:.2f} s")
    result = {
        "benchmark": "startup",
        **provenance(machine),
        "conditions": conditions.to_json(),
        "model": folder.name,
        "format": args.format,
        "cold_seconds": seconds[0],
        "warm_seconds": statistics.median(seconds[1:]),
        "warm_samples": seconds[1:],
        "memory_bytes": statistics.median(memory[1:]),
    }
    Console().print(
        f"first token after {result['warm_seconds']:.2f} s with a warm cache, "
        f"{result['cold_seconds']:.2f} s with an empty one; "
        f"{result['memory_bytes'] / 1e6:.0f} MB are held",
        highlight=False,
    )
    if args.json:
        write_json(args.json, result)
