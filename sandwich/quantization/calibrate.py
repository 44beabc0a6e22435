"""Rounding the layers of a model one after the other, each for the inputs that a text gives it.

An interpreter of the text of the model (`codegen.model.text`) that rounds a matrix when it is
asked for its product: inputs are those of a model whose earlier matrices are rounded already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from codegen import reference
from codegen.layout.arrays import Floats
from codegen.layout.quantize import QuantizedRows
from codegen.model.tables import Matrix, matrices
from codegen.model.text import forward
from codegen.spec import LayerKind, ModelShape, WeightFormat
from sandwich.models.rope import RopeConfig, fill_tables
from sandwich.models.tensors import CheckpointTensor
from sandwich.quantization.second_order import moments_of, round_for_inputs

Ints = npt.NDArray[np.int32]
ReadTensor = Callable[[CheckpointTensor, Iterable[int] | None], Floats]


class Calibration:
    """Windows of tokens, (windows, tokens), on their way through a model.

    tensors: those of the checkpoint. read(tensor, rows): its rows, or all for None, as float32.
    keep(tensor, rows): takes a matrix of the layers once it is rounded. head_order: as TensorNames
    has it. Memory: a layer, the second moments of the inputs of one matrix, and a few arrays of a
    value for each token.
    """

    def __init__(
        self,
        shape: ModelShape,
        ropes: Sequence[RopeConfig],
        tensors: Sequence[CheckpointTensor],
        read: ReadTensor,
        weights: WeightFormat,
        keep: Callable[[CheckpointTensor, QuantizedRows], None],
        head_order: Sequence[int] = (),
    ) -> None:
        self.shape = shape
        self._read, self._keep, self._weights = read, keep, weights
        self._tensors: dict[tuple[str, int | None], list[CheckpointTensor]] = {}
        for tensor in tensors:
            for role in dict.fromkeys(part.role for part in tensor.parts):
                self._tensors.setdefault((role, tensor.layer), []).append(tensor)
        sizes = (len(ropes), 2, shape.max_model_len, shape.head_dim // 2)
        self._rotations = np.empty(sizes, np.float32)
        for rope, tables in zip(ropes, self._rotations, strict=True):
            fill_tables(rope, shape.head_dim, *tables)
        self._dims = np.argsort(head_order) if head_order else np.arange(shape.head_dim)
        self._layer: int | None = None
        self._windows: Ints = np.empty((0, 0), np.int32)
        self._cache: Mapping[str, Floats] = {}
        self._routes: reference.Routes | None = None

    def run(self, windows: Ints) -> None:
        """Round every matrix of the layers."""
        self._windows = windows
        forward(self)

    def embed(self, role: str) -> Floats:
        (tensor,) = self._tensors[role, None]
        ids, places = np.unique(self._windows, return_inverse=True)
        rows = self._read(tensor, ids.tolist())[places.ravel()]
        return rows * np.float32(self.shape.traits.embedding_scale)

    def layers(self, x: Floats, layer: Callable[[LayerKind, Floats], Floats]) -> Floats:
        for index, kind in enumerate(self.shape.kinds):
            self._layer = index
            x = layer(kind, x)
        self._layer = None
        return x

    def wanted(self, x: Floats) -> Floats:
        return x[:0]  # the LM head is not rounded for its inputs

    def norm(self, role: str, x: Floats) -> Floats:
        (tensor,) = self._tensors[role, self._layer]
        weight = (self._read(tensor, None) + np.float32(tensor.offset)) * np.float32(tensor.scale)
        return reference.rms_norm(x, weight, self.shape.rms_norm_eps)

    def linear(self, role: str, x: Floats) -> Floats:
        if self._layer is None:
            return x
        matrix = next(m for m in matrices(self.shape) if m.role == role)
        if not matrix.num_experts:
            return self._rounded(matrix, x)
        assert self._routes is not None, role
        # the experts that no token has are rounded to the nearest values
        return self._routes.each(x, lambda expert, rows: self._rounded(matrix, rows, expert))

    def _rounded(self, matrix: Matrix, x: Floats, expert: int | None = None) -> Floats:
        """The product with a matrix of the layer, which is rounded for it unless it stays plain."""
        moments = moments_of(x)
        outputs: dict[str, Floats] = {}
        tensors = [t for t in self._tensors[matrix.role, self._layer] if t.expert == expert]
        for tensor in (each for each in tensors if len(each.shape) == 2):
            weight = self._read(tensor, None)
            if not tensor.is_plain:
                rounded = round_for_inputs(weight, moments, self._weights)
                self._keep(tensor, rounded)
                weight = rounded.dequantized(self._weights)
            y = x @ weight.T
            for part, _, rows in tensor.pieces(0, tensor.shape[0]):
                outputs[part.name] = y[:, rows]
        for tensor in (each for each in tensors if len(each.shape) == 1):
            bias = self._read(tensor, None)
            for part, _, rows in tensor.pieces(0, tensor.shape[0]):
                outputs[part.name] = outputs[part.name] + bias[rows]
        return np.concatenate([outputs[name] for name, _ in matrix.parts], axis=1)

    def norm_heads(self, qkv: Floats) -> Floats:
        return reference.norm_heads(self.shape, qkv, self.norm)

    def rotate_and_cache(self, kind: LayerKind, qkv: Floats) -> Floats:
        shape, length = self.shape, self._windows.shape[1]
        heads = qkv.reshape(len(qkv), -1, shape.head_dim)  # q heads, k heads, v heads
        first_key, first_value = shape.num_heads, shape.num_heads + shape.num_kv_heads
        positions = np.arange(len(qkv)) % length
        cos, sin = self._rotations[kind.rotation][:, positions]
        keys = reference.rope(heads[:, first_key:first_value][..., self._dims], cos, sin)
        self._cache = {"keys": keys, "values": heads[:, first_value:]}
        return reference.rope(heads[:, :first_key][..., self._dims], cos, sin)

    def attend(self, kind: LayerKind, queries: Floats) -> Floats:
        shape, (count, length) = self.shape, self._windows.shape
        scale = np.float32(shape.score_scale)
        is_hidden = np.triu(np.ones((length, length), bool), 1)
        if kind.window:
            is_hidden |= np.tri(length, k=-kind.window, dtype=bool)
        attended = np.empty_like(queries)
        for window in range(count):
            rows = slice(window * length, (window + 1) * length)
            for head in range(shape.num_heads):
                group = head // shape.group_size
                products = queries[rows, head] @ self._cache["keys"][rows, group].T
                scores = reference.soft_cap(products * scale, shape.traits.score_cap)
                scores[is_hidden] = -np.inf
                values = self._cache["values"][rows, group]
                attended[rows, head] = reference.softmax(scores) @ values
        return attended.reshape(len(queries), -1)

    def gate(self, gate_up: Floats) -> Floats:
        gate, up = np.split(gate_up, 2, axis=1)
        return reference.gated(gate, up, self.shape.traits.activation)

    def route(self, logits: Floats, x: Floats) -> Floats:
        experts = self.shape.traits.experts
        assert experts is not None
        self._routes = reference.Routes.of(logits, experts)
        return self._routes.gather(x)

    def collect(self, y: Floats) -> Floats:
        assert self._routes is not None
        return self._routes.collect(y)

    def add(self, x: Floats, y: Floats) -> Floats:
        return x + y

    def cap(self, logits: Floats) -> Floats:
        return logits

    def read(self, logits: Floats) -> None:
        """They are of no use here."""
