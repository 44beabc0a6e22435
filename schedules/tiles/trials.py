"""Trials of tiles: one GEMM with one tile, compiled, timed on the cores of a plan, and checked.

Programs are compiled ahead, several at a time, and kept in the cache of compiled programs. Knows
nothing of how trials are chosen.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from codegen.cache import ProgramCache
from codegen.compile import load, lower, object_code, pin_pool, tensor
from codegen.gemm.check import as_read, error_beyond_rounding
from codegen.gemm.program import NAME, GemmProgram, GemmSpec, gemm_module
from codegen.layout.arrays import TensorSpec, bf16_from_float32
from codegen.layout.panels import PackedMatrix, PanelLayout
from codegen.spec import BLOCK_ASPECT, GemmTile
from platforms.isa import IsaRow, isa_row
from platforms.memory import Arena, arena_nbytes
from schedules.tiles.trial import Trial

WEIGHTS_PER_CACHE = 6  # the copies of a slice take so many times the bytes of the last caches
MIN_WEIGHTS_BYTES = 192 << 20
SAMPLE_SECONDS = 0.003  # of one sample, or one call if that takes longer
# Two bytes of any buffer: an ordinary number as bf16, fp16, half a float32, bytes or nibbles.
_LOWEST, _HIGHEST = 0x3C00, 0x3CFF


class TrialRunner:
    """Compiles and times trials, from a pinned thread for each set of CPUs; not thread-safe.

    llc_bytes: of the last-level caches together. Owns its memory and its threads until `close`.
    """

    def __init__(self, llc_bytes: int, cache_dir: Path) -> None:
        self._weights_bytes = max(WEIGHTS_PER_CACHE * llc_bytes, MIN_WEIGHTS_BYTES)
        self._cache = ProgramCache(cache_dir)
        self._buffers: dict[tuple[str, TensorSpec], npt.NDArray[Any]] = {}
        self._weights: npt.NDArray[np.uint8] | None = None
        self._programs: dict[Trial, Callable[..., None]] = {}
        self._num_copies: dict[Trial, int] = {}
        self._num_calls: dict[Trial, int] = {}
        self._copy = 0
        # A pool belongs to the thread that made it, so its CPUs have one thread for every call.
        self._threads: dict[tuple[int, ...], ThreadPoolExecutor] = {}

    def close(self) -> None:
        """End the threads and let go of the memory."""
        for thread in self._threads.values():
            thread.shutdown()
        self._programs.clear()
        self._buffers.clear()
        self._weights = None

    def prepare(self, trials: Iterable[Trial]) -> None:
        """Compile those that are not compiled yet, several at a time, and call each once."""
        new = [trial for trial in dict.fromkeys(trials) if trial not in self._programs]
        specs = [self._spec(trial) for trial in new]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            codes = list(pool.map(self._compile, specs))
        for trial, spec, code in zip(new, specs, codes, strict=True):
            self._programs[trial] = self._bound(load(code, NAME), spec, self._thread(trial.cpus))
            self._num_copies[trial] = spec.num_copies
            self._run(trial, 1)
            once = self._run(trial, 1)
            self._num_calls[trial] = max(1, math.ceil(SAMPLE_SECONDS / once))

    def seconds(self, trial: Trial) -> float:
        """One sample of a prepared trial: the mean time of a call over some milliseconds."""
        calls = self._num_calls[trial]
        return self._run(trial, calls) / calls

    def forget(self) -> None:
        """Let go of all prepared programs."""
        self._programs.clear()

    def _run(self, trial: Trial, num_calls: int) -> float:
        program, num_copies = self._programs[trial], self._num_copies[trial]

        def calls() -> float:
            started = time.perf_counter()
            for _ in range(num_calls):
                self._copy += 1
                program(self._copy % num_copies)
            return time.perf_counter() - started

        return self._thread(trial.cpus).submit(calls).result()

    def _thread(self, cpus: tuple[int, ...]) -> ThreadPoolExecutor:
        if cpus not in self._threads:
            self._threads[cpus] = ThreadPoolExecutor(1, thread_name_prefix="trials")
            self._threads[cpus].submit(pin_pool, list(cpus)).result()
        return self._threads[cpus]

    def _spec(self, trial: Trial) -> GemmSpec:
        is_resident = trial.layout.n == trial.layout.panel
        num_copies = 1 if is_resident else -(-self._weights_bytes // trial.layout.nbytes)
        ranges = ((trial.rows, trial.tile),)
        return GemmSpec(
            isa=trial.isa,
            layout=trial.layout,
            num_copies=num_copies,
            num_cores=len(trial.cpus),
            max_rows=trial.rows,
            tiles=ranges,
            has_fixed_rows=True,
        )

    def _compile(self, spec: GemmSpec) -> bytes:
        isa = isa_row(spec.isa)
        key = self._cache.key(spec, isa)
        return self._cache.get(key, lambda: object_code(lower(gemm_module(spec), isa)))

    def _bound(
        self, function: Any, spec: GemmSpec, toucher: ThreadPoolExecutor
    ) -> Callable[[int], None]:
        arrays = [self._array(name, of, toucher) for name, of in spec.arguments().items()]
        tensors = [tensor(array) for array in arrays]
        return lambda copy: function(spec.max_rows, copy, *tensors)

    def _array(self, name: str, of: TensorSpec, toucher: ThreadPoolExecutor) -> npt.NDArray[Any]:
        """Memory for an argument, first touched by `toucher`; trials share that of the weights."""
        if name != "w":
            if (name, of) not in self._buffers:
                filled = toucher.submit(_filled, of.nbytes, name).result()
                self._buffers[name, of] = filled.view(of.dtype).reshape(of.shape)
            return self._buffers[name, of]
        if self._weights is None or self._weights.nbytes < of.nbytes:
            self._weights = toucher.submit(_filled, of.nbytes, name).result()
        return self._weights[: of.nbytes].view(of.dtype).reshape(of.shape)


def _filled(nbytes: int, name: str) -> npt.NDArray[np.uint8]:
    """64-byte aligned memory full of ordinary numbers, whatever they are read as."""
    even = nbytes + nbytes % 2
    array = Arena(even, name).array((even,), np.uint8)
    block = np.random.default_rng(0).integers(_LOWEST, _HIGHEST, 1 << 16).astype(np.uint16)
    words = array.view(np.uint16)
    for start in range(0, len(words), len(block)):
        part = words[start : start + len(block)]
        part[:] = block[: len(part)]
    return array[:nbytes]


def is_right(isa: IsaRow, like: PanelLayout, tile: GemmTile) -> bool:
    """Whether the kernel with `tile` equals NumPy on a small problem with an edge on every side.

    It has the format and the panels of `like`, a full and a cut panel, K beyond a block and not a
    whole word, rows around the tile's, and more than one block of them if the tile takes blocks.
    """
    k = (tile.kc or 4 * like.kr * tile.k_unroll) + 3 * like.kr + 1
    layout = replace(like, n=like.panel + like.lanes + 1, k=k)
    block = 0 if tile.order == "panels" else BLOCK_ASPECT * like.panel
    max_rows = block + 2 * tile.mr + 1
    spec = GemmSpec(isa.name, layout, 1, 1, max_rows, ((max_rows, tile),))
    arguments = spec.arguments()
    arena = Arena(arena_nbytes([s.nbytes for s in arguments.values()]), "check")
    buffers = {name: arena.array(s.shape, s.dtype) for name, s in arguments.items()}
    rng = np.random.default_rng(0)
    matrix = PackedMatrix(
        *(buffers[n][0] for n in ("w", "w_scales", "w_zero_points") if n in buffers)
    )
    weights = rng.standard_normal((layout.n, k), np.float32)
    halves = layout.value_dtype == np.uint16
    layout.pack_rows(bf16_from_float32(weights) if halves else weights, 0, matrix)
    a = rng.standard_normal((max_rows, k), np.float32)
    program = GemmProgram(spec, buffers)
    program.write_a(a)
    a, unpacked = as_read(spec, a), layout.unpack(matrix)
    for rows in sorted({1, tile.mr, tile.mr + 1, max_rows}):
        buffers["out"][:] = np.nan
        program.run(rows, 0)
        product = buffers["out"][:rows, : layout.n]
        if error_beyond_rounding(product, a[:rows], unpacked) is not None:
            return False
    return True
