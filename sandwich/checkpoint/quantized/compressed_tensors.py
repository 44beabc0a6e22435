"""compressed-tensors, as llm-compressor writes it: one file format for several kinds of codes.

pack-quantized: weight_packed int32 (n, words), a row's codes in the order of k, each plus half
their range; weight_shape, (n, k); weight_scale (n, groups); weight_zero_point int32 (words of n,
groups) where the grid is not symmetric; weight_g_idx (k,) where groups are in an order.
int-quantized: weight int8 (n, k), weight_scale and weight_zero_point int8 (n, groups).
float-quantized: weight in FP8 with its weight_scale. Each matrix says by its parts which it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from codegen.layout.arrays import Floats, widen
from sandwich.checkpoint.fields import Fields
from sandwich.checkpoint.quantized.folder import Parts
from sandwich.checkpoint.quantized.fp8 import DTYPE, fp8_matrix, read_block, read_fp8
from sandwich.checkpoint.quantized.grid import BITS, SCALE_DTYPES, Grid, form_of, unpack_bits
from sandwich.checkpoint.source import StoredTensor

_FORMATS: Final = (
    *("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision"),
    "dense",
)
_BYTE: Final = 8


def _bits_of(num_words: int, k: int) -> int:
    """Bits of a code, if so many words hold k of them; 0 if none fits."""
    return next((bits for bits in BITS if -(-k * bits // 32) == num_words), 0)


@dataclass(frozen=True)
class CompressedTensors:
    """What config.json says of all matrices."""

    block: tuple[int, int] = (0, 0)  # outputs and inputs that share a scale of FP8 weights
    groups: frozenset[int] = frozenset()  # inputs that share a scale of integers
    has_int8_inputs: bool = False  # products are of int8 weights and int8 inputs

    marks = ("weight_scale",)
    parts = (
        *("weight", "weight_packed", "weight_shape", "weight_scale", "weight_zero_point"),
        *("weight_g_idx", "input_scale", "input_zero_point"),
    )

    @staticmethod
    def of(stored: Fields) -> CompressedTensors:
        """Out of `quantization_config`. ModelError for what is not read."""
        stored.choice("format", _FORMATS, default="dense")
        sparsity = stored.object("sparsity_config")
        sparsity.choice("format", ("dense",), default="dense")
        blocks, sizes, inputs = set(), set(), []
        groups = stored.object("config_groups")
        for name in groups:
            group = groups.object(name)
            group.choice("format", _FORMATS, default="dense")
            weights = group.object("weights")
            blocks.add(read_block(weights, "block_structure"))
            sizes.add(weights.integer("group_size", default=0, minimum=-1))
            of_inputs = group.object("input_activations")
            inputs.append((of_inputs.get("num_bits"), of_inputs.get("type")))
        if len(blocks) > 1:
            raise stored.error("config_groups", "blocks of one size are needed")
        return CompressedTensors(
            block=next(iter(blocks), (0, 0)),
            groups=frozenset(sizes),
            has_int8_inputs=bool(inputs) and set(inputs) == {(_BYTE, "int")},
        )

    def matrix(self, parts: Parts) -> StoredTensor:
        """As Method says."""
        if "weight_packed" in parts:
            return self._packed(parts)
        codes = parts.tensor("weight", "I8", DTYPE)
        if codes.dtype == DTYPE:
            return fp8_matrix(parts, "weight_scale", self.block)
        if len(codes.shape) != 2:
            raise parts.error(f"weight is {list(codes.shape)}; a matrix is needed")
        if "weight_zero_point" in parts:
            parts.tensor("weight_zero_point", "I8")
        return self._grid(parts, codes, codes.shape, _BYTE)

    def _packed(self, parts: Parts) -> StoredTensor:
        words = parts.tensor("weight_packed", "I32")
        parts.tensor("weight_shape", "I64", "I32")
        parts.check("weight_shape", (2,))
        n, k = (int(size) for size in parts.whole("weight_shape"))
        bits = _bits_of(words.shape[-1], k)
        if words.shape != (n, -(-k * bits // 32)):
            found = list(words.shape)
            raise parts.error(f"weight_packed is {found}, which does not fit [{n}, {k}]")
        if "weight_zero_point" in parts:
            parts.tensor("weight_zero_point", "I32")
        if "weight_g_idx" in parts:
            parts.tensor("weight_g_idx", "I32", "I64")
            parts.check("weight_g_idx", (k,))
        return self._grid(parts, words, (n, k), bits)

    def _grid(
        self, parts: Parts, codes: StoredTensor, shape: tuple[int, ...], bits: int
    ) -> StoredTensor:
        """A matrix of integer codes; ModelError unless scales and zero points fit it."""
        n, k = shape
        scales = parts.tensor("weight_scale", *SCALE_DTYPES)
        groups = scales.shape[1] if len(scales.shape) == 2 else 1
        if scales.shape not in ((), (1,), (n,), (n, groups)) or groups < 1 or k % groups:
            raise parts.error(f"weight_scale is {list(scales.shape)}, no match for {list(shape)}")
        if "weight_zero_point" in parts:
            is_packed = "weight_packed" in parts
            wanted = (-(-n * bits // 32), groups) if is_packed else scales.shape
            parts.check("weight_zero_point", wanted)
        form = None
        if "weight_g_idx" not in parts:
            has_zeros = "weight_zero_point" in parts
            is_w8a8 = self.has_int8_inputs and bits == _BYTE and groups == 1
            activations = "int8" if is_w8a8 else "float"
            group = k // groups if groups > 1 or k in self.groups else 0
            form = form_of(bits, group, scales.dtype, has_zeros, activations)
        order = ", act-order" if "weight_g_idx" in parts else ""
        dtype = f"compressed-tensors {bits} bits{order}"
        return StoredTensor(dtype, (n, k), codes.file, codes.offset, parts.nbytes, form)

    def read(self, parts: Parts, start: int, stop: int) -> Grid | Floats:
        """As Method says."""
        if "weight_packed" not in parts and parts.tensors["weight"].dtype == DTYPE:
            return read_fp8(parts, "weight_scale", self.block, start, stop)
        if is_packed := "weight_packed" in parts:
            k = int(parts.whole("weight_shape")[1])
            words = parts.rows("weight_packed", start, stop)
            bits = _bits_of(words.shape[1], k)
            codes = unpack_bits(words, bits, k)
        else:
            bits = _BYTE
            codes = parts.rows("weight", start, stop).view(np.uint8) ^ np.uint8(0x80)
        scales = widen(self._of_rows(parts, "weight_scale", start, stop))
        zeros = None
        if "weight_zero_point" in parts and is_packed:
            n = int(parts.whole("weight_shape")[0])
            columns = np.ascontiguousarray(parts.whole("weight_zero_point").T)
            zeros = unpack_bits(columns, bits, n).T[start:stop].astype(np.int32)
        elif "weight_zero_point" in parts:
            stored = self._of_rows(parts, "weight_zero_point", start, stop)
            zeros = stored.astype(np.int32) + np.int32(128)
        group = codes.shape[1] // scales.shape[1]
        return Grid(bits, group, codes, scales, zeros, parts.order("weight_g_idx", scales.shape[1]))

    @staticmethod
    def _of_rows(parts: Parts, part: str, start: int, stop: int) -> npt.NDArray[np.generic]:
        """Rows [start, stop) of one value, or of values, for each output; (rows, groups)."""
        whole = parts.whole(part)
        whole = whole.reshape(len(whole), -1)
        if len(whole) == 1:
            return np.repeat(whole, stop - start, axis=0)
        return np.ascontiguousarray(whole[start:stop])
