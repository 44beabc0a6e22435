"""The libraries that the GEMM benchmark compares with, by name and weight format."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from bench.gemm.contest import random_activations
from bench.gemm.metaschedule import MetaSchedule
from bench.gemm.peer import Peer, pin_workers
from bench.gemm.torch_kernels import OneDnn, OneDnnInt8, TorchInt4, TorchInt8Weights
from codegen.spec import WeightFormat


class OpenBlas(Peer):
    """numpy.matmul, float32, into an array that is there already."""

    name = "openblas"
    formats = ("float32",)
    num_forms = 1

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


# A name of `--peers` stands for a library; which of its kernels is meant, the format decides.
PEERS: dict[str, tuple[type[Peer], ...]] = {
    "onednn": (OneDnn, OneDnnInt8, TorchInt8Weights, TorchInt4),
    "openblas": (OpenBlas,),
    "metaschedule": (MetaSchedule,),
}
DEFAULT_PEERS = ("onednn", "openblas")  # those that need no minutes for a shape


def peer_for(name: str, weights: WeightFormat) -> type[Peer] | None:
    """The kernels of a library for a weight format, if it has any."""
    return next((peer for peer in PEERS[name] if weights.name in peer.formats), None)


def missing_library(peer: str) -> str | None:
    """What must be installed for this peer, or None."""
    is_missing = peer == "onednn" and importlib.util.find_spec("torch") is None
    return "torch" if is_missing else None


@contextmanager
def num_blas_threads(num_threads: int) -> Iterator[None]:
    """Limit NumPy's BLAS if threadpoolctl is installed; else it has one thread per CPU."""
    if importlib.util.find_spec("threadpoolctl") is None:
        yield
        return
    from threadpoolctl import threadpool_limits

    with threadpool_limits(num_threads, user_api="blas"):
        yield
