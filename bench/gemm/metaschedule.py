"""A peer of the GEMM benchmark that is tuned for one shape at a time: TVM's MetaSchedule.

Every number of rows is a search of its own, which takes minutes, so the result is kept in the
cache's folder, and the peer takes part only where `--peers` names it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.gemm.contest import random_activations
from bench.gemm.peer import Peer
from codegen.cache import ProgramCache
from codegen.compile import pin_pool, tensor
from platforms.isa import select_isa
from platforms.memory import Arena
from sandwich.config import SANDWICH_CACHE_DIR

if TYPE_CHECKING:
    from codegen.gemm.metaschedule import FoundProgram, StaticGemm

TRIALS = 1000  # of each search, which takes some three minutes
SLOW_SECONDS = 0.05  # a run that takes so long is not repeated
REPEATS = 3  # of the others, of which the fastest counts


class MetaSchedule(Peer):
    """float32, weights (k, n), compiled for exactly one M; `setting` says what the search took."""

    name = "metaschedule"
    formats = ("float32",)
    num_forms = 1

    def _start(self, cpus: list[int]) -> bool:
        pin_pool(cpus)
        self._num_cores = len(cpus)
        layout, rows = self.problem.layout, self.problem.max_rows
        self._io = Arena(4 * rows * (layout.k + layout.n) + 4096, self.name)
        self._x = self._io.array((rows, layout.k), np.float32)
        self._x[:] = random_activations(self.problem)
        self._out = self._io.array((rows, layout.n), np.float32)
        columns = self._weights.reshape(-1, layout.k, layout.n)
        self._columns = [tensor(copy) for copy in columns]
        return True

    def close(self) -> None:
        self._columns.clear()
        super().close()

    def _settings(self, num_rows: int) -> Iterator[tuple[str, Callable[[int], object]]]:
        from codegen.gemm.metaschedule import StaticGemm

        x, out = tensor(self._x[:num_rows]), tensor(self._out[:num_rows])

        def seconds_of(function: Any) -> float:
            times: list[float] = []
            while len(times) < REPEATS and max(times, default=0.0) < SLOW_SECONDS:
                weights = self._columns[self._next_copy()]
                started = time.perf_counter()
                function(x, weights, out)
                times.append(time.perf_counter() - started)
            return min(times)

        layout = self.problem.layout
        gemm = StaticGemm(num_rows, layout.n, layout.k, self._num_cores)
        found = cached_search(gemm, SANDWICH_CACHE_DIR.read(), seconds_of)
        function = found.function()
        text = f"{found.num_trials} trials in {found.search_seconds:.0f} s"
        yield text, lambda i: function(x, self._columns[i], out)


def cached_search(
    gemm: StaticGemm, folder: Path, seconds_of: Callable[[Any], float]
) -> FoundProgram:
    """The result of the search for this shape and ISA, kept in `folder`, or made now."""
    from codegen.gemm.metaschedule import FoundProgram, search

    isa = select_isa()
    cache = ProgramCache(folder)
    key = cache.key((gemm, TRIALS), isa)
    facts_file = folder / f"{key}.json"
    if facts_file.exists():
        facts = json.loads(facts_file.read_text(encoding="utf-8"))
        code = cache.get(key, lambda: search(gemm, isa, TRIALS, seconds_of).code)
        return FoundProgram(code=code, **facts)
    found = search(gemm, isa, TRIALS, seconds_of)
    cache.get(key, lambda: found.code)
    facts = {name: value for name, value in asdict(found).items() if name != "code"}
    facts_file.write_text(json.dumps(facts) + "\n", encoding="utf-8")
    return found
