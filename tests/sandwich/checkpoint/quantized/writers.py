"""Quantised matrices in the layouts of other programs, written with NumPy, code by code.

Each writer gives the tensors of a module and the values that they stand for.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

Array = np.ndarray
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the output whose code is the lowest in a word, the next, ...


@dataclass
class Written:
    """The parts of a module, and the matrix (n, k) float32."""

    values: Array
    parts: dict[str, Array | torch.Tensor] = field(default_factory=dict)


def packed(codes: Array, bits: int) -> Array:
    """Each row of codes as a string of bits in int32 words, the lowest bits first."""
    rows, count = codes.shape
    words = np.zeros((rows, -(-count * bits // 32)), np.uint64)
    for index in range(count):
        word, shift = divmod(index * bits, 32)
        value = codes[:, index].astype(np.uint64) << np.uint64(shift)
        words[:, word] |= value & np.uint64(0xFFFFFFFF)
        if shift + bits > 32:
            words[:, word + 1] |= value >> np.uint64(32)
    return words.astype(np.uint32).view(np.int32)


@dataclass
class Rounded:
    """A matrix on a grid: codes (n, k), scales and zeros (n, groups), and the group of a column."""

    codes: Array
    scales: Array
    zeros: Array
    group_of: Array

    @property
    def values(self) -> Array:
        centred = (self.codes - self.zeros[:, self.group_of]).astype(np.float32)
        return centred * self.scales.astype(np.float32)[:, self.group_of]


def rounded(
    weight: Array, bits: int, group: int, symmetric: bool, order: Array | None = None
) -> Rounded:
    """The nearest codes. order (k,): columns in the order in which they are put into groups."""
    n, k = weight.shape
    group_of = np.empty(k, np.int32)
    group_of[np.arange(k) if order is None else order] = np.arange(k) // (group or k)
    groups = group_of.max() + 1
    scales, zeros = np.empty((n, groups), np.float16), np.empty((n, groups), np.int32)
    largest = 2**bits - 1
    for index in range(groups):
        part = weight[:, group_of == index]
        low, high = part.min(axis=1), part.max(axis=1)
        if symmetric:
            scales[:, index] = np.maximum(-low, high) * 2 / largest
            zeros[:, index] = 2 ** (bits - 1)
        else:
            scales[:, index] = (high - low) / largest
            zeros[:, index] = np.clip(np.rint(-low / scales[:, index]), 1, largest)
    wide = scales.astype(np.float32)[:, group_of]
    codes = np.clip(np.rint(weight / wide) + zeros[:, group_of], 0, largest)
    return Rounded(codes.astype(np.uint8), scales, zeros, group_of)


def gptq(
    weight: Array,
    bits: int = 4,
    group: int = 32,
    symmetric: bool = True,
    has_order: bool = False,
    offset: int = 1,
) -> Written:
    order = np.random.default_rng(5).permutation(weight.shape[1]) if has_order else None
    grid = rounded(weight, bits, group, symmetric, order)
    return Written(
        grid.values,
        {
            "qweight": np.ascontiguousarray(packed(grid.codes, bits).T),
            "qzeros": packed((grid.zeros - offset).T, bits),
            "scales": np.ascontiguousarray(grid.scales.T),
            "g_idx": grid.group_of,
        },
    )


def awq(weight: Array, group: int = 64) -> Written:
    grid = rounded(weight, 4, group, symmetric=False)

    def words(codes: Array) -> Array:  # (rows, n) -> (rows, n / 8)
        turned = codes.reshape(len(codes), -1, 8)[:, :, AWQ_ORDER]
        return packed(turned.reshape(len(codes), -1), 4)

    return Written(
        grid.values,
        {
            "qweight": words(grid.codes.T),
            "qzeros": words(grid.zeros.T),
            "scales": np.ascontiguousarray(grid.scales.T),
        },
    )


def packed_integers(
    weight: Array,
    bits: int = 4,
    group: int = 128,
    symmetric: bool = True,
    has_order: bool = False,
) -> Written:
    """compressed-tensors, pack-quantized."""
    order = np.random.default_rng(5).permutation(weight.shape[1]) if has_order else None
    grid = rounded(weight, bits, group, symmetric, order)
    scales = torch.from_numpy(grid.scales).to(torch.bfloat16)
    grid.scales = scales.float().numpy()
    parts: dict[str, Array | torch.Tensor] = {
        "weight_packed": packed(grid.codes, bits),
        "weight_scale": scales,
        "weight_shape": np.array(weight.shape, np.int64),
    }
    if not symmetric:
        zeros = packed(np.ascontiguousarray(grid.zeros.T), bits)
        parts["weight_zero_point"] = np.ascontiguousarray(zeros.T)
    if has_order:
        parts["weight_g_idx"] = grid.group_of
    return Written(grid.values, parts)


def bytes_of_channels(weight: Array, symmetric: bool = True) -> Written:
    """compressed-tensors, int-quantized: a scale for each output."""
    grid = rounded(weight, 8, 0, symmetric)
    scales = torch.from_numpy(grid.scales).to(torch.bfloat16)
    grid.scales = scales.float().numpy()
    parts: dict[str, Array | torch.Tensor] = {
        "weight": (grid.codes.astype(np.int16) - 128).astype(np.int8),
        "weight_scale": scales,
    }
    if not symmetric:
        parts["weight_zero_point"] = (grid.zeros - 128).astype(np.int8)
    return Written(grid.values, parts)


def fp8(weight: Array, shared: tuple[int, int], name: str = "weight_scale") -> Written:
    """FP8; shared: outputs and inputs that have one scale, zeros for one in all."""
    n, k = weight.shape
    rows, columns = (shared[0] or n), (shared[1] or k)
    scales = np.empty((-(-n // rows), -(-k // columns)), np.float32)
    wide = np.empty_like(weight)
    for i, j in np.ndindex(scales.shape):
        part = np.s_[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
        scales[i, j] = np.abs(weight[part]).max() / 448
        wide[part] = scales[i, j]
    codes = torch.from_numpy(weight / wide).to(torch.float8_e4m3fn)
    stored = scales.reshape(()) if shared == (0, 0) else scales
    return Written(codes.float().numpy() * wide, {"weight": codes, name: stored})
