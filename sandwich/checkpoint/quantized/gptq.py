"""GPTQ (arXiv 2210.17323) as AutoGPTQ and GPTQModel store it.

Of a matrix (n, k): qweight int32 (k * bits / 32, n), the codes of a column of it in the order of k;
scales (groups, n); qzeros int32 (groups, n * bits / 32), zero points in the order of n, less one in
the first form of the format; g_idx (k,), the group of each input, which with act-order (desc_act)
is anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from sandwich.checkpoint.fields import Fields
from sandwich.checkpoint.quantized.folder import Parts
from sandwich.checkpoint.quantized.grid import SCALE_DTYPES, Grid, form_of, unpack_bits
from sandwich.checkpoint.source import StoredTensor

_FORMATS: Final = {"gptq": 1, "gptq_v2": 0}  # what is added to stored zero points


@dataclass(frozen=True)
class Gptq:
    """What config.json says of all matrices."""

    bits: int
    group: int  # 0: all inputs
    is_symmetric: bool
    has_order: bool
    zero_offset: int

    marks = ("qweight",)
    parts = ("qweight", "qzeros", "scales", "g_idx")

    @staticmethod
    def of(stored: Fields) -> Gptq:
        """Out of `quantization_config`. ModelError for what is not read."""
        bits = stored.integer("bits")
        if bits not in (2, 3, 4, 8):
            raise stored.error("bits", "supported: 2, 3, 4, 8")
        if stored.get("dynamic"):
            raise stored.error("dynamic", "all matrices must have the same bits and groups (null)")
        group = stored.get("group_size")
        if group != -1:
            group = stored.integer("group_size", default=-1)
        form = stored.choice("checkpoint_format", _FORMATS, default="gptq")
        return Gptq(
            bits,
            max(group, 0),
            stored.flag("sym", default=True),
            stored.flag("desc_act"),
            _FORMATS[form],
        )

    def matrix(self, parts: Parts) -> StoredTensor:
        """As Method says."""
        codes = parts.tensor("qweight", "I32")
        scales = parts.tensor("scales", *SCALE_DTYPES)
        if len(codes.shape) != 2 or codes.shape[0] * 32 % self.bits:
            raise parts.error(f"qweight is {list(codes.shape)}; a matrix of words is needed")
        k, n = codes.shape[0] * 32 // self.bits, codes.shape[1]
        group = self.group or k
        groups = -(-k // group)
        parts.check("scales", (groups, n))
        parts.tensor("qzeros", "I32")
        parts.check("qzeros", (groups, -(-n * self.bits // 32)))
        if "g_idx" in parts:
            parts.tensor("g_idx", "I32")
            parts.check("g_idx", (k,))
        form = None
        if not self.has_order:
            form = form_of(self.bits, self.group, scales.dtype, not self.is_symmetric)
        order = ", act-order" if self.has_order else ""
        dtype = f"GPTQ {self.bits} bits{order}"
        return StoredTensor(dtype, (n, k), codes.file, codes.offset, parts.nbytes, form)

    def read(self, parts: Parts, start: int, stop: int) -> Grid:
        """As Method says."""
        words = np.ascontiguousarray(parts.whole("qweight")[:, start:stop].T)
        k = words.shape[1] * 32 // self.bits
        codes = unpack_bits(words, self.bits, k)
        scales = np.ascontiguousarray(parts.floats("scales")[:, start:stop].T)
        return Grid(
            self.bits,
            self.group or k,
            codes,
            scales,
            self._zeros(parts, start, stop),
            self._order(parts, k),
        )

    def _zeros(self, parts: Parts, start: int, stop: int) -> npt.NDArray[np.int32] | None:
        """Zero points of rows [start, stop), none where they are all in the middle."""
        n = parts.tensors["scales"].shape[1]
        stored = unpack_bits(parts.whole("qzeros"), self.bits, n)[:, start:stop]
        zeros = stored.T.astype(np.int32) + np.int32(self.zero_offset)
        largest = int(zeros.max(initial=0))
        if largest > np.iinfo(np.uint8).max:
            raise parts.error(f"has the zero point {largest}, more than a byte holds")
        if not self.is_symmetric:
            return zeros
        middle = 1 << (self.bits - 1)
        if (zeros != middle).any():
            raise parts.error(
                f"has zero points other than {middle}, though config.json calls it symmetric "
                "(set quantization_config.sym to false)"
            )
        return None

    def _order(self, parts: Parts, k: int) -> npt.NDArray[np.int32] | None:
        """The group of each column, none where they come in order."""
        group_of = parts.order("g_idx", parts.tensors["scales"].shape[0])
        if group_of is None or self.has_order:
            return group_of
        if (group_of != np.arange(k) // (self.group or k)).any():
            raise parts.error(
                "g_idx is not in order, though config.json says nothing of an order "
                "(set quantization_config.desc_act to true)"
            )
        return None
