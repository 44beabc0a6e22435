"""The one writer of every packed layout: weight panels, the tensors of a model, the KV cache.

Values and NumPy only: it must not know tvm, files, threads or where the memory comes from. bf16
data is uint16 bit patterns (one value) or int32 words (a pair of consecutive values, low half =
even index).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from codegen.spec import ModelShape
from platforms.memory import ALIGNMENT

DEFAULT_BLOCK_SIZE = 32  # tokens in one KV block
STAGING_SKEW = 16  # words added to a staging row, so that a panel's rows do not share one L1 set

Array = npt.NDArray[np.generic]
DTYPES = ("float32", "bfloat16")


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `value`."""
    return -(-value // multiple) * multiple


def bf16_from_float32(values: npt.ArrayLike) -> npt.NDArray[np.uint16]:
    """Round to the nearest bf16, ties to even; infinities stay, NaNs stay (quiet) NaNs."""
    floats = np.ascontiguousarray(values, np.float32)
    bits = floats.view(np.uint32)
    rounded = ((bits >> 16) & 1) + np.uint32(0x7FFF)
    rounded += bits
    rounded >>= 16
    halves = rounded.astype(np.uint16)
    is_nan = np.isnan(floats)
    if is_nan.any():
        halves[is_nan] = (bits[is_nan] >> 16).astype(np.uint16) | np.uint16(0x40)
    return halves


def float32_from_bf16(halves: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """Widen uint16 bf16 bit patterns; exact."""
    return (halves.astype(np.uint32) << 16).view(np.float32)


def widen(values: Array) -> npt.NDArray[np.float32]:
    """float32 of values held as float32 or as uint16 bf16 bit patterns."""
    if values.dtype == np.uint16:
        return float32_from_bf16(values.astype(np.uint16, copy=False))
    return values.astype(np.float32, copy=False)


@dataclass(frozen=True)
class TensorSpec:
    """Shape and NumPy dtype of one array of an arena."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def arena_nbytes(self) -> int:
        """Bytes it takes in an arena, where every array starts on an `ALIGNMENT` boundary."""
        return round_up(self.nbytes, ALIGNMENT)


@dataclass(frozen=True)
class PanelLayout:
    """A (n, k) weight matrix (out x in features, as checkpoints store it) packed in N-panels.

    Words are ordered [panel][k / kr][width][kr]: the columns of one panel lie side by side for
    every step of k. Every panel is `panel` wide except the last, which is as wide as what remains
    of `n_padded` (a multiple of `lanes`).
    """

    n: int
    k: int
    dtype: str  # "float32" | "bfloat16"
    panel: int  # columns, a multiple of lanes
    lanes: int  # fp32 lanes of a vector

    def __post_init__(self) -> None:
        assert self.dtype in DTYPES, self.dtype
        assert min(self.n, self.k, self.panel, self.lanes) > 0, self
        assert self.panel % self.lanes == 0, self

    @property
    def kr(self) -> int:
        """Consecutive k values that travel in one 32-bit word."""
        return 2 if self.dtype == "bfloat16" else 1

    @property
    def n_padded(self) -> int:
        return round_up(self.n, self.lanes)

    @property
    def k_words(self) -> int:
        return -(-self.k // self.kr)

    @property
    def num_panels(self) -> int:
        return -(-self.n_padded // self.panel)

    @property
    def num_words(self) -> int:
        return self.n_padded * self.k_words

    @property
    def word_dtype(self) -> np.dtype[np.generic]:
        return np.dtype(np.int32 if self.dtype == "bfloat16" else np.float32)

    @property
    def value_dtype(self) -> np.dtype[np.generic]:
        """How one value of an unpacked row is held: bf16 as its bit pattern."""
        return np.dtype(np.uint16 if self.dtype == "bfloat16" else np.float32)

    def panel_width(self, index: int) -> int:
        return min(self.panel, self.n_padded - index * self.panel)

    def panel_words(self, words: Array, index: int) -> Array:
        """View of one panel of a packed matrix, (k_words, width)."""
        width = self.panel_width(index)
        start = index * self.panel * self.k_words
        return words[start : start + self.k_words * width].reshape(self.k_words, width)

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(panel, first column in it, one past the last) of every panel in [start, stop)."""
        for index in range(start // self.panel, -(-stop // self.panel)):
            base = index * self.panel
            yield index, max(start, base) - base, min(stop, base + self.panel) - base

    def pack_rows(self, rows: Array, n_start: int, out: Array) -> None:
        """Write rows [n_start, n_start + r) of the matrix into the packed words `out`, in place.

        rows (r, k) of `value_dtype`, any strides; out (num_words,) of `word_dtype`, zero where
        nothing was packed, so that padding stays zero. Any n_start and r are right. Needs one
        panel of temporary memory.
        """
        assert rows.shape[1:] == (self.k,), (rows.shape, self)
        assert 0 <= n_start <= self.n - len(rows), (n_start, len(rows), self)
        assert (rows.dtype, out.dtype) == (self.value_dtype, self.word_dtype), (
            rows.dtype,
            out.dtype,
        )
        width = min(self.panel, len(rows))
        staging = np.zeros((width, self.k_words + STAGING_SKEW), self.word_dtype)
        values = staging.view(self.value_dtype)[:, : self.k]
        taken = 0
        for index, first, last in self._pieces(n_start, n_start + len(rows)):
            count = last - first
            values[:count] = rows[taken : taken + count]
            self.panel_words(out, index)[:, first:last] = staging[:count, : self.k_words].T
            taken += count

    def read_rows(self, words: Array, ids: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """The rows `ids` of a packed matrix, (len(ids), k) float32 (bf16 widened)."""
        rows = np.empty((len(np.asarray(ids)), self.k_words), self.word_dtype)
        for position, row in enumerate(np.asarray(ids)):
            rows[position] = self.panel_words(words, row // self.panel)[:, row % self.panel]
        return self._values(rows)

    def unpack(self, words: Array) -> npt.NDArray[np.float32]:
        """The whole matrix, (n, k) float32 (bf16 widened)."""
        panels = [self.panel_words(words, index).T for index in range(self.num_panels)]
        return self._values(np.concatenate(panels)[: self.n])

    def _values(self, rows: Array) -> npt.NDArray[np.float32]:
        values = np.ascontiguousarray(rows).view(self.value_dtype)[:, : self.k]
        return widen(values)


@dataclass(frozen=True)
class ModelLayout:
    """Every tensor of a Llama-family model as the kernels read it; made by `ModelLayout.build`."""

    shape: ModelShape
    dtype: str
    lanes: int
    panel: int
    qkv: PanelLayout  # rows: q heads, k heads, v heads
    o: PanelLayout  # every head's columns zero-padded from head_dim to head_dim_padded
    gate_up: PanelLayout  # half panels of gate and up side by side
    down: PanelLayout
    lm_head: PanelLayout

    @staticmethod
    def build(shape: ModelShape, dtype: str, lanes: int, panel: int) -> ModelLayout:
        """`panel` must be a multiple of 2 * lanes, because gate and up share a panel in halves."""
        assert panel % (2 * lanes) == 0, (panel, lanes)

        def role(n: int, k: int) -> PanelLayout:
            return PanelLayout(n, k, dtype, panel, lanes)

        heads, hidden = shape.num_heads, shape.hidden_size
        return ModelLayout(
            shape=shape,
            dtype=dtype,
            lanes=lanes,
            panel=panel,
            qkv=role((heads + 2 * shape.num_kv_heads) * shape.head_dim, hidden),
            o=role(hidden, heads * round_up(shape.head_dim, lanes)),
            gate_up=role(2 * round_up(shape.intermediate_size, lanes), hidden),
            down=role(hidden, shape.intermediate_size),
            lm_head=role(shape.vocab_size, hidden),
        )

    @property
    def hidden_padded(self) -> int:
        return round_up(self.shape.hidden_size, self.lanes)

    @property
    def head_dim_padded(self) -> int:
        return round_up(self.shape.head_dim, self.lanes)

    @property
    def intermediate_padded(self) -> int:
        return round_up(self.shape.intermediate_size, self.lanes)

    def packed_columns(self, role: str) -> npt.NDArray[np.intp]:
        """Column of packed gate_up that holds each row of "gate" or "up", (intermediate_size,)."""
        half = self.panel // 2
        index = np.arange(self.shape.intermediate_size)
        chunk = index // half
        width = np.minimum(half, self.intermediate_padded - chunk * half)  # of the chunk's half
        columns: npt.NDArray[np.intp] = chunk * self.panel + index % half
        return columns + width if role == "up" else columns

    def pack_gate_or_up(self, role: str, rows: Array, start: int, out: Array) -> None:
        """Write rows [start, start + r) of "gate" or "up", (r, hidden_size), into gate_up."""
        half = self.panel // 2
        columns = self.packed_columns(role)
        taken = 0
        while taken < len(rows):
            index = start + taken
            count = min(half - index % half, len(rows) - taken)
            self.gate_up.pack_rows(rows[taken : taken + count], int(columns[index]), out)
            taken += count

    def pack_o(self, rows: Array, n_start: int, out: Array) -> None:
        """Write rows [n_start, n_start + r) of o, (r, num_heads * head_dim), into packed o."""
        heads, dim, padded = self.shape.num_heads, self.shape.head_dim, self.head_dim_padded
        for first in range(0, len(rows), self.panel):
            part = rows[first : first + self.panel]
            if padded != dim:
                wide = np.zeros((len(part), heads, padded), rows.dtype)
                wide[:, :, :dim] = part.reshape(len(part), heads, dim)
                part = wide.reshape(len(part), heads * padded)
            self.o.pack_rows(part, n_start + first, out)

    def unpack_o(self, words: Array) -> npt.NDArray[np.float32]:
        """The o matrix, (hidden_size, num_heads * head_dim) float32."""
        hidden, heads, dim = self.shape.hidden_size, self.shape.num_heads, self.shape.head_dim
        wide = self.o.unpack(words).reshape(hidden, heads, self.head_dim_padded)
        return wide[:, :, :dim].reshape(hidden, heads * dim)

    @cached_property
    def _specs(self) -> dict[str, TensorSpec]:
        shape, float32 = self.shape, np.dtype(np.float32)
        specs: dict[str, TensorSpec] = {}
        if not shape.tied_embeddings:
            embedding = (shape.vocab_size, shape.hidden_size)
            specs["embed_tokens"] = TensorSpec(embedding, self.lm_head.value_dtype)
        has_biases = (shape.qkv_bias, shape.o_bias, shape.mlp_bias, shape.mlp_bias)
        for role, has_bias in zip(("qkv", "o", "gate_up", "down"), has_biases, strict=True):
            panels: PanelLayout = getattr(self, role)
            specs[role] = TensorSpec((shape.num_layers, panels.num_words), panels.word_dtype)
            if has_bias:
                specs[role + "_bias"] = TensorSpec((shape.num_layers, panels.n_padded), float32)
        for name in ("input_norm", "post_attention_norm"):
            specs[name] = TensorSpec((shape.num_layers, self.hidden_padded), float32)
        specs["norm"] = TensorSpec((self.hidden_padded,), float32)
        specs["lm_head"] = TensorSpec((self.lm_head.num_words,), self.lm_head.word_dtype)
        for name in ("rope_cos", "rope_sin"):
            specs[name] = TensorSpec((shape.max_model_len, shape.head_dim // 2), float32)
        return specs

    def tensor_specs(self) -> dict[str, TensorSpec]:
        """Name -> spec of every tensor the programs read; a bias the model lacks is absent."""
        return dict(self._specs)

    @property
    def weight_bytes(self) -> int:
        """Bytes of an arena that holds all of `tensor_specs()`."""
        return sum(spec.arena_nbytes for spec in self._specs.values())


@dataclass(frozen=True)
class KvLayout:
    """The paged KV cache: for QK a block's tokens lie in lanes, for PV a head's dims do."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_size: int  # tokens, a multiple of lanes
    lanes: int
    dtype: str  # "float32" | "bfloat16"
    num_blocks: int

    def __post_init__(self) -> None:
        assert self.dtype in DTYPES, self.dtype
        assert self.head_dim % 2 == 0, self
        assert self.block_size % max(2, self.lanes) == 0, self

    @property
    def kr(self) -> int:
        """Values in a word: keys pair dims 2i, 2i+1 of a token, values pair tokens 2j, 2j+1."""
        return 2 if self.dtype == "bfloat16" else 1

    @property
    def head_dim_padded(self) -> int:
        return round_up(self.head_dim, self.lanes)

    @property
    def word_dtype(self) -> np.dtype[np.generic]:
        return np.dtype(np.int32 if self.dtype == "bfloat16" else np.float32)

    @property
    def keys(self) -> TensorSpec:
        """(layers, kv_heads, num_blocks, head_dim / kr, block_size) words."""
        return self._spec(self.head_dim // self.kr, self.block_size)

    @property
    def values(self) -> TensorSpec:
        """(layers, kv_heads, num_blocks, block_size / kr, head_dim_padded) words."""
        return self._spec(self.block_size // self.kr, self.head_dim_padded)

    def _spec(self, *block: int) -> TensorSpec:
        heads = (self.num_layers, self.num_kv_heads, self.num_blocks)
        return TensorSpec((*heads, *block), self.word_dtype)

    @property
    def bytes_per_block(self) -> int:
        """Bytes of one block's keys and values over all layers and heads."""
        words = self.block_size * (self.head_dim + self.head_dim_padded) // self.kr
        return self.num_layers * self.num_kv_heads * words * self.word_dtype.itemsize
