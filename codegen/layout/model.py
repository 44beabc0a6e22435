"""The tensors of a model and of its KV cache, as the kernels read them.

Values and NumPy only. bf16 data is uint16 bit patterns (one value) or int32 words (a pair of
consecutive values, low half = even index).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from codegen.layout.arrays import DTYPES, Array, TensorSpec, round_up, storage_dtype
from codegen.layout.panels import PackedMatrix, PanelLayout
from codegen.layout.quantize import QuantizedRows
from codegen.spec import ModelShape, WeightFormat

DEFAULT_BLOCK_SIZE = 32  # tokens in one KV block


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
    def build(
        shape: ModelShape,
        dtype: str,
        lanes: int,
        panel: int,
        weights: WeightFormat | None = None,
        lm_head: WeightFormat | None = None,
    ) -> ModelLayout:
        """The layout of a model whose layers' matrices have format `weights` and whose LM head has
        `lm_head`; without one, plain `dtype`, which is that of an embedding table too.

        `panel` must be a multiple of 2 * lanes, because gate and up share a panel in halves.
        """
        assert panel % (2 * lanes) == 0, (panel, lanes)
        plain = WeightFormat(dtype)

        def role(n: int, k: int) -> PanelLayout:
            return PanelLayout(n, k, weights or plain, panel, lanes)

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
            lm_head=PanelLayout(shape.vocab_size, hidden, lm_head or plain, panel, lanes),
        )

    @property
    def weights(self) -> WeightFormat:
        """How the layers' matrices are stored."""
        return self.qkv.format

    def of_shape(self, shape: ModelShape) -> ModelLayout:
        """The layout of another model in the same types and panels."""
        formats = self.weights, self.lm_head.format
        return ModelLayout.build(shape, self.dtype, self.lanes, self.panel, *formats)

    @staticmethod
    def matrix(tensors: Mapping[str, Array], role: str, layer: int | None = None) -> PackedMatrix:
        """The packed matrix `role` of a layer (None: the LM head) among a model's tensors."""

        def part(name: str) -> Array | None:
            found = tensors.get(name)
            return found if found is None or layer is None else found[layer]

        words = part(role)
        assert words is not None, role
        extras = (part(role + suffix) for suffix in ("_scales", "_zero_points", "_minima"))
        return PackedMatrix(words, *extras)

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

    def pack_gate_or_up(
        self, role: str, rows: Array | QuantizedRows, start: int, out: PackedMatrix
    ) -> None:
        """Write rows [start, start + r) of "gate" or "up", (r, hidden_size), into gate_up."""
        half = self.panel // 2
        columns = self.packed_columns(role)
        taken = 0
        while taken < len(rows):
            index = start + taken
            count = min(half - index % half, len(rows) - taken)
            self.gate_up.pack_rows(rows[taken : taken + count], int(columns[index]), out)
            taken += count

    @property
    def can_keep_codes_of_o(self) -> bool:
        """Whether `pack_o` takes codes: padding of heads would shift their groups."""
        return self.head_dim_padded == self.shape.head_dim

    def pack_o(self, rows: Array | QuantizedRows, n_start: int, out: PackedMatrix) -> None:
        """Write rows [n_start, n_start + r) of o, (r, num_heads * head_dim), into packed o."""
        heads, dim, padded = self.shape.num_heads, self.shape.head_dim, self.head_dim_padded
        for first in range(0, len(rows), self.panel):
            part = rows[first : first + self.panel]
            if not self.can_keep_codes_of_o:
                assert isinstance(part, np.ndarray), self.shape
                wide = np.zeros((len(part), heads, padded), part.dtype)
                wide[:, :, :dim] = part.reshape(len(part), heads, dim)
                part = wide.reshape(len(part), heads * padded)
            self.o.pack_rows(part, n_start + first, out)

    @cached_property
    def _specs(self) -> dict[str, TensorSpec]:
        shape, float32 = self.shape, np.dtype(np.float32)
        specs: dict[str, TensorSpec] = {}
        if not shape.tied_embeddings:
            embedding = (shape.vocab_size, shape.hidden_size)
            specs["embed_tokens"] = TensorSpec(embedding, storage_dtype(self.dtype))
        has_biases = (shape.qkv_bias, shape.o_bias, shape.mlp_bias, shape.mlp_bias)
        for role, has_bias in zip(("qkv", "o", "gate_up", "down"), has_biases, strict=True):
            panels: PanelLayout = getattr(self, role)
            specs |= matrix_specs(role, panels, (shape.num_layers,))
            if has_bias:
                specs[role + "_bias"] = TensorSpec((shape.num_layers, panels.n_padded), float32)
        for name in ("input_norm", "post_attention_norm"):
            specs[name] = TensorSpec((shape.num_layers, self.hidden_padded), float32)
        specs["norm"] = TensorSpec((self.hidden_padded,), float32)
        specs |= matrix_specs("lm_head", self.lm_head, ())
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


def matrix_specs(role: str, panels: PanelLayout, layers: tuple[int, ...]) -> dict[str, TensorSpec]:
    """The tensors of one role's matrices: words and, where quantised, scales and zero points or
    minima.
    """
    specs = {role: TensorSpec((*layers, panels.num_words), panels.word_dtype)}
    per_scale = (*layers, panels.num_scales)
    if panels.format.is_quantized:
        specs[role + "_scales"] = TensorSpec(per_scale, panels.scale_dtype)
    if panels.format.has_zero_points:
        specs[role + "_zero_points"] = TensorSpec(per_scale, np.dtype(np.uint8))
    if panels.format.has_minima:
        specs[role + "_minima"] = TensorSpec(per_scale, panels.scale_dtype)
    return specs


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

    @staticmethod
    def of_shape(
        shape: ModelShape, block_size: int, lanes: int, dtype: str, num_blocks: int
    ) -> KvLayout:
        """The cache of a model."""
        sizes = (shape.num_layers, shape.num_kv_heads, shape.head_dim)
        return KvLayout(*sizes, block_size, lanes, dtype, num_blocks)

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
