"""The one writer of packed weights: matrices in N-panels, in every format.

Values and NumPy only. Words are float32, int32 (a bf16 pair, four bytes, eight nibbles) or int16
(two bytes).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from codegen.layout.arrays import Array, Floats, from_storage, storage_dtype, to_storage, widen
from codegen.layout.quantize import Codes, QuantizedRows, quantize
from codegen.spec import WeightFormat

STAGING_SKEW = 16  # words added to a staging row, so that a panel's rows do not share one L1 set


@dataclass(frozen=True)
class PackedMatrix:
    """The arrays of one packed matrix.

    words (num_words,) of word_dtype; for quantised formats scales (num_scales,) of scale_dtype and,
    if the format has them, zero_points (num_scales,) uint8 or minima (num_scales,) of scale_dtype.
    """

    words: Array
    scales: Array | None = None
    zero_points: Array | None = None
    minima: Array | None = None


@dataclass(frozen=True)
class PanelLayout:
    """A (n, k) weight matrix (out x in features, as checkpoints store it) packed in N-panels.

    Words are ordered [panel][k / kr][width][kr], scales, zero points and minima
    [panel][group][width]: the columns of one panel lie side by side for every step of k. Every
    panel is `panel` wide except the last, which is as wide as what remains of `n_padded` (a
    multiple of `lanes`). K is padded to whole words and whole groups.
    """

    n: int
    k: int
    format: WeightFormat
    panel: int  # columns, a multiple of lanes
    lanes: int  # fp32 lanes of a vector

    def __post_init__(self) -> None:
        assert min(self.n, self.k, self.panel, self.lanes) > 0, self
        assert self.panel % self.lanes == 0, self

    @property
    def kr(self) -> int:
        """Consecutive k values that travel in one word."""
        if self.format.dtype == "int8":
            return 4 if self.format.has_int8_activations else 2
        return 32 // self.format.bits

    @property
    def n_padded(self) -> int:
        return -(-self.n // self.lanes) * self.lanes

    @property
    def k_words(self) -> int:
        return self.num_groups * self.group_words

    @property
    def k_padded(self) -> int:
        """Values of a row of activations that are read; those from k on must be zero."""
        return self.k_words * self.kr

    @property
    def num_groups(self) -> int:
        """Scales of one output channel."""
        return -(-self.k // self.format.group) if self.format.group else 1

    @property
    def group_words(self) -> int:
        """Words of one column that share a scale."""
        return (self.format.group or -(-self.k // self.kr) * self.kr) // self.kr

    @property
    def num_panels(self) -> int:
        return -(-self.n_padded // self.panel)

    @property
    def num_words(self) -> int:
        return self.n_padded * self.k_words

    @property
    def num_scales(self) -> int:
        """Scales of the matrix, and zero points or minima; for quantised formats."""
        return self.n_padded * self.num_groups

    @property
    def nbytes(self) -> int:
        """Bytes of the packed matrix with its scales, zero points and minima."""
        total = self.num_words * self.word_dtype.itemsize
        if self.format.is_quantized:
            floats = (1 + self.format.has_minima) * self.scale_dtype.itemsize
            total += self.num_scales * (floats + self.format.has_zero_points)
        return total

    @property
    def word_dtype(self) -> np.dtype[np.generic]:
        if self.format.dtype == "float32":
            return np.dtype(np.float32)
        return np.dtype(np.int16 if self.kr * self.format.bits == 16 else np.int32)

    @property
    def value_dtype(self) -> np.dtype[np.generic]:
        """How one value of a row to pack is held: bf16 as its bit pattern, what is to be quantised
        as float32.
        """
        return np.dtype(np.uint16 if self.format.dtype == "bfloat16" else np.float32)

    @property
    def scale_dtype(self) -> np.dtype[np.generic]:
        """How one scale or minimum is held: 16-bit floats as their bit patterns."""
        return storage_dtype(self.format.scale_dtype)

    def block_words(self, kc: int) -> int:
        """Words of a column in a K block of at most `kc` values (0: all), whole groups of them."""
        least = self.group_words if self.format.group else 1
        words = max(kc // self.kr // least, 1) * least if kc else self.k_words
        return min(words, self.k_words)

    def num_k_blocks(self, kc: int) -> int:
        """Blocks of at most `kc` values that K is cut into."""
        return -(-self.k_words // self.block_words(kc))

    def panel_width(self, index: int) -> int:
        return min(self.panel, self.n_padded - index * self.panel)

    def panel_words(self, words: Array, index: int) -> Array:
        """View of one panel of a packed matrix, (k_words, width)."""
        return self._panel_of(words, index, self.k_words)

    def _panel_of(self, array: Array, index: int, per_column: int) -> Array:
        width = self.panel_width(index)
        start = index * self.panel * per_column
        return array[start : start + per_column * width].reshape(per_column, width)

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(panel, first column in it, one past the last) of every panel in [start, stop)."""
        for index in range(start // self.panel, -(-stop // self.panel)):
            base = index * self.panel
            yield index, max(start, base) - base, min(stop, base + self.panel) - base

    def pack_rows(self, rows: Array | QuantizedRows, n_start: int, out: PackedMatrix) -> None:
        """Write rows [n_start, n_start + r) of the matrix into `out`, in place.

        rows (r, k) of `value_dtype`, any strides, which are quantised if the format is; or codes of
        this very format, which are kept bit for bit. The arrays of `out` are zero where nothing was
        packed, so that padding stays zero. Any n_start and r are right. Needs one panel of
        temporary memory.
        """
        values = rows.codes if isinstance(rows, QuantizedRows) else rows
        assert values.shape[1:] == (self.k,), (values.shape, self)
        assert 0 <= n_start <= self.n - len(rows), (n_start, len(rows), self)
        assert out.words.dtype == self.word_dtype, (out.words.dtype, self)
        shape = (min(self.panel, len(rows)), self.k_words + STAGING_SKEW)
        staging = np.zeros(shape, self.word_dtype)
        taken = 0
        for index, first, last in self._pieces(n_start, n_start + len(rows)):
            part = rows[taken : taken + last - first]
            taken += last - first
            if isinstance(part, QuantizedRows):
                self._put(index, first, part, staging, out)
            elif self.format.is_quantized:
                self._put(index, first, quantize(widen(part), self.format), staging, out)
            else:
                staging.view(self.value_dtype)[: len(part), : self.k] = part
                words = staging[: len(part), : self.k_words]
                self.panel_words(out.words, index)[:, first:last] = words.T

    def _put(
        self, index: int, first: int, rows: QuantizedRows, staging: Array, out: PackedMatrix
    ) -> None:
        """Write quantised rows into the columns from `first` on of one panel."""
        assert rows.scales.shape == (len(rows), self.num_groups), (rows.scales.shape, self)
        columns = slice(first, first + len(rows.codes))
        words = staging[: len(rows.codes), : self.k_words]
        words[:] = self._words_of(rows.codes)
        self.panel_words(out.words, index)[:, columns] = words.T
        scale_dtype = self.format.scale_dtype
        extras = (
            (to_storage(rows.scales, scale_dtype), out.scales),
            (rows.zero_points, out.zero_points),
            (None if rows.minima is None else to_storage(rows.minima, scale_dtype), out.minima),
        )
        for values, array in extras:
            assert (values is None) == (array is None), self
            if values is not None and array is not None:
                self._panel_of(array, index, self.num_groups)[:, columns] = values.T

    def _words_of(self, codes: Codes) -> Array:
        """Codes (r, k) as words (r, k_words).

        int8 x int8: four codes in the order of k. int8 x float: two of them minus 128, as signed
        bytes. int4 x int8: byte b has k = b low and k = 4 + b high. int4 x float: half h of a word
        has k = h, 2 + h, 4 + h, 6 + h from its low nibble to its high one.
        """
        count = len(codes)
        padded = np.full((count, self.k_padded), self.format.zero_code, np.uint8)
        padded[:, : self.k] = codes
        if self.format.dtype == "int8":
            if not self.format.has_int8_activations:
                padded ^= 0x80
            return padded.view(self.word_dtype)
        if self.format.has_int8_activations:
            low, high = np.moveaxis(padded.reshape(count, -1, 2, 4), 2, 0)
            return np.ascontiguousarray(low | high << 4).view(self.word_dtype).reshape(count, -1)
        halves = np.zeros((count, self.k_words, 2), np.uint16)
        nibbles = padded.reshape(count, self.k_words, 4, 2)
        for place in range(4):
            halves |= nibbles[:, :, place].astype(np.uint16) << np.uint16(4 * place)
        return halves.view(self.word_dtype).reshape(count, -1)

    def _codes_of(self, words: Array) -> Codes:
        """Codes (r, k) of words (r, k_words): `_words_of` the other way round."""
        count = len(words)
        if self.format.dtype == "int8":
            codes = np.ascontiguousarray(words).view(np.uint8)
            if not self.format.has_int8_activations:
                codes = codes ^ np.uint8(0x80)
        elif self.format.has_int8_activations:
            quads = np.ascontiguousarray(words).view(np.uint8).reshape(count, -1, 1, 4)
            codes = np.concatenate((quads & 0xF, quads >> 4), axis=2).reshape(count, -1)
        else:
            halves = np.ascontiguousarray(words).view(np.uint16).reshape(count, -1, 1, 2)
            shifts = np.arange(0, 16, 4, dtype=np.uint16)[:, None]
            codes = (halves >> shifts & 0xF).astype(np.uint8).reshape(count, -1)
        return codes[:, : self.k]

    def read_codes(self, packed: PackedMatrix, ids: npt.ArrayLike) -> QuantizedRows:
        """The rows `ids` of a quantised matrix as they are stored."""

        def read(array: Array | None) -> Array:
            assert array is not None, self
            return self._rows(array, ids, self.num_groups)

        def floats(array: Array | None) -> Floats:
            return from_storage(read(array), self.format.scale_dtype)

        return QuantizedRows(
            codes=self._codes_of(self._rows(packed.words, ids, self.k_words)),
            scales=floats(packed.scales),
            zero_points=(
                read(packed.zero_points).astype(np.uint8) if self.format.has_zero_points else None
            ),
            minima=floats(packed.minima) if self.format.has_minima else None,
        )

    def read_rows(self, packed: PackedMatrix, ids: npt.ArrayLike) -> Floats:
        """The rows `ids` of a packed matrix, (len(ids), k) float32: widened or dequantised."""
        if self.format.is_quantized:
            return self.read_codes(packed, ids).dequantized(self.format)
        words = self._rows(packed.words, ids, self.k_words)
        return widen(words.view(self.value_dtype)[:, : self.k])

    def unpack(self, packed: PackedMatrix) -> Floats:
        """The whole matrix, (n, k) float32."""
        return self.read_rows(packed, np.arange(self.n))

    def _rows(self, array: Array, ids: npt.ArrayLike, per_column: int) -> Array:
        """Columns of the panels as rows, (len(ids), per_column)."""
        wanted = np.asarray(ids)
        rows = np.empty((len(wanted), per_column), array.dtype)
        for index in np.unique(wanted // self.panel):
            at = np.flatnonzero(wanted // self.panel == index)
            rows[at] = self._panel_of(array, int(index), per_column)[:, wanted[at] % self.panel].T
        return rows
