"""Finds the parts of a decoder in a graph as onnxruntime-genai's builder writes it.

The graph is walked from the logits to the embedding; whatever is met that is not as known is named.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Final

from onnx import NodeProto

from sandwich.checkpoint.onnx.graph import Constant, OnnxGraph, attributes

_NORMS: Final = ("SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization")
_RESIDUAL: Final = 3  # the output of a skipping norm that is the sum of its inputs


@dataclass(frozen=True)
class Linear:
    """A matrix (n, k) in the graph.

    weights: (k, n) floats, (n, k) if `is_in_rows`, or codes in blocks of `block` inputs with scales
    and perhaps zero points.
    """

    weights: Constant
    n: int
    k: int
    bits: int = 0  # of a code; 0 for floats
    block: int = 0
    is_in_rows: bool = False
    scales: Constant | None = None
    zeros: Constant | None = None


@dataclass(frozen=True)
class Rows:
    """Rows [first, first + count) of a matrix, or all of a vector that is no matrix."""

    of: Linear | Constant
    first: int
    count: int


@dataclass
class Decoder:
    """Tensors by their Hugging Face names, and facts of the layers, the last layer first."""

    tensors: dict[str, Rows] = field(default_factory=dict)
    attentions: list[dict[str, Any]] = field(default_factory=list)
    rotation: tuple[Constant, Constant] | None = None  # cosines and sines
    epsilon: float = 0.0
    is_tied: bool = False


def find_decoder(graph: OnnxGraph) -> Decoder:
    """Raises ModelError for a graph that is not known."""
    if not graph.outputs:
        raise graph.error("it has no outputs")
    try:
        return _Walk(graph).walk()
    except (IndexError, KeyError, ZeroDivisionError) as error:
        raise graph.error(f"a node lacks inputs, outputs or attributes ({error})") from error


class _Walk:
    def __init__(self, graph: OnnxGraph) -> None:
        self.graph = graph
        self.found = Decoder()
        self._layers: list[dict[str, Rows]] = []

    def walk(self) -> Decoder:
        head, _, value = self._linear(self.graph.outputs[0])
        self.found.tensors["lm_head.weight"] = Rows(head, 0, head.n)
        norm = self._norm(value, "model.norm", self.found.tensors)
        while norm.op_type != _NORMS[0]:
            norm = self._layer(norm)
        for index, layer in enumerate(reversed(self._layers)):
            for name, rows in layer.items():
                self.found.tensors[f"model.layers.{index}.{name}"] = rows
        self._embedding(norm.input[0], head)
        return self.found

    def _layer(self, behind: NodeProto) -> NodeProto:
        """Take the layer whose sum the norm `behind` is given; the norm it begins with."""
        layer: dict[str, Rows] = {}
        self._layers.append(layer)
        product = self._take(layer, behind.input[1], "mlp.down_proj")
        gated = self.graph.maker(product, "Mul")
        inner, norms = self._gate(layer, gated)
        between = self._norm(inner, "post_attention_layernorm", layer)
        if between.op_type != _NORMS[1] or behind.input[0] != between.output[_RESIDUAL]:
            raise self.graph.error(f"{behind.name} does not add to the sum of {norms}")
        attended = self._take(layer, between.input[1], "self_attn.o_proj")
        attention = self.graph.maker(attended, "GroupQueryAttention")
        before = self._norm(self._attention(layer, attention), "input_layernorm", layer)
        first = before.op_type == _NORMS[0]
        if between.input[0] != (before.input[0] if first else before.output[_RESIDUAL]):
            raise self.graph.error(f"{between.name} does not add to what {before.name} is given")
        return before

    def _gate(self, layer: dict[str, Rows], gated: NodeProto) -> tuple[str, str]:
        """The value that gate and up are given, and the name of their node."""
        for act, up in (gated.input, reversed(gated.input)):
            if self.graph.is_made_by(act, "Mul"):
                inside = self.graph.maker(act, "Mul")
                sigmoid = next((v for v in inside.input if self.graph.is_made_by(v, "Sigmoid")), "")
                gate = next((v for v in inside.input if v != sigmoid), "")
                if sigmoid and self.graph.maker(sigmoid, "Sigmoid").input[0] == gate:
                    value = self._take(layer, gate, "mlp.gate_proj")
                    if self._take(layer, up, "mlp.up_proj") == value:
                        return value, inside.name
        raise self.graph.error(f"{gated.name} is no product of SiLU of a gate and another matrix")

    def _attention(self, layer: dict[str, Rows], node: NodeProto) -> str:
        """Take queries, keys and values; the value that they are made of."""
        facts = attributes(node)
        self.found.attentions.append(facts)
        if not facts.get("do_rotary") or facts.get("rotary_interleaved") or facts.get("softcap"):
            raise self.graph.error(f"{node.name} rotates in another way or caps its scores")
        cosines, sines = (self.graph.constant(node.input[i]) for i in (7, 8))
        if self.found.rotation not in (None, (cosines, sines)):
            raise self.graph.error(f"{node.name} rotates by a table of its own")
        self.found.rotation = cosines, sines
        heads, kv_heads = facts["num_heads"], facts["kv_num_heads"]
        if not node.input[1]:
            return self._split(layer, node.input[0], heads, kv_heads)
        values = list(node.input[:3])
        for place, part in enumerate(("q", "k")):
            if self.graph.is_made_by(values[place], "Reshape"):
                values[place] = self._head_norm(layer, values[place], part)
        if self.graph.is_made_by(values[0], "Split"):
            split = self.graph.maker(values[0], "Split")
            if values != list(split.output):
                raise self.graph.error(f"{split.name} gives more than queries, keys and values")
            return self._split(layer, split.input[0], heads, kv_heads)
        names = [f"self_attn.{part}_proj" for part in "qkv"]
        inputs = {self._take(layer, v, n) for v, n in zip(values, names, strict=True)}
        if len(inputs) != 1:
            raise self.graph.error(f"{node.name} has queries, keys and values of several values")
        return inputs.pop()

    def _head_norm(self, layer: dict[str, Rows], value: str, part: str) -> str:
        """Take the norm of each head; the value before it."""
        outer = self.graph.maker(value, "Reshape")
        norm = self.graph.maker(outer.input[0], _NORMS[0])
        self._keep_norm(layer, f"self_attn.{part}_norm", norm.input[1])
        return str(self.graph.maker(norm.input[0], "Reshape").input[0])

    def _split(self, layer: dict[str, Rows], value: str, heads: int, kv_heads: int) -> str:
        """Take queries, keys and values out of one product; the value it is of."""
        linear, bias, given = self._linear(value)
        dim = linear.n // (heads + 2 * kv_heads)
        first = 0
        for part, count in (("q", heads * dim), ("k", kv_heads * dim), ("v", kv_heads * dim)):
            layer[f"self_attn.{part}_proj.weight"] = Rows(linear, first, count)
            if bias is not None:
                layer[f"self_attn.{part}_proj.bias"] = Rows(bias, first, count)
            first += count
        if first != linear.n:
            raise self.graph.error(f"{value} has {linear.n} columns, no whole heads")
        return given

    def _take(self, layer: dict[str, Rows], value: str, name: str) -> str:
        """Take a matrix; the value it is given."""
        linear, bias, given = self._linear(value)
        layer[f"{name}.weight"] = Rows(linear, 0, linear.n)
        if bias is not None:
            layer[f"{name}.bias"] = Rows(bias, 0, linear.n)
        return given

    def _linear(self, value: str) -> tuple[Linear, Constant | None, str]:
        """The matrix that makes a value, its bias, and the value it is given."""
        graph = self.graph
        node = graph.maker(value, "Add", "MatMul", "MatMulNBits")
        if node.op_type == "Add":
            biases = [name for name in node.input if name in graph.constants]
            others = [name for name in node.input if name not in graph.constants]
            if len(biases) != 1:
                raise graph.error(f"{node.name} adds no bias")
            linear, _, given = self._linear(others[0])
            return linear, graph.constant(biases[0]), given
        if node.op_type == "MatMul":
            is_turned = graph.is_made_by(node.input[1], "Transpose")
            name = graph.maker(node.input[1], "Transpose").input[0] if is_turned else node.input[1]
            weights = graph.constant(name)
            if len(weights.shape) != 2:
                raise graph.error(f"{name} is {list(weights.shape)}, no matrix")
            k, n = reversed(weights.shape) if is_turned else weights.shape
            return Linear(weights, n, k, is_in_rows=is_turned), None, node.input[0]
        return self._codes(node), self._optional(node, 5), node.input[0]

    def _codes(self, node: NodeProto) -> Linear:
        facts = attributes(node)
        if self._optional(node, 4) is not None:
            raise self.graph.error(f"{node.name} has its groups in an order of their own")
        weights, scales = (self.graph.constant(name) for name in node.input[1:3])
        return Linear(
            *(weights, facts["N"], facts["K"], facts["bits"], facts["block_size"]),
            scales=scales,
            zeros=self._optional(node, 3),
        )

    def _optional(self, node: NodeProto, index: int) -> Constant | None:
        name = node.input[index] if len(node.input) > index else ""
        return self.graph.constant(name) if name else None

    def _norm(self, value: str, name: str, tensors: dict[str, Rows]) -> NodeProto:
        """Take the norm that makes a value."""
        node = self.graph.maker(value, *_NORMS)
        self._keep_norm(tensors, name, node.input[_NORMS.index(node.op_type) + 1])
        epsilon = attributes(node)["epsilon"]
        if self.found.epsilon and not math.isclose(epsilon, self.found.epsilon):
            raise self.graph.error(f"{node.name} has an epsilon of its own")
        self.found.epsilon = epsilon
        return node

    def _keep_norm(self, tensors: dict[str, Rows], name: str, value: str) -> None:
        weights = self.graph.constant(value)
        tensors[f"{name}.weight"] = Rows(weights, 0, weights.shape[0])

    def _embedding(self, value: str, head: Linear) -> None:
        """Take the table that tokens are looked up in."""
        graph = self.graph
        node = graph.maker(value, "Gather", "GatherBlockQuantized")
        data = node.input[0]
        is_turned = graph.is_made_by(data, "Transpose")
        if is_turned or graph.is_made_by(data, "Reshape"):
            data = graph.maker(data, "Transpose", "Reshape").input[0]
        table = graph.constant(data)
        self.found.is_tied = table == head.weights
        name = "model.embed_tokens.weight"
        if self.found.is_tied:
            self.found.tensors[name] = self.found.tensors.pop("lm_head.weight")
        elif node.op_type == "Gather" and not is_turned:
            rows, k = table.shape
            self.found.tensors[name] = Rows(Linear(table, rows, k, is_in_rows=True), 0, rows)
        else:
            raise graph.error(f"{node.name} looks tokens up in no table of its own or the LM head")
