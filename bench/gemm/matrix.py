"""One weight matrix of the GEMM benchmark: its contestants are built once, for every M."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import psutil  # type: ignore[import-untyped]

from bench.gemm.contest import Ours, Problem, RefusedError
from bench.gemm.peer import Peer
from bench.gemm.peers import peer_for
from bench.gemm.summary import CellTimes, PeerTimes
from bench.gemm.turns import LimitMeters, take_turns
from codegen.layout.panels import PanelLayout
from codegen.spec import TileRanges

CACHES_OF_WEIGHTS = 4  # the copies of a matrix are this many times as large as the last cache
MIN_LLC_BYTES = 32 << 20  # where the machine hides its caches
# To guess how long a cell takes: calls of all contestants in trials and turns, and their rate.
CALLS, FLOPS_PER_SECOND = 12, 3e11


@dataclass(frozen=True)
class Cores:
    """The machine as the contestants see it."""

    isa: str
    cpus: tuple[int, ...]
    llc_bytes: int


@dataclass(frozen=True)
class Pace:
    """How long a cell may take: at most so many rounds, and none begins after so many seconds."""

    num_rounds: int
    cell_seconds: float

    def expected_seconds(self, flops: int) -> float:
        """A guess for a cell whose calls have so many operations each."""
        return self.cell_seconds + CALLS * flops / FLOPS_PER_SECOND


@dataclass(frozen=True)
class Matrix:
    """The cells of one weight matrix. rows: M, ascending. peers: names of libraries."""

    model: str
    role: str
    layout: PanelLayout
    rows: tuple[int, ...]
    peers: tuple[str, ...]
    cores: Cores

    def expected_seconds(self, m: int, pace: Pace) -> float:
        """A guess of what the cell of this M takes."""
        return pace.expected_seconds(2 * m * self.layout.n * self.layout.k)

    def problem(self) -> Problem:
        """As many copies of the matrix as the caches cannot hold."""
        wanted = CACHES_OF_WEIGHTS * max(self.cores.llc_bytes, MIN_LLC_BYTES)
        once = Problem(self.layout, 1, max(self.rows))
        return replace(once, num_copies=-(-wanted // once.weight_bytes))

    def missing_bytes(self) -> int:
        """Bytes that the contestants need beyond the memory that is free; 0 if it suffices."""
        problem = self.problem()
        needed = problem.num_copies * self.layout.nbytes
        needed += sum(peer.needed_bytes(problem) for peer in self._peers())
        results = 4 * (self.layout.n_padded + self.layout.k_padded) * max(self.rows)
        needed += results * (2 + len(self.peers))  # ours has partial sums too
        return max(0, needed - int(psutil.virtual_memory().available))

    def measure(
        self, tiles: TileRanges, limits: LimitMeters, pace: Pace, say: Callable[[str], None]
    ) -> Iterator[CellTimes]:
        """The times of one M after the other."""
        problem = self.problem()
        with ExitStack() as stack:
            ours = Ours(problem, self.cores.isa, self.cores.cpus, tiles)
            stack.callback(ours.close)
            peers: list[Peer] = []
            refusals: dict[str, str] = {}
            for kernels in self._peers():
                try:
                    peers.append(kernels(problem, self.cores.cpus))
                except RefusedError as error:
                    refusals[kernels.name] = str(error)
                    continue
                stack.callback(peers[-1].close)
            for peer in peers:
                if not peer.is_pinned:
                    say(f"{peer.name} does not use {len(self.cores.cpus)} threads; not pinned")
            said: set[tuple[str, str]] = set()
            for m in self.rows:
                cell = self._cell(m, ours, peers, limits, pace)
                cell = replace(cell, refusals=refusals | cell.refusals)
                for name, words in cell.refusals.items() - said:
                    say(f"{name} is left out: {words}")
                said |= cell.refusals.items()
                yield cell

    def _peers(self) -> list[type[Peer]]:
        found = (peer_for(name, self.layout.format) for name in self.peers)
        return [kernels for kernels in found if kernels]

    def _cell(
        self, m: int, ours: Ours, peers: Sequence[Peer], limits: LimitMeters, pace: Pace
    ) -> CellTimes:
        turns = take_turns([ours, *peers], m, limits, pace.num_rounds, pace.cell_seconds)
        return CellTimes(
            model=self.model,
            role=self.role,
            m=m,
            problem=ours.problem,
            ours=turns.seconds[ours.name],
            peers={
                p.name: PeerTimes(p.setting, turns.seconds[p.name], p.trials)
                for p in peers
                if p.name in turns.seconds
            },
            refusals=turns.refusals,
            read_gbps=turns.read_gbps,
            peak_gflops=turns.peak_gflops,
        )
