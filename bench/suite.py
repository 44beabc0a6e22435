"""`sandwich bench all`: every benchmark of this machine, one after the other, and their report.

A part is a command of its own with a file of its own, `DIR/<fingerprint>/<part>.json`. A part whose
file is there is not measured again, and parts that are made of rows go on where they were, so that
a whole report can be made in pieces.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from bench.conditions import watch_and_warn
from bench.flags import some_of
from bench.peers.command import PEERS, chosen_folder
from bench.peers.engine import Setup
from bench.peers.ours import Ours
from bench.peers.servers import running
from bench.report.command import RESULTS
from bench.report.page import write_report
from platforms.probe import probe
from sandwich.config import SANDWICH_CACHE_DIR, EngineConfig

SHAPE = "llama-3.2-1b"
QUANTIZATIONS = {
    "bf16": ("--dtype", "bf16"),
    "int8-w8a8": ("--quantization", "int8-w8a8"),
    "int4": ("--quantization", "int4"),
}
RATES = "0.1,0.2,0.4,0.8"
GOALS = ("ttft:2000", "tpot:150")


@dataclass(frozen=True)
class Part:
    """flags: behind `sandwich bench`; grows: whether its file is gone on with, row by row."""

    name: str
    flags: tuple[str, ...]
    grows: bool = False


def parts(peers: Sequence[str]) -> Iterator[Part]:
    """All of them, the shortest first. `serve` is in between: it needs a server (`serve_part`)."""
    yield Part("limits", ("limits",))
    yield Part("noise", ("noise", "--random", SHAPE, "--dtype", "bf16"))
    for name, flags in QUANTIZATIONS.items():
        cells = ("--batch", "1,8,32", "--prefill", "128,512,2048", "--context", "128,1024")
        yield Part(f"latency-{name}", ("latency", "--random", SHAPE, *flags, *cells))
        yield Part(f"throughput-{name}", ("throughput", "--random", SHAPE, *flags))
    yield Part("startup", ("startup", "--random", SHAPE))
    yield Part("tune", ("tune", "--random", SHAPE))
    yield Part("attention", ("attention",), grows=True)
    gemm = ("gemm", "--models", SHAPE, "--m", "1,4,16,64,128,512")
    yield Part("gemm", gemm, grows=True)
    work = ("--work", "128,512,2048,1x128,1x1024,8x128,32x128", "--start")
    serve = ("--serve", "32", "--serve-rates", RATES)
    for peer in peers:
        large = ("peers", "--random", SHAPE, "--peers", peer, *work, *serve)
        yield Part(f"peers-{peer}", large, grows=True)
        small = ("peers", EngineConfig().model, "--peers", peer, *work[:2], "--start")
        yield Part(f"peers-{peer}-small", small, grows=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's flags."""
    names = [part.name for part in parts(tuple(PEERS))] + ["serve"]
    parser.add_argument(
        "--platform-report",
        type=Path,
        default=RESULTS,
        metavar="DIR",
        help="results and report of this machine go to DIR/<fingerprint> (bench/results)",
    )
    parser.add_argument(
        "--parts", type=some_of(names), metavar="A,B", help=f"these alone, of {','.join(names)}"
    )
    parser.add_argument(
        "--peers",
        type=some_of(PEERS, has_none=True),
        default=("llama.cpp",),
        metavar="A,B",
        help=f"engines to compare with, of {','.join(PEERS)}, or none (llama.cpp)",
    )
    parser.add_argument("--again", action="store_true", help="measure parts that are there too")
    parser.add_argument("--list", action="store_true", help="print the commands, and run nothing")


def main(args: argparse.Namespace) -> int:
    """Run what is missing, then write the report; 1 if a part failed."""
    folder = args.platform_report / probe().fingerprint
    wanted = [part for part in parts(args.peers) if not args.parts or part.name in args.parts]
    if args.list:
        for part in wanted:
            print(" ".join(["sandwich", "bench", *command(part, folder)]))
        return 0
    watch_and_warn()
    folder.mkdir(parents=True, exist_ok=True)
    say = Console(stderr=True, highlight=False).print
    failed = [part.name for part in wanted if not run_part(part, folder, args.again, say)]
    if (not args.parts or "serve" in args.parts) and not serve_part(folder, args.again, say):
        failed.append("serve")
    for file in write_report(folder):
        say(f"written: {file}")
    for name in failed:
        say(f"failed: {name}", style="red")
    return 1 if failed else 0


def command(part: Part, folder: Path) -> list[str]:
    """What stands behind `sandwich bench`."""
    file = ["--json", str(folder / f"{part.name}.json")]
    return [*part.flags, *file, *(["--resume"] if part.grows else [])]


def run_part(part: Part, folder: Path, again: bool, say: Callable[..., None]) -> bool:
    """Whether it was measured, now or before; what it prints goes to the terminal."""
    file = folder / f"{part.name}.json"
    if file.exists() and again:
        file.unlink()
    if file.exists() and not part.grows:
        say(f"{part.name}: there already")
        return True
    flags = command(part, folder)
    say(f"\n{part.name}: sandwich bench {' '.join(flags)}")
    return subprocess.run([sys.executable, "-m", "sandwich", "bench", *flags]).returncode == 0


def serve_part(folder: Path, again: bool, say: Callable[..., None]) -> bool:
    """Our own server under the trace, at several rates."""
    file = folder / "serve.json"
    if file.exists() and not again:
        say("serve: there already")
        return True
    cache_dir = SANDWICH_CACHE_DIR.read()
    model = chosen_folder(SHAPE, None, cache_dir)
    num_threads = len(probe().usable_cpus())
    with running(Ours(Setup(cache_dir, model, "bf16", 4096, 8, num_threads, say))) as server:
        flags = ["--base-url", server.url, "--dataset-name", "trace", "--trace-kinds", "chat"]
        flags += ["--trace-scale", "0.5", "--num-prompts", "32", "--request-rate", RATES]
        flags += ["--max-concurrency", "8", "--ignore-eos", "--goodput", *GOALS, "--save-result"]
        flags += ["--result-dir", str(folder), "--result-filename", file.name]
        say(f"\nserve: sandwich bench serve {' '.join(flags)}")
        done = subprocess.run([sys.executable, "-m", "sandwich", "bench", "serve", *flags])
    return done.returncode == 0
