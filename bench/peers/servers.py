"""Servers of two engines under the same load, in turns; their starts, and what memory they hold."""

from __future__ import annotations

import asyncio
import math
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers.contest import quartiles
from bench.peers.engine import PATIENCE_S, AbsentError, Engine, end, free_port, pss_bytes, spawn
from bench.serving.client import Client, session
from bench.serving.conversations import Conversation, Lengths, first, random_prompts
from bench.serving.figures import Goals, figures
from bench.serving.load import Arrivals, Run, run_load
from bench.serving.target import BenchServeError, Target
from bench.serving.trace import trace
from bench.serving.words import Words

POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Load:
    """What is asked of both servers. rate: conversations a second, inf for all at once."""

    num_requests: int
    concurrency: int
    prompt: int = 0  # tokens of random prompts; 0: the synthetic trace
    answer: int = 0
    kinds: tuple[str, ...] = ()  # of the trace
    scale: float = 1.0
    rate: float = float("inf")
    goals: tuple[tuple[str, float], ...] = (("ttft", 2000.0), ("tpot", 150.0))
    seed: int = 0

    @property
    def name(self) -> str:
        kinds = "+".join(self.kinds) or "all"
        what = f"{self.prompt} in {self.answer} out" if self.prompt else f"{kinds} x {self.scale:g}"
        return f"serve {what}, {self.rate:g}/s, {self.concurrency} streams"

    def conversations(self, words: Words, max_tokens: int, turn: int) -> list[Conversation]:
        """Others in every turn, so that no cache of prefixes knows them."""
        rng = np.random.default_rng((self.seed, turn))
        if self.prompt:
            lengths = Lengths(self.prompt, self.answer)
            return first(random_prompts(words, lengths, 0, rng), self.num_requests, max_tokens)
        return first(trace(words, self.kinds, self.scale, rng), self.num_requests, max_tokens)


class RunningServer:
    """A server that has answered its first token. start_seconds: from its start to that token."""

    def __init__(
        self, engine: Engine, process: subprocess.Popen[str], port: int, start: float
    ) -> None:
        self.engine, self._process = engine, process
        self.url = f"http://127.0.0.1:{port}"
        self.target = Target(self.url, None)
        self.model = next(iter(self.target.models()))
        asyncio.run(self._first_token())
        self.start_seconds = time.monotonic() - start

    async def _first_token(self) -> None:
        turn = first(
            random_prompts(Words.uncounted(), Lengths(4, 1), 0, np.random.default_rng(1)), 1
        )
        run = await self.run(turn, [0.0], None)
        if error := run.answers[0].error:
            raise AbsentError(f"the server of {self.engine.name}: {error}")

    async def run(
        self, conversations: Sequence[Conversation], starts: Sequence[float], most: int | None
    ) -> Run:
        """Hold conversations with it."""
        body = {"model": self.model, "temperature": 0.0, "ignore_eos": True}
        async with session() as http:
            client = Client(http, self.url + "/v1/completions", False, body, None)
            return await run_load(client, conversations, starts, most)

    def memory_bytes(self) -> int:
        """What its processes hold now."""
        return pss_bytes(self._process.pid)

    def words(self) -> Words:
        count = self.target.counter(self.model)
        return Words.counted(count) if count else Words.uncounted()


@contextmanager
def running(engine: Engine) -> Iterator[RunningServer]:
    """Its server on a free port, until the end of the block. AbsentError with its last words."""
    port = free_port()
    command, env = engine.command(port)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        started = time.monotonic()
        with log.open("w") as out:
            process = spawn(command, env, stdin=subprocess.DEVNULL, stdout=out)
        try:
            _wait(process, f"http://127.0.0.1:{port}", log, engine.name)
            yield RunningServer(engine, process, port, started)
        finally:
            end(process)


def _wait(process: subprocess.Popen[str], url: str, log: Path, name: str) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up:
        try:
            Target(url, None).wait_until_ready(0)
            return
        except BenchServeError:
            pass
        if process.poll() is not None:
            raise AbsentError(f"the server of {name} ended: {log.read_text()[-300:].strip()}")
        time.sleep(POLL_SECONDS)
    raise AbsentError(f"the server of {name} was not ready after {PATIENCE_S:g} s")


def compare_servers(ours: Engine, peer: Engine, load: Load, num_rounds: int) -> dict[str, Any]:
    """A row of the result: figures of both under the same load, in turns, both in memory."""
    goals: Goals = dict(load.goals)
    with running(peer) as theirs, running(ours) as mine:
        words = mine.words()
        found: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
        for i in range(num_rounds):
            conversations = load.conversations(words, ours.setup.max_model_len, i)
            rng = np.random.default_rng((load.seed, i))
            starts = Arrivals(load.rate).times(len(conversations), rng)
            sides = [("ours", mine), ("peer", theirs)]
            for side, server in sides if i % 2 == 0 else reversed(sides):
                run = asyncio.run(server.run(conversations, starts, load.concurrency))
                found[side].append(_complete(figures(run, (50, 90, 99), goals), server.engine))
        memory = {"ours": mine.memory_bytes(), "peer": theirs.memory_bytes()}
    return {
        "num_requests": load.num_requests,
        "rate": "inf" if math.isinf(load.rate) else load.rate,
        "goals": goals,
        "runs": found,
        "ours_memory_bytes": memory["ours"],
        "peer_memory_bytes": memory["peer"],
        **_ratio(found, "output_throughput"),
        "goodput_ratio": _median_ratio(found, "request_goodput"),
        "ttft_ratio": _median_ratio(found, "median_ttft_ms"),
        "tpot_ratio": _median_ratio(found, "median_tpot_ms"),
    }


def _complete(result: dict[str, Any], engine: Engine) -> dict[str, Any]:
    """The figures, if every request was answered: else they are not those of the same work."""
    if result["failed"]:
        error = next(iter(result["errors"]))
        raise AbsentError(f"{result['failed']} requests to {engine.name} failed: {error}")
    return result


def compare_starts(ours: Engine, peer: Engine, num_rounds: int) -> dict[str, Any]:
    """A row of the result: seconds from start to first token, with all caches warm, and memory."""
    seconds: dict[str, list[float]] = {ours.name: [], peer.name: []}
    memory: dict[str, list[int]] = {ours.name: [], peer.name: []}
    for i in range(-1, num_rounds):  # the round before the first one warms the caches
        for engine in (ours, peer) if i % 2 == 0 else (peer, ours):
            with running(engine) as server:
                if i >= 0:
                    seconds[engine.name].append(server.start_seconds)
                    memory[engine.name].append(server.memory_bytes())
    pairs = zip(seconds[ours.name], seconds[peer.name], strict=True)
    ratios = [b / a for a, b in pairs]
    return {
        "ours_seconds": seconds[ours.name],
        "peer_seconds": seconds[peer.name],
        "ours_memory_bytes": statistics.median(memory[ours.name]),
        "peer_memory_bytes": statistics.median(memory[peer.name]),
        "ratios": ratios,
        "ratio": statistics.median(ratios),
        "ratio_quartiles": quartiles(ratios),
    }


def _ratio(found: dict[str, list[dict[str, Any]]], metric: str) -> dict[str, Any]:
    pairs = zip(found["ours"], found["peer"], strict=True)
    ratios = [a[metric] / b[metric] for a, b in pairs if b[metric]]
    if not ratios:
        raise AbsentError("its server answered nothing")
    return {
        "ratios": ratios,
        "ratio": statistics.median(ratios),
        "ratio_quartiles": quartiles(ratios),
    }


def _median_ratio(found: dict[str, list[dict[str, Any]]], metric: str) -> float | None:
    """Ours / theirs, of the medians over the rounds; None where theirs is 0."""
    ours, peer = (statistics.median(r[metric] for r in found[side]) for side in ("ours", "peer"))
    return ours / peer if peer else None
