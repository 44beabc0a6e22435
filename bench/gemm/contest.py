"""A problem of the GEMM benchmark, who may take part in it, and our own entry.

A contestant multiplies one weight shape for any M and times itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from bench.driver import BenchmarkError
from codegen.gemm.check import as_read, error_beyond_rounding
from codegen.gemm.program import GemmProgram, GemmSpec
from codegen.layout.arrays import bf16_from_float32, to_storage
from codegen.layout.panels import PackedMatrix, PanelLayout
from codegen.spec import TileRanges, WeightFormat
from platforms.memory import Arena, arena_nbytes
from sandwich.executor.launcher import Launcher

RANDOM_SCALE = 2.0**-12  # of random codes; a power of two, which every type of scales holds
RANDOM_BLOCK = 1 << 20  # values; weights repeat them, because speed does not depend on values
CHECK_COLUMNS = 48
SLOW_SECONDS = 0.3  # a call that takes so long is not repeated without need


@dataclass(frozen=True)
class Problem:
    """C[m, n] = A[m, k] W[n, k]^T for m up to max_rows, over num_copies copies of W.

    The copies together do not fit into the caches, so every call finds its weights in memory.
    """

    layout: PanelLayout
    num_copies: int
    max_rows: int

    @property
    def format(self) -> WeightFormat:
        return self.layout.format

    @property
    def weight_bytes(self) -> int:
        """Bytes of one copy with its scales, without columns that are padding."""
        return self.layout.nbytes * self.layout.n // self.layout.n_padded


class RefusedError(Exception):
    """A contestant cannot multiply this problem here, with these rows: its own words."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error).strip().splitlines()[0] if str(error).strip() else repr(error))


class Contestant(ABC):
    """Multiplies one Problem; `seconds` is called between others' turns."""

    name: ClassVar[str]

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.setting = ""
        self._copy = 0

    @abstractmethod
    def prepare(self, num_rows: int) -> float:
        """Choose the best setting for this M; about how many seconds a call takes.

        Raises RefusedError if there is none.
        """

    @abstractmethod
    def seconds(self, num_calls: int) -> float:
        """The time of `num_calls` calls with the M of `prepare`, each with the next copy."""

    @abstractmethod
    def close(self) -> None:
        """End its threads and let go of its memory."""

    def _next_copy(self) -> int:
        self._copy = (self._copy + 1) % self.problem.num_copies
        return self._copy


class Ours(Contestant):
    """The generator's kernel; `tiles` as in GemmSpec."""

    name = "sandwich"

    def __init__(
        self,
        problem: Problem,
        isa: str,
        cpus: Sequence[int],
        tiles: TileRanges,
    ) -> None:
        super().__init__(problem)
        spec = GemmSpec(isa, problem.layout, problem.num_copies, len(cpus), problem.max_rows, tiles)
        arguments = spec.arguments()
        self._arena = Arena(arena_nbytes([s.nbytes for s in arguments.values()]), "gemm")
        self._buffers = {n: self._arena.array(s.shape, s.dtype) for n, s in arguments.items()}
        self._fill()
        self._x = random_activations(problem)
        self._program = GemmProgram(spec, self._buffers)
        self._program.write_a(self._x)
        self._spec = spec
        self._launcher = Launcher("gemm", cpus)
        self._num_rows = 0

    def prepare(self, num_rows: int) -> float:
        """Nothing to choose; the first call is the check against NumPy."""
        self._num_rows = num_rows
        first = self._launcher.run(lambda: self._program.run(num_rows, 0)).seconds
        self._check(num_rows)
        return first if first > SLOW_SECONDS else self.seconds(1)

    def seconds(self, num_calls: int) -> float:
        def calls() -> None:
            for _ in range(num_calls):
                self._program.run(self._num_rows, self._next_copy())

        return self._launcher.run(calls).seconds

    def close(self) -> None:
        self._launcher.close()
        self._buffers.clear()
        self._arena.close()

    def _fill(self) -> None:
        """Random weights; codes are written as the bytes of words, whatever their order."""
        words = self._buffers["w"]
        if not self.problem.format.is_quantized:
            fill_random(words.view(self.problem.layout.value_dtype))
            return
        fill_random_bytes(words.view(np.uint8))
        scales = self._buffers["w_scales"]
        scales[:] = to_storage(
            np.full(1, RANDOM_SCALE, np.float32), self.problem.format.scale_dtype
        )

    def _check(self, num_rows: int) -> None:
        """Compare some rows and columns with NumPy; BenchmarkError if one is wrong."""
        layout = self.problem.layout
        rows = np.unique((0, num_rows // 2, num_rows - 1))
        columns = np.unique(np.linspace(0, layout.n - 1, CHECK_COLUMNS).astype(np.intp))
        a = as_read(self._spec, self._x[rows])
        first = (self._buffers[name][0] for name in ("w", "w_scales") if name in self._buffers)
        weights = layout.read_rows(PackedMatrix(*first), columns)
        product = self._buffers["out"][np.ix_(rows, columns)]
        error = error_beyond_rounding(product, a, weights)
        if error is not None:
            raise BenchmarkError(
                f"the {layout.format.name} GEMM of {num_rows} x {layout.n} x {layout.k} is wrong: "
                f"it differs from NumPy by up to {error:.3g}"
            )


def random_activations(problem: Problem) -> npt.NDArray[np.float32]:
    """A, (max_rows, k) float32; the same for every contestant."""
    rng = np.random.default_rng(1)
    return rng.standard_normal((problem.max_rows, problem.layout.k), np.float32)


def fill_random(values: npt.NDArray[Any]) -> None:
    """Fill float32 or bf16 (uint16) with weights of a usual size; large arrays repeat a block."""
    flat = values.reshape(-1)
    rng = np.random.default_rng(0)
    block: npt.NDArray[Any] = rng.standard_normal(min(flat.size, RANDOM_BLOCK), np.float32) * 0.02
    if flat.dtype == np.uint16:
        block = bf16_from_float32(block)
    for start in range(0, flat.size, block.size):
        part = flat[start : start + block.size]
        part[:] = block[: part.size]


def fill_random_bytes(values: npt.NDArray[Any]) -> None:
    """Fill bytes with codes from 1 to 255, which every 8-bit and 4-bit format knows."""
    flat = values.reshape(-1)
    block = np.random.default_rng(0).integers(1, 256, min(flat.size, RANDOM_BLOCK), np.uint8)
    for start in range(0, flat.size, block.size):
        part = flat[start : start + block.size]
        part[:] = block[: part.size].view(part.dtype)
