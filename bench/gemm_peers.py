"""The libraries that the GEMM benchmark compares with: oneDNN (torch) and OpenBLAS (NumPy).

Knows nothing of our own kernels, of tables or of limits.
"""

from __future__ import annotations

import importlib.util
import math
import os
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import psutil  # type: ignore[import-untyped]

from bench.gemm_contest import Contestant, Problem, fill_random, random_activations
from platforms.memory import Arena

TRIAL_SECONDS = 0.03  # of each setting of a peer, to pick the best for an M
WARM_SECONDS = 0.3  # long beside the clock ticks in which threads' times are counted


class Peer(Contestant):
    """A library with threads of its own, called from one thread; they are pinned as ours are.

    Its weights are on huge pages too. `_settings` offers the ways to call it with some M; the
    fastest one for that M takes part.
    """

    dtypes: ClassVar[tuple[str, ...]]

    def __init__(self, problem: Problem, cpus: Sequence[int]) -> None:
        super().__init__(problem)
        layout, item = problem.layout, problem.layout.value_dtype
        shape = (problem.num_copies, layout.n, layout.k)
        self._arena = Arena(math.prod(shape) * item.itemsize, self.name)
        self._weights = self._arena.array(shape, item)
        fill_random(self._weights)
        self.trials: dict[str, float] = {}  # seconds per call of each setting, roughly
        self._call: Callable[[int], object] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=self.name)
        self.is_pinned: bool = self._thread.submit(self._start, list(cpus)).result()

    def prepare(self, num_rows: int) -> None:
        self._thread.submit(self._choose, num_rows).result()

    def seconds(self, num_calls: int) -> float:
        return self._thread.submit(self._timed, num_calls).result()

    def close(self) -> None:
        self._call = None
        del self._weights
        self._thread.shutdown()
        self._arena.close()

    @abstractmethod
    def _start(self, cpus: list[int]) -> bool:
        """Set up the library on the calling thread; whether its threads could be pinned."""

    @abstractmethod
    def _settings(self, num_rows: int) -> Iterator[tuple[str, Callable[[int], object]]]:
        """(name, call with a copy's index) of each way to multiply `num_rows` rows."""

    def _timed(self, num_calls: int) -> float:
        assert self._call is not None
        started = time.perf_counter()
        for _ in range(num_calls):
            self._call(self._next_copy())
        return time.perf_counter() - started

    def _choose(self, num_rows: int) -> None:
        self._call = None  # its packed weights need not outlive it
        self.trials = {}
        calls = {}
        for setting, call in self._settings(num_rows):
            self._call = call
            once = min(self._timed(1), self._timed(1))
            num_calls = math.ceil(TRIAL_SECONDS / once)
            seconds = self._timed(num_calls) / num_calls if num_calls > 1 else once
            self.trials[setting], calls[setting] = seconds, call
        self.setting = min(self.trials, key=lambda name: self.trials[name])
        self._call = calls[self.setting]


class OneDnn(Peer):
    """torch.nn.functional.linear and what torch's compiler makes of it, with packed weights.

    bfloat16 and float32; for float32 torch itself may choose MKL.
    """

    name = "onednn"
    dtypes = ("bfloat16", "float32")

    def _start(self, cpus: list[int]) -> bool:
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch's own arrays on huge pages
        import torch

        self._torch = torch
        torch.set_num_threads(len(cpus))
        dtype = getattr(torch, self.problem.dtype)

        def shared(array: npt.NDArray[Any]) -> Any:
            return torch.from_numpy(array).view(dtype)

        self._rows = shared(self._weights)
        self._columns = self._rows.view(-1, self.problem.layout.k, self.problem.layout.n)
        self._x = torch.from_numpy(random_activations(self.problem)).to(dtype)
        a = torch.ones((512, 2048), dtype=dtype)
        b = torch.ones((2048, 2048), dtype=dtype)
        return pin_workers(cpus, lambda: a @ b)

    def close(self) -> None:
        del self._rows, self._columns
        super().close()

    def _timed(self, num_calls: int) -> float:
        with self._torch.inference_mode():
            return super()._timed(num_calls)

    def _settings(self, num_rows: int) -> Iterator[tuple[str, Callable[[int], object]]]:
        torch, x, copies = self._torch, self._x[:num_rows], range(self.problem.num_copies)
        rows, columns = self._rows, self._columns
        yield "linear", lambda i: torch.nn.functional.linear(x, rows[i])
        yield "matmul", lambda i: x @ columns[i]
        if not torch.backends.mkldnn.is_available():
            return
        packed = [torch.ops.mkldnn._reorder_linear_weight(rows[i], num_rows) for i in copies]
        linear = torch.ops.mkldnn._linear_pointwise
        yield "packed", lambda i: linear(x, packed[i], None, "none", [], "")
        if self.problem.dtype == "float32" and torch.backends.mkl.is_available():
            mkl = [torch.ops.mkl._mkl_reorder_linear_weight(rows[i], num_rows) for i in copies]
            yield (
                "mkl packed",
                lambda i: torch.ops.mkl._mkl_linear(x, mkl[i], rows[i], None, num_rows),
            )


class OpenBlas(Peer):
    """numpy.matmul, float32, into an array that is there already."""

    name = "openblas"
    dtypes = ("float32",)

    def _start(self, cpus: list[int]) -> bool:
        self._x = random_activations(self.problem)
        self._out = np.zeros((self.problem.max_rows, self.problem.layout.n), np.float32)
        self._columns = self._weights.reshape(-1, self.problem.layout.k, self.problem.layout.n)
        self._num_threads = len(cpus)
        a, b = np.ones((512, 2048), np.float32), np.ones((2048, 2048), np.float32)
        with num_blas_threads(self._num_threads):
            return pin_workers(cpus, lambda: a @ b)

    def close(self) -> None:
        del self._columns
        super().close()

    def _timed(self, num_calls: int) -> float:
        with num_blas_threads(self._num_threads):
            return super()._timed(num_calls)

    def _settings(self, num_rows: int) -> Iterator[tuple[str, Callable[[int], object]]]:
        x, out = self._x[:num_rows], self._out[:num_rows]
        weights, columns = self._weights, self._columns
        yield "n x k", lambda i: np.matmul(x, weights[i].T, out=out)
        yield "k x n", lambda i: np.matmul(x, columns[i], out=out)


PEERS: dict[str, type[Peer]] = {peer.name: peer for peer in (OneDnn, OpenBlas)}


def missing_library(peer: str) -> str | None:
    """What must be installed for this peer, or None."""
    is_missing = peer == OneDnn.name and importlib.util.find_spec("torch") is None
    return "torch" if is_missing else None


def pin_workers(cpus: Sequence[int], work: Callable[[], object]) -> bool:
    """Pin the threads that `work` keeps busy, the calling one first, one to each CPU.

    Libraries do not say which threads are theirs, but the kernel says which ones worked. False, and
    no thread is pinned, where they are not as many as the CPUs.
    """
    process, caller = psutil.Process(), threading.get_native_id()

    def times() -> dict[int, float]:
        return {t.id: t.user_time + t.system_time for t in process.threads()}

    work()
    before, end = times(), time.perf_counter() + WARM_SECONDS
    while time.perf_counter() < end:
        work()
    spent = {tid: seconds - before.get(tid, 0.0) for tid, seconds in times().items()}
    busy = {tid for tid, seconds in spent.items() if seconds > max(spent.values()) / 3} | {caller}
    if len(busy) != len(cpus):
        return False
    for cpu, tid in zip(cpus, [caller, *sorted(busy - {caller})], strict=True):
        os.sched_setaffinity(tid, {cpu})
    return True


@contextmanager
def num_blas_threads(num_threads: int) -> Iterator[None]:
    """Limit NumPy's BLAS if threadpoolctl is installed; else it has one thread per CPU."""
    if importlib.util.find_spec("threadpoolctl") is None:
        yield
        return
    from threadpoolctl import threadpool_limits

    with threadpool_limits(num_threads, user_api="blas"):
        yield
