"""Peers of the GEMM benchmark in torch: oneDNN, and what torch has for quantised weights."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy.typing as npt

from bench.gemm.contest import RANDOM_SCALE, random_activations
from bench.gemm.peer import Peer, pin_workers

Calls = Iterator[tuple[str, Callable[[int], object]]]


class TorchPeer(Peer):
    """torch with as many threads as there are CPUs, A rounded to `a_dtype`."""

    def _start(self, cpus: list[int]) -> bool:
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch's own arrays on huge pages
        import torch

        self._torch = torch
        torch.set_num_threads(len(cpus))
        self._x = torch.from_numpy(random_activations(self.problem))
        self._prepare()
        a, b = torch.ones((512, 2048)), torch.ones((2048, 2048))
        return pin_workers(cpus, lambda: a @ b)

    @abstractmethod
    def _prepare(self) -> None:
        """Give torch the weights."""

    def _shared(self, array: npt.NDArray[Any], dtype: Any) -> Any:
        return self._torch.from_numpy(array).view(dtype)

    def _timed(self, num_calls: int) -> float:
        with self._torch.inference_mode():
            return super()._timed(num_calls)


class OneDnn(TorchPeer):
    """torch.nn.functional.linear and what torch's compiler makes of it, with packed weights.

    For float32 torch itself may choose MKL.
    """

    name = "onednn"
    formats = ("bfloat16", "float32")
    num_forms = 3

    def _prepare(self) -> None:
        dtype = getattr(self._torch, self.problem.format.dtype)
        self._rows = self._shared(self._weights, dtype)
        self._columns = self._rows.view(-1, self.problem.layout.k, self.problem.layout.n)
        self._x = self._x.to(dtype)

    def close(self) -> None:
        del self._rows, self._columns
        super().close()

    def _settings(self, num_rows: int) -> Calls:
        torch, x, copies = self._torch, self._x[:num_rows], range(self.problem.num_copies)
        rows, columns = self._rows, self._columns
        yield "linear", lambda i: torch.nn.functional.linear(x, rows[i])
        yield "matmul", lambda i: x @ columns[i]
        if self.problem.format.dtype == "float32" and torch.backends.mkl.is_available():
            mkl = [torch.ops.mkl._mkl_reorder_linear_weight(rows[i], num_rows) for i in copies]
            yield (
                "mkl packed",
                lambda i: torch.ops.mkl._mkl_linear(x, mkl[i], rows[i], None, num_rows),
            )
        if torch.backends.mkldnn.is_available():
            # Last: oneDNN refuses bf16 where the CPU has no instructions for it.
            packed = [torch.ops.mkldnn._reorder_linear_weight(rows[i], num_rows) for i in copies]
            linear = torch.ops.mkldnn._linear_pointwise
            yield "packed", lambda i: linear(x, packed[i], None, "none", [], "")


def _nth(call: Callable[[Any], object], items: list[Any], i: int) -> object:
    return call(items[i])


class OneDnnInt8(TorchPeer):
    """Dynamically quantised linear layers of torch, with packed weights, by oneDNN and by FBGEMM.

    They round A to int8 in the call, which our kernel finds done; `_int_mm` does not, and leaves
    out the scales too.
    """

    name = "onednn"
    formats = ("int8 x int8",)
    num_forms = 3

    def _prepare(self) -> None:
        torch = self._torch
        rows = self._shared(self._weights, torch.int8)
        scales = torch.full((self.problem.layout.n,), RANDOM_SCALE, dtype=torch.float64)
        zeros = torch.zeros(self.problem.layout.n, dtype=torch.int64)
        engines = [e for e in ("onednn", "x86") if e in torch.backends.quantized.supported_engines]
        self._packed: dict[str, list[Any]] = {}
        for engine in engines:
            torch.backends.quantized.engine = engine
            self._packed[engine] = [
                torch.ops.quantized.linear_prepack(
                    torch._make_per_channel_quantized_tensor(copy, scales, zeros, 0), None
                )
                for copy in rows
            ]
        self._rows = rows
        self._int8_x = self._x.clamp(-1, 1).mul(127).to(torch.int8)

    def close(self) -> None:
        del self._rows
        self._packed.clear()
        super().close()

    def _settings(self, num_rows: int) -> Calls:
        torch, x, int8_x, rows = (
            self._torch,
            self._x[:num_rows],
            self._int8_x[:num_rows],
            self._rows,
        )
        dynamic = torch.ops.quantized.linear_dynamic
        for engine, packed in self._packed.items():
            yield f"{engine} dynamic", partial(_nth, lambda p: dynamic(x, p, False), packed)
        yield "int_mm", lambda i: torch._int_mm(int8_x, rows[i].t())


class TorchInt8Weights(TorchPeer):
    """torch's kernel for bf16 activations and int8 weights with a scale for each output channel."""

    name = "onednn"
    formats = ("int8 x float",)
    num_forms = 1

    def _prepare(self) -> None:
        self._rows = self._shared(self._weights, self._torch.int8)
        self._x = self._x.to(self._torch.bfloat16)

    def close(self) -> None:
        del self._rows
        super().close()

    def _settings(self, num_rows: int) -> Calls:
        torch, x, rows = self._torch, self._x[:num_rows], self._rows
        scales = torch.full((self.problem.layout.n,), RANDOM_SCALE, dtype=torch.bfloat16)
        yield "int8pack", lambda i: torch.ops.aten._weight_int8pack_mm(x, rows[i], scales)


class TorchInt4(TorchPeer):
    """torch's kernel for bf16 activations and int4 weights in groups."""

    name = "onednn"
    formats = ("int4-g32 x int8",)
    num_forms = 6  # one copy at a time is widened to int32 before it is packed

    def _prepare(self) -> None:
        torch, layout = self._torch, self.problem.layout
        codes = self._shared(self._weights, torch.int8)
        pack = torch.ops.aten._convert_weight_to_int4pack_for_cpu
        self._packed = [pack(copy.to(torch.int32) & 15, 1) for copy in codes]
        shape = (layout.k // layout.format.group, layout.n, 2)
        self._scales_and_zeros = torch.full(shape, RANDOM_SCALE, dtype=torch.bfloat16)
        self._x = self._x.to(torch.bfloat16)

    def close(self) -> None:
        self._packed.clear()
        super().close()

    def _settings(self, num_rows: int) -> Calls:
        multiply = self._torch.ops.aten._weight_int4pack_mm_for_cpu
        x, packed, scales = self._x[:num_rows], self._packed, self._scales_and_zeros
        group = self.problem.format.group
        yield "int4pack", lambda i: multiply(x, packed[i], group, scales)
