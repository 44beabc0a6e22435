"""`sandwich bench soak`: thousands of random requests on a server, for a bounded time.

Clients leave in the middle, send what is no request, read slowly, and come in bursts that no queue
holds. Half way the server is told to end under load, and a new one takes its place. At the end it
must be idle: no request left, no block held, no more memory than in the beginning; nobody may have
waited in vain, and nothing may stand in the log as an error.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

import aiohttp
from rich.console import Console
from rich.table import Table

from bench.flags import count
from bench.soak.client import Outcome, Soaker
from bench.soak.requests import Shooter, Shot
from bench.soak.server import ServerProcess
from sandwich.config import DEFAULT_MODEL

PATIENCE_S = 120.0
SHUTDOWN_S = 10.0
_BURST = 60  # clients at once beyond the usual ones
_MOST_GROWTH = 0.05  # of the memory, from the first rest to the last
_SPARE_BYTES = 32 << 20
_LIMITS = ("--max-num-seqs", "8", "--max-num-queued-reqs", "24", "--max-model-len", "1024")


@dataclass
class Findings:
    """What became of all requests, and what should not have happened."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)  # kind, what
    faults: list[str] = field(default_factory=list)
    rss_bytes: list[int] = field(default_factory=list)  # at rest
    num_sent: int = 0
    num_logged: int = 0

    def take(self, shot: Shot, outcome: Outcome) -> None:
        self.outcomes[shot.kind, outcome.what] += 1
        if outcome.fault:
            self.faults.append(f"{shot.kind}, a client that {shot.manner.value}: {outcome.fault}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's flags."""
    parser.add_argument("model", nargs="?", default=DEFAULT_MODEL, metavar="MODEL")
    parser.add_argument(
        "--seconds", type=count, default=600, metavar="N", help="how long in all (600)"
    )
    parser.add_argument("--clients", type=count, default=24, metavar="N", help="at once (24)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the requests (0)")
    parser.add_argument(
        "--executor", default="compiled", metavar="NAME", help="as `sandwich serve` has it"
    )


def main(args: argparse.Namespace) -> int:
    """0 if nothing was found."""
    findings = asyncio.run(soak(args))
    console = Console(stderr=True)
    _print(console, findings)
    for fault in findings.faults[:20]:
        console.print(f"fault: {fault}", style="red", highlight=False, markup=False)
    console.print(f"{findings.num_sent} requests, {len(findings.faults)} faults", highlight=False)
    return 1 if findings.faults else 0


async def soak(args: argparse.Namespace) -> Findings:
    """Two servers, one after the other; the first ends under load, the second at rest."""
    findings = Findings()
    for is_last in (False, True):
        server = await ServerProcess.start(
            [args.model, *_LIMITS, "--executor", args.executor, *_shutdown()]
        )
        say(f"{server.url} is up")
        until = time.monotonic() + args.seconds / 2
        await _round(server, args, findings, until, is_last)
        findings.faults += server.log.faults
        findings.num_logged += server.log.num_requests
    return findings


def _shutdown() -> tuple[str, str]:
    return "--shutdown-timeout", f"{SHUTDOWN_S:g}"


async def _round(
    server: ServerProcess,
    args: argparse.Namespace,
    findings: Findings,
    until: float,
    is_last: bool,
) -> None:
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
        soaker = Soaker(http, server.url, PATIENCE_S)
        shooter = Shooter(args.seed + is_last, max_model_len=1024, has_chats=True)
        began = time.monotonic()
        await _load(soaker, shooter, findings, began + (until - began) / 4, args.clients)
        await _rest(server, http, findings)
        load = asyncio.create_task(_load(soaker, shooter, findings, until, args.clients))
        if is_last:
            await load
            await _rest(server, http, findings)
            server.terminate()
        else:
            await asyncio.wait({load}, timeout=until - time.monotonic() - 1)
            soaker.is_stopping = True
            server.terminate()
            await load
        say("told the server to end")
        code = await server.wait(SHUTDOWN_S + 30)
    if code != 0:
        findings.faults.append(f"the server ended with {code} after SIGTERM")


async def _load(
    soaker: Soaker, shooter: Shooter, findings: Findings, until: float, num_clients: int
) -> None:
    """Usual load, and bursts now and then."""
    chance = random.Random(num_clients)

    async def client() -> None:
        while time.monotonic() < until and not soaker.is_stopping:
            await one()

    async def one() -> None:
        shot = shooter.shot()
        findings.num_sent += 1
        findings.take(shot, await soaker.send(shot))

    async def bursts() -> None:
        while time.monotonic() < until and not soaker.is_stopping:
            await asyncio.sleep(chance.uniform(1, 4))
            await asyncio.gather(*(one() for _ in range(_BURST)))

    await asyncio.gather(bursts(), *(client() for _ in range(num_clients)))


async def _rest(server: ServerProcess, http: aiohttp.ClientSession, findings: Findings) -> None:
    """Wait until the server is idle; then nothing may be held, and memory may not have grown."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        metrics = await server.metrics(http)
        names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        held = {name: metrics[f"sandwich:{name}"] for name in names}
        if not any(held.values()):
            break
        if time.monotonic() > deadline:
            findings.faults.append(f"at rest the server holds {held}")
            break
        await asyncio.sleep(0.1)
    rss = server.rss_bytes
    say(f"at rest with {rss / 2**20:.0f} MiB after {findings.num_sent} requests")
    before, findings.rss_bytes = findings.rss_bytes, [*findings.rss_bytes, rss]
    if len(before) == 2:  # the first and the last rest of the second server
        most = before[1] * (1 + _MOST_GROWTH) + _SPARE_BYTES
        if rss > most:
            findings.faults.append(f"memory grew from {before[1]} to {rss} bytes")


def _print(console: Console, findings: Findings) -> None:
    whats = sorted({what for _, what in findings.outcomes})
    table = Table("request", *whats)
    for kind in sorted({kind for kind, _ in findings.outcomes}):
        table.add_row(kind, *(str(findings.outcomes[kind, what] or "") for what in whats))
    console.print(table)
    sizes = " -> ".join(f"{rss / 2**20:.0f}" for rss in findings.rss_bytes)
    console.print(
        f"MiB at rest: {sizes}; {findings.num_logged} requests in the log", highlight=False
    )


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
