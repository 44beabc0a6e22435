"""The tensors of a model and of its KV cache, as the kernels read them.

Values and NumPy only. bf16 data is uint16 bit patterns (one value) or int32 words (a pair of
consecutive values, low half = even index).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from codegen.layout.arrays import Array, TensorSpec, round_up, storage_dtype
from codegen.layout.kv_format import KvFormat
from codegen.layout.matrices import MatrixLayout
from codegen.layout.panels import PackedMatrix, PanelLayout
from codegen.model.tables import Matrix, embedding, matrices, norms, rotation
from codegen.spec import ModelShape, WeightFormat

DEFAULT_BLOCK_SIZE = 32  # tokens in one KV block


@dataclass(frozen=True)
class PlacedTensor:
    """A tensor of the model in an arena that holds all of them in order.

    offset: of its first byte. matrix: what it is a part of, whose panels follow each other in it,
    `num_matrices` times; None for other tensors.
    """

    name: str
    spec: TensorSpec
    offset: int
    matrix: MatrixLayout | None
    num_matrices: int


@dataclass(frozen=True)
class ModelLayout:
    """Every tensor of a model as the kernels read it; made by `ModelLayout.build`."""

    shape: ModelShape
    dtype: str
    lanes: int
    panel: int
    weights: WeightFormat  # of the layers' matrices
    head: WeightFormat  # of the LM head, and of embeddings that are tied to it

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
        return ModelLayout(shape, dtype, lanes, panel, weights or plain, lm_head or plain)

    @cached_property
    def matrices(self) -> dict[str, MatrixLayout]:
        """The matrices of the model by role."""
        return {
            matrix.role: MatrixLayout.of(matrix, self._format(matrix), self.panel, self.lanes)
            for matrix in matrices(self.shape)
        }

    def _format(self, matrix: Matrix) -> WeightFormat:
        if matrix.is_plain:
            return WeightFormat(self.dtype)
        return self.weights if matrix.in_layers else self.head

    def panels(self, role: str) -> PanelLayout:
        """The panels of the matrix `role`."""
        return self.matrices[role].panels

    def stack(self, role: str) -> tuple[int, ...]:
        """How many matrices `role` stands for: layers, and experts in each."""
        matrix = self.matrices[role].matrix
        layers = (self.shape.num_layers,) if matrix.in_layers else ()
        return (*layers, matrix.num_experts) if matrix.num_experts else layers

    def num_products(self, role: str) -> int:
        """Products with matrices `role` that a token needs."""
        matrix = self.matrices[role].matrix
        return self.shape.num_layers * matrix.per_token if matrix.in_layers else 1

    def of_shape(self, shape: ModelShape) -> ModelLayout:
        """The layout of another model in the same types and panels."""
        return replace(self, shape=shape)

    @staticmethod
    def matrix(
        tensors: Mapping[str, Array], role: str, layer: int | None = None, expert: int | None = None
    ) -> PackedMatrix:
        """The packed matrix `role` of a layer and an expert in it (None: the one there is) among a
        model's tensors.
        """
        which = tuple(index for index in (layer, expert) if index is not None)

        def part(name: str) -> Array | None:
            found = tensors.get(name)
            return None if found is None else found[which]

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

    @cached_property
    def _placed(self) -> tuple[PlacedTensor, ...]:
        placed: list[PlacedTensor] = []
        end = 0

        def place(
            specs: Mapping[str, TensorSpec], matrix: MatrixLayout | None, num_matrices: int
        ) -> None:
            nonlocal end
            for name, spec in specs.items():
                placed.append(PlacedTensor(name, spec, end, matrix, num_matrices))
                end += spec.arena_nbytes

        shape, float32 = self.shape, np.dtype(np.float32)
        if embedding(shape) not in self.matrices:
            table = TensorSpec((shape.vocab_size, shape.hidden_size), storage_dtype(self.dtype))
            place({embedding(shape): table}, None, 1)
        for role, matrix in self.matrices.items():
            stack = self.stack(role)
            place(matrix.specs(stack), matrix, math.prod(stack))
        for norm in norms(shape):
            layers = (shape.num_layers,) if norm.in_layers else ()
            spec = TensorSpec((*layers, round_up(norm.size, self.lanes)), float32)
            place({norm.role: spec}, None, 1)
        angles = TensorSpec((shape.max_model_len, shape.head_dim // 2), float32)
        for index in range(shape.traits.num_rotations):
            place(dict.fromkeys(rotation(index), angles), None, 1)
        return tuple(placed)

    def placed_tensors(self) -> tuple[PlacedTensor, ...]:
        """Every tensor the programs read, in the order in which an arena holds them."""
        return self._placed

    def tensor_specs(self) -> dict[str, TensorSpec]:
        """Name -> spec of every tensor the programs read; a bias the model lacks is absent."""
        return {tensor.name: tensor.spec for tensor in self._placed}

    @property
    def weight_bytes(self) -> int:
        """Bytes of an arena that holds all of `tensor_specs()`."""
        return sum(tensor.spec.arena_nbytes for tensor in self._placed)


@dataclass(frozen=True)
class KvLayout:
    """The paged KV cache: for QK a block's tokens lie in lanes, for PV a head's dims do."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_size: int  # tokens, a multiple of lanes
    lanes: int
    dtype: str  # as KvFormat has it
    num_blocks: int

    @staticmethod
    def of_shape(
        shape: ModelShape, block_size: int, lanes: int, dtype: str, num_blocks: int
    ) -> KvLayout:
        """The cache of a model."""
        sizes = (shape.num_layers, shape.num_kv_heads, shape.head_dim)
        return KvLayout(*sizes, block_size, lanes, dtype, num_blocks)

    def __post_init__(self) -> None:
        assert self.head_dim % 2 == 0, self
        assert self.block_size % max(2, self.lanes) == 0, self

    @property
    def format(self) -> KvFormat:
        """How a key or a value is stored."""
        return KvFormat(self.dtype)

    @property
    def kr(self) -> int:
        """Values in a word: keys pair dims 2i, 2i+1 of a token, values pair tokens 2j, 2j+1."""
        return 1 if self.dtype == "float32" else 2

    @property
    def head_dim_padded(self) -> int:
        return round_up(self.head_dim, self.lanes)

    @property
    def word_dtype(self) -> np.dtype[np.generic]:
        words = {"float32": np.float32, "bfloat16": np.int32, "int8": np.int16}
        return np.dtype(words[self.dtype])

    @property
    def keys(self) -> TensorSpec:
        """(layers, kv_heads, num_blocks, head_dim / kr, block_size) words."""
        return self._spec(self.head_dim // self.kr, self.block_size)

    @property
    def values(self) -> TensorSpec:
        """(layers, kv_heads, num_blocks, block_size / kr, head_dim_padded) words."""
        return self._spec(self.block_size // self.kr, self.head_dim_padded)

    def tensor_specs(self) -> dict[str, TensorSpec]:
        """Name -> spec of the arrays of the cache, in the order in which an arena holds them."""
        specs = {"keys": self.keys, "values": self.values}
        if self.format.has_scales:
            heads = (self.num_layers, self.num_kv_heads, self.num_blocks)
            scales = TensorSpec((*heads, self.block_size), np.dtype(np.float32))
            specs |= {"key_scales": scales, "value_scales": scales}
        return specs

    @property
    def nbytes(self) -> int:
        """Bytes of an arena that holds all of `tensor_specs()`."""
        return sum(spec.arena_nbytes for spec in self.tensor_specs().values())

    def _spec(self, *block: int) -> TensorSpec:
        heads = (self.num_layers, self.num_kv_heads, self.num_blocks)
        return TensorSpec((*heads, *block), self.word_dtype)

    @property
    def bytes_per_block(self) -> int:
        """Bytes of one block's keys and values over all layers and heads."""
        return sum(spec.nbytes for spec in self.tensor_specs().values()) // self.num_blocks
