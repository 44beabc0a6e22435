"""The slow truth of a whole model: a forward step in plain NumPy over the packed weights.

Reads the same packed arenas and writes the same paged KV cache layout as the compiled programs, so
it checks layouts as well as arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from codegen import reference
from codegen.layout.arrays import Floats
from codegen.layout.model import KvLayout
from codegen.layout.panels import PanelLayout
from codegen.spec import WeightFormat
from sandwich.executor.base import Batch, ExecutorLimits, LazyStart, StepOutput, copy_blocks
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


@dataclass(frozen=True)
class Layer:
    """One layer's weights, named as checkpoints name them."""

    input_layernorm: Floats
    qkv_proj: Linear
    o_proj: Linear
    post_attention_layernorm: Floats
    gate_proj: Linear
    up_proj: Linear
    down_proj: Linear


class ReferenceExecutor(LazyStart):
    """Runs batches in NumPy. Keeps a float32 copy of all matrices: for small models only.

    The precision of products is that of the weights' layout, of the cache that of `kv`; inputs that
    the layout wants in int8 are rounded as the programs do it.
    """

    def __init__(self, weights: ModelWeights, kv: KvLayout, limits: ExecutorLimits) -> None:
        self.limits = limits
        self.kv = kv
        self._inputs = StepInputs.of(limits)
        self.keys: Array = np.zeros(kv.keys.shape, kv.word_dtype)
        self.values: Array = np.zeros(kv.values.shape, kv.word_dtype)
        layout, tensors = weights.layout, weights.tensors
        hidden = layout.shape.hidden_size
        self._layout = layout
        self._tensors = tensors
        self._layers = [_unpack_layer(weights, index) for index in range(layout.shape.num_layers)]
        self._norm: Floats = tensors["norm"][:hidden]
        lm_head = layout.lm_head.unpack(layout.matrix(tensors, "lm_head"))
        self._lm_head = Linear(lm_head, None, layout.lm_head.format, layout.dtype)

    def run(self, batch: Batch) -> StepOutput:
        copy_blocks(batch, (self.keys, self.values))
        self._inputs.write(batch)
        hidden = self._embed(self._inputs.arrays["token_ids"][: batch.num_tokens])
        for index, layer in enumerate(self._layers):
            hidden = hidden + self._attention(index, layer, hidden, batch)
            hidden = hidden + self._mlp(layer, hidden)
        wanted = self._inputs.arrays["logit_rows"][: len(batch.logit_rows)]
        final = self._rms_norm(hidden[wanted], self._norm)
        argmax: list[int] = []
        peaks: list[float] = []

        def logits_of(rows: slice) -> Floats:
            logits = self._lm_head(final[rows])
            best = reference.argmax(logits)
            argmax.extend(best.tolist())
            peaks.extend(logits[np.arange(len(best)), best].tolist())
            return logits

        logits, scores = read_rows(batch, self.limits.max_num_logits, logits_of)
        return StepOutput(logits, argmax, peaks, scores)

    def close(self) -> None:
        """There is nothing to let go of but memory."""

    def _embed(self, token_ids: npt.NDArray[np.int32]) -> Floats:
        if self._layout.shape.tied_embeddings:
            packed = self._layout.matrix(self._tensors, "lm_head")
            return reference.embedding_from_panels(packed, token_ids, self._layout.lm_head)
        return reference.embedding(self._tensors["embed_tokens"], token_ids)

    def _attention(self, index: int, layer: Layer, hidden: Floats, batch: Batch) -> Floats:
        shape, arrays = self._layout.shape, self._inputs.arrays
        positions, slots = (arrays[name][: batch.num_tokens] for name in ("positions", "slots"))
        lengths = np.array(batch.num_new, np.int32)
        qkv = layer.qkv_proj(self._rms_norm(hidden, layer.input_layernorm))
        heads = qkv.reshape(len(hidden), -1, shape.head_dim)  # q heads, k heads, v heads
        first_key, first_value = shape.num_heads, shape.num_heads + shape.num_kv_heads
        cos, sin = (self._tensors[name][positions] for name in ("rope_cos", "rope_sin"))
        queries = reference.rope(heads[:, :first_key], cos, sin)
        new_keys = reference.rope(heads[:, first_key:first_value], cos, sin)
        keys, values = self.keys[index], self.values[index]
        new_values = heads[:, first_value:]
        reference.write_kv(keys, values, new_keys, new_values, slots, self.kv)
        attended = reference.paged_attention(
            queries,
            keys,
            values,
            np.concatenate(([0], np.cumsum(lengths))).astype(np.int32),
            np.array(batch.starts, np.int32) + lengths,
            arrays["block_tables"][: len(batch.requests)],
            self.kv,
        )
        # groups of K count the columns that pad a head
        padding = self._layout.head_dim_padded - shape.head_dim
        attended = np.pad(attended, ((0, 0), (0, 0), (0, padding)))
        return layer.o_proj(attended.reshape(len(hidden), -1))

    def _mlp(self, layer: Layer, hidden: Floats) -> Floats:
        x = self._rms_norm(hidden, layer.post_attention_layernorm)
        return layer.down_proj(reference.silu_mul(layer.gate_proj(x), layer.up_proj(x)))

    def _rms_norm(self, hidden: Floats, weight: Floats) -> Floats:
        return reference.rms_norm(hidden, weight, self._layout.shape.rms_norm_eps)


def _unpack_layer(weights: ModelWeights, index: int) -> Layer:
    layout, tensors = weights.layout, weights.tensors
    hidden = layout.shape.hidden_size

    def bias(role: str, columns: slice | Array) -> Floats | None:
        packed = tensors.get(role + "_bias")
        return None if packed is None else packed[index, columns]

    def linear(role: str, panels: PanelLayout) -> Linear:
        weight = panels.unpack(layout.matrix(tensors, role, index))
        return Linear(weight, bias(role, slice(0, panels.n)), layout.weights, layout.dtype)

    def half_of_gate_up(role: str) -> Linear:
        columns = layout.packed_columns(role)
        weight = layout.gate_up.unpack(layout.matrix(tensors, "gate_up", index))[columns]
        return Linear(weight, bias("gate_up", columns), layout.weights, layout.dtype)

    o_weight = layout.o.unpack(layout.matrix(tensors, "o", index))
    return Layer(
        input_layernorm=tensors["input_norm"][index, :hidden],
        qkv_proj=linear("qkv", layout.qkv),
        o_proj=Linear(o_weight, bias("o", slice(0, hidden)), layout.weights, layout.dtype),
        post_attention_layernorm=tensors["post_attention_norm"][index, :hidden],
        gate_proj=half_of_gate_up("gate"),
        up_proj=half_of_gate_up("up"),
        down_proj=linear("down", layout.down),
    )
