"""The slow truth of a whole model: a forward step in plain NumPy over the packed weights.

Reads the same packed arenas and writes the same paged KV cache layout as the compiled programs, so
it checks layouts as well as arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from codegen import reference
from codegen.layout.arrays import Floats, widen
from codegen.layout.model import KvLayout, ModelLayout
from codegen.model.tables import rotation
from codegen.model.text import forward
from codegen.spec import LayerKind, ModelShape, WeightFormat
from sandwich.executor.base import Batch, ExecutorLimits, Int32Array, LazyStart, StepOutput
from sandwich.executor.cached_blocks import CachedBlocks
from sandwich.executor.inputs import StepInputs
from sandwich.executor.scoring import read_rows
from sandwich.weights.load import ModelWeights

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Linear:
    """y = x W^T + bias with W (n, k) unpacked to float32.

    x is first rounded as its products are: to int8, or to `dtype`. Integers are multiplied as the
    float32 values they stand for, which differs from exact sums by float32's rounding.
    """

    weight: Floats
    bias: Floats | None
    weights: WeightFormat
    dtype: str

    def __call__(self, x: Floats) -> Floats:
        if self.weights.has_int8_activations:
            x = reference.rounded_activations(x, self.weights.group)
        else:
            x = reference.round_to(x, self.dtype)
        return reference.gemm(x, self.weight, "float32", self.bias)


class ReferenceExecutor(CachedBlocks, LazyStart):
    """Runs batches in NumPy. Keeps a float32 copy of all matrices: for small models only.

    The precision of products is that of the weights' layout, of the cache that of `kv`; inputs that
    the layout wants in int8 are rounded as the programs do it.
    """

    def __init__(self, weights: ModelWeights, kv: KvLayout, limits: ExecutorLimits) -> None:
        self.limits = limits
        self._inputs = StepInputs.of(limits)
        self._cache = {n: np.zeros(s.shape, s.dtype) for n, s in kv.tensor_specs().items()}
        self._model = _Model(
            layout=weights.layout,
            tensors=weights.tensors,
            matrices={
                (role, *which): _unpack(weights, role, *which)
                for role in weights.layout.matrices
                for which in np.ndindex(*weights.layout.stack(role))
            },
            kv=kv,
            cache=self._cache,
        )

    def run(self, batch: Batch) -> StepOutput:
        self._copy_blocks(batch)
        self._inputs.write(batch)
        step = _Step(self._model, batch, self._inputs.arrays)
        forward(step)
        logits, argmax = step.logits, reference.argmax(step.logits)
        kept, scores = read_rows(batch, self.limits.max_num_logits, lambda rows: logits[rows])
        peaks = logits[np.arange(len(argmax)), argmax]
        states = step.states(batch.state_rows) if batch.pooled else None
        return StepOutput(kept, argmax.tolist(), peaks.tolist(), scores, states=states)

    def close(self) -> None:
        """There is nothing to let go of but memory."""


@dataclass(frozen=True)
class _Model:
    """Weights, the matrices by role, layer and expert, and the KV cache."""

    layout: ModelLayout
    tensors: Mapping[str, Array]
    matrices: Mapping[tuple[str | int, ...], Linear]
    kv: KvLayout
    cache: Mapping[str, Array]

    def cached(self, layer: int | None) -> tuple[Array, Array, tuple[Array, ...]]:
        """Keys, values, and their scales if they have some, of a layer."""
        keys, values, *scales = (array[layer] for array in self.cache.values())
        return keys, values, tuple(scales)


class _Step:
    """The interpreter of the text that computes it, for one batch: a value is (rows, columns)."""

    def __init__(self, model: _Model, batch: Batch, inputs: Mapping[str, Int32Array]) -> None:
        count, lengths = batch.num_tokens, np.array(batch.num_new, np.int32)
        self._model = model
        self._layer: int | None = None
        self._routes: reference.Routes | None = None
        self._token_ids, self._positions, self._slots = (
            inputs[name][:count] for name in ("token_ids", "positions", "slots")
        )
        self._wanted = inputs["logit_rows"][: len(batch.logit_rows)]
        self._query_starts = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
        self._context_lens = np.array(batch.starts, np.int32) + lengths
        self._block_tables = inputs["block_tables"][: len(batch.requests)]
        self.logits: Floats
        self._residual: Floats

    @property
    def shape(self) -> ModelShape:
        return self._model.layout.shape

    def embed(self, role: str) -> Floats:
        layout, tensors = self._model.layout, self._model.tensors
        scale = np.float32(self.shape.traits.embedding_scale)
        if role not in layout.matrices:
            return reference.embedding(tensors[role], self._token_ids) * scale
        packed, panels = layout.matrix(tensors, role), layout.panels(role)
        return reference.embedding_from_panels(packed, self._token_ids, panels) * scale

    def layers(self, x: Floats, layer: Callable[[LayerKind, Floats], Floats]) -> Floats:
        for index, kind in enumerate(self.shape.kinds):
            self._layer = index
            x = layer(kind, x)
        self._layer = None
        self._residual = x
        return x

    def states(self, rows: Sequence[int]) -> Floats:
        """Hidden states of token rows, behind the final norm."""
        normed = self.norm("norm", self._residual[rows])
        return normed / np.float32(self.shape.traits.logit_scale)

    def wanted(self, x: Floats) -> Floats:
        return x[self._wanted]

    def norm(self, role: str, x: Floats) -> Floats:
        weight = self._model.tensors[role]
        if self._layer is not None:
            weight = weight[self._layer]
        return reference.rms_norm(x, weight[: x.shape[-1]], self.shape.rms_norm_eps)

    def linear(self, role: str, x: Floats) -> Floats:
        matrix, matrices = self._model.layout.matrices[role], self._model.matrices
        room = widen(matrix.with_room(x))
        if self._layer is None:
            return matrices[role,](room)
        if not matrix.matrix.num_experts:
            return matrices[role, self._layer](room)
        assert self._routes is not None, role
        at = (role, self._layer)
        return self._routes.each(room, lambda expert, rows: matrices[*at, expert](rows))

    def norm_heads(self, qkv: Floats) -> Floats:
        return reference.norm_heads(self.shape, qkv, self.norm)

    def rotate_and_cache(self, kind: LayerKind, qkv: Floats) -> Floats:
        model, shape = self._model, self.shape
        heads = qkv.reshape(len(qkv), -1, shape.head_dim)  # q heads, k heads, v heads
        first_key, first_value = shape.num_heads, shape.num_heads + shape.num_kv_heads
        cos, sin = (model.tensors[name][self._positions] for name in rotation(kind.rotation))
        new_keys = reference.rope(heads[:, first_key:first_value], cos, sin)
        keys, values, scales = model.cached(self._layer)
        new_values = heads[:, first_value:]
        reference.write_kv(keys, values, new_keys, new_values, self._slots, model.kv, scales)
        return reference.rope(heads[:, :first_key], cos, sin)

    def attend(self, kind: LayerKind, queries: Floats) -> Floats:
        model = self._model
        keys, values, scales = model.cached(self._layer)
        attended = reference.paged_attention(
            queries,
            keys,
            values,
            self._query_starts,
            self._context_lens,
            self._block_tables,
            model.kv,
            kind.window,
            self.shape.score_scale,
            self.shape.traits.score_cap,
            scales,
        )
        return attended.reshape(len(queries), -1)

    def gate(self, gate_up: Floats) -> Floats:
        gate, up = np.split(gate_up, 2, axis=1)
        return reference.gated(gate, up, self.shape.traits.activation)

    def route(self, logits: Floats, x: Floats) -> Floats:
        experts = self.shape.traits.experts
        assert experts is not None
        self._routes = reference.Routes.of(logits, experts)
        # experts are given what the router reads
        return self._routes.gather(reference.round_to(x, self._model.layout.dtype))

    def collect(self, y: Floats) -> Floats:
        assert self._routes is not None
        return self._routes.collect(y)

    def add(self, x: Floats, y: Floats) -> Floats:
        return x + y

    def cap(self, logits: Floats) -> Floats:
        return reference.soft_cap(logits, self.shape.traits.logit_cap)

    def read(self, logits: Floats) -> None:
        self.logits = logits


def _unpack(weights: ModelWeights, role: str, *which: int) -> Linear:
    """A matrix with the rows of its parts one after the other."""
    layout, tensors = weights.layout, weights.tensors
    matrix = layout.matrices[role]
    columns = np.concatenate([matrix.columns(part) for part, _ in matrix.matrix.parts])
    bias = tensors.get(role + "_bias")
    return Linear(
        matrix.panels.unpack(layout.matrix(tensors, role, *which))[columns],
        None if bias is None else bias[(*which, columns)],
        matrix.panels.format,
        layout.dtype,
    )
