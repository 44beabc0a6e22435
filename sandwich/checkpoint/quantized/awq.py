"""AWQ (arXiv 2306.00978) as AutoAWQ stores it for its GEMM kernels.

Of a matrix (n, k): qweight int32 (k, n / 8), qzeros int32 (groups, n / 8), scales (groups, n).
A word has the 4-bit codes of eight neighbouring outputs, those of even place before the odd ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from codegen.layout.quantize import Codes
from sandwich.checkpoint.fields import Fields
from sandwich.checkpoint.quantized.folder import Parts
from sandwich.checkpoint.quantized.grid import SCALE_DTYPES, Grid, form_of, unpack_bits
from sandwich.checkpoint.source import StoredTensor

BITS: Final = 4
PER_WORD: Final = 32 // BITS
# Which code of a word is that of its first output, of its second, ...
_PLACES: Final = np.array([0, 4, 1, 5, 2, 6, 3, 7])


def _unpack(words: npt.NDArray[np.int32]) -> Codes:
    """Codes (rows, 8 w) in the order of the outputs, of words (rows, w)."""
    codes = unpack_bits(words, BITS, words.shape[1] * PER_WORD)
    return codes.reshape(len(words), -1, PER_WORD)[:, :, _PLACES].reshape(len(words), -1)


@dataclass(frozen=True)
class Awq:
    """What config.json says of all matrices."""

    group: int  # 0: all inputs
    has_zeros: bool

    marks = ("qweight",)
    parts = ("qweight", "qzeros", "scales")

    @staticmethod
    def of(stored: Fields) -> Awq:
        """Out of `quantization_config`. ModelError for what is not read."""
        for key in ("bits", "w_bit"):
            if stored.integer(key, default=BITS) != BITS:
                raise stored.error(key, f"supported: {BITS}")
        version = stored.get("version")
        if version is not None and str(version).lower() != "gemm":
            raise stored.error("version", "supported: gemm; other layouts are those of one kernel")
        key = "group_size" if stored.has("group_size") else "q_group_size"
        group = stored.get(key)
        if group != -1:
            group = stored.integer(key, default=128)
        return Awq(max(group, 0), stored.flag("zero_point", default=True))

    def matrix(self, parts: Parts) -> StoredTensor:
        """As Method says."""
        codes = parts.tensor("qweight", "I32")
        scales = parts.tensor("scales", *SCALE_DTYPES)
        if len(codes.shape) != 2:
            raise parts.error(f"qweight is {list(codes.shape)}; a matrix of words is needed")
        k, n = codes.shape[0], codes.shape[1] * PER_WORD
        group = self.group or k
        parts.check("scales", (-(-k // group), n))
        if self.has_zeros:
            parts.tensor("qzeros", "I32")
            parts.check("qzeros", (-(-k // group), n // PER_WORD))
        form = form_of(BITS, self.group, scales.dtype, self.has_zeros)
        return StoredTensor("AWQ 4 bits", (n, k), codes.file, codes.offset, parts.nbytes, form)

    def read(self, parts: Parts, start: int, stop: int) -> Grid:
        """As Method says."""
        first = start // PER_WORD
        words = slice(first, -(-stop // PER_WORD))
        wanted = slice(start - first * PER_WORD, stop - first * PER_WORD)
        packed = parts.whole("qweight")
        codes = np.ascontiguousarray(_unpack(packed[:, words])[:, wanted].T)
        scales = np.ascontiguousarray(parts.floats("scales")[:, start:stop].T)
        zeros = None
        if self.has_zeros:
            zeros = _unpack(parts.whole("qzeros")[:, words])[:, wanted].T.astype(np.int32)
        return Grid(BITS, self.group or len(packed), codes, scales, zeros)
