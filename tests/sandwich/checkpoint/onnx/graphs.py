"""Decoders as ONNX graphs, node by node as onnxruntime-genai's builder writes them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tests.sandwich.checkpoint.quantized.writers import packed, rounded

Array = np.ndarray


@dataclass
class Graph:
    """A graph under construction. bits: of codes, 0 for floats; has_zeros: they have zero points.
    is_packed: queries, keys and values are one matrix. state: the weights by their Hugging Face
    names, which codes are put into the place of.
    """

    config: dict[str, Any]
    state: dict[str, Array]
    bits: int = 0
    has_zeros: bool = False
    is_packed: bool = True
    nodes: list[NodeProto] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)

    def node(self, op: str, inputs: list[str], num_outputs: int = 1, **facts: Any) -> list[str]:
        name = f"/{len(self.nodes)}/{op}"
        outputs = [f"{name}/output_{i}" for i in range(num_outputs)]
        domain = "com.microsoft" if op in ("MatMulNBits", "GroupQueryAttention") else ""
        self.nodes.append(helper.make_node(op, inputs, outputs, name, domain=domain, **facts))
        return outputs

    def constant(self, name: str, values: Array) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def linear(self, value: str, *names: str) -> str:
        """The matrices `names` below each other, with their biases."""
        weights = np.concatenate([self.state[f"{name}.weight"] for name in names])
        n, k = weights.shape
        if self.bits:
            grid = rounded(weights, self.bits, 32, symmetric=not self.has_zeros)
            grid.scales = grid.scales.astype(np.float32)
            ends = np.cumsum([len(self.state[f"{name}.weight"]) for name in names])[:-1]
            for name, rows in zip(names, np.split(grid.values, ends), strict=True):
                self.state[f"{name}.weight"] = rows
            codes = packed(grid.codes, self.bits).view(np.uint8).reshape(n, k // 32, -1)
            inputs = [
                self.constant(f"{names[0]}_Q4", codes),
                self.constant(f"{names[0]}_scales", grid.scales),
            ]
            if self.has_zeros:
                groups = grid.zeros.shape[1]
                zeros = packed(grid.zeros, self.bits).view(np.uint8)
                zeros = zeros.reshape(n, -1)[:, : -(-groups * self.bits // 8)]
                inputs.append(self.constant(f"{names[0]}_zero_points", zeros))
            facts = {"K": k, "N": n, "bits": self.bits, "block_size": 32}
            (value,) = self.node("MatMulNBits", [value, *inputs], **facts)
        else:
            (value,) = self.node("MatMul", [value, self.constant(f"{names[0]}.MatMul", weights.T)])
        if f"{names[0]}.bias" in self.state:
            bias = np.concatenate([self.state[f"{name}.bias"] for name in names])
            (value,) = self.node("Add", [value, self.constant(f"{names[0]}.Add", bias)])
        return value

    def norm(self, value: str, name: str) -> str:
        weights = self.constant(f"{name}.w", self.state[f"{name}.weight"])
        op, epsilon = "SimplifiedLayerNormalization", self.config["rms_norm_eps"]
        return self.node(op, [value, weights], epsilon=epsilon)[0]

    def add_norm(self, residual: str, value: str, name: str) -> tuple[str, str]:
        """The norm of a sum, and the sum."""
        weights = self.constant(f"{name}.w", self.state[f"{name}.weight"])
        op, epsilon = "SkipSimplifiedLayerNormalization", self.config["rms_norm_eps"]
        outputs = self.node(op, [residual, value, weights], 4, epsilon=epsilon)
        return outputs[0], outputs[3]

    def attention(self, value: str, prefix: str) -> str:
        c = self.config
        sizes = [c["num_attention_heads"] * c["head_dim"]]
        sizes += [c["num_key_value_heads"] * c["head_dim"]] * 2
        names = [f"{prefix}{part}_proj" for part in "qkv"]
        has_norms = f"{prefix}q_norm.weight" in self.state
        if not self.is_packed:
            parts = [self.linear(value, name) for name in names]
        else:
            parts = [self.linear(value, *names), "", ""]
        if self.is_packed and has_norms:
            split = self.constant(f"{prefix}split", np.array(sizes))
            parts = self.node("Split", [parts[0], split], 3, axis=-1)
        if has_norms:
            shape = self.constant(f"{prefix}shape", np.array([0, -1, c["head_dim"]]))
            for i, part in enumerate("qk"):
                (heads,) = self.node("Reshape", [parts[i], shape])
                normed = self.norm(heads, f"{prefix}{part}_norm")
                back = self.constant(f"{prefix}{part}_back", np.array([0, -1, sizes[i]]))
                (parts[i],) = self.node("Reshape", [normed, back])
        facts = {
            "num_heads": c["num_attention_heads"],
            "kv_num_heads": c["num_key_value_heads"],
            "scale": c["head_dim"] ** -0.5,
            "local_window_size": c.get("sliding_window") or -1,
            "do_rotary": 1,
        }
        inputs = [*parts, "past.key", "past.value", "lengths", "total", "cos_cache", "sin_cache"]
        (value,) = self.node("GroupQueryAttention", inputs, **facts)
        return self.linear(value, f"{prefix}o_proj")

    def mlp(self, value: str, prefix: str) -> str:
        gate = self.linear(value, f"{prefix}gate_proj")
        up = self.linear(value, f"{prefix}up_proj")
        (sigmoid,) = self.node("Sigmoid", [gate])
        (act,) = self.node("Mul", [gate, sigmoid])
        (gated,) = self.node("Mul", [act, up])
        return self.linear(gated, f"{prefix}down_proj")

    def build(self, frequencies: Array) -> None:
        """All of it, to the logits."""
        angles = np.arange(self.config["max_position_embeddings"])[:, None] * frequencies
        self.constant("cos_cache", np.cos(angles).astype(np.float32))
        self.constant("sin_cache", np.sin(angles).astype(np.float32))
        is_tied = self.config["tie_word_embeddings"]
        if is_tied:
            self.state["lm_head.weight"] = self.state["model.embed_tokens.weight"]
            head = self.constant("lm_head", self.state["lm_head.weight"].T)
            (table,) = self.node("Transpose", [head], perm=[1, 0])
        else:
            table = self.constant("embed_tokens", self.state["model.embed_tokens.weight"])
        (residual,) = self.node("Gather", [table, "input_ids"])
        value = self.norm(residual, "model.layers.0.input_layernorm")
        for layer in range(self.config["num_hidden_layers"]):
            prefix = f"model.layers.{layer}."
            attended = self.attention(value, f"{prefix}self_attn.")
            value, residual = self.add_norm(residual, attended, f"{prefix}post_attention_layernorm")
            inner = self.mlp(value, f"{prefix}mlp.")
            is_last = layer + 1 == self.config["num_hidden_layers"]
            following = f"model.layers.{layer + 1}.input_layernorm"
            value, residual = self.add_norm(residual, inner, "model.norm" if is_last else following)
        if is_tied:
            (logits,) = self.node("MatMul", [value, "lm_head"])
        else:
            logits = self.linear(value, "lm_head")
        self.nodes[-1].output[0] = "logits"
        assert logits

    def write(self, folder: Path) -> Path:
        """The folder, with its data beside the graph."""
        outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)]
        ids = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, None)]
        graph = helper.make_graph(self.nodes, "decoder", ids, outputs, self.constants)
        folder.mkdir(parents=True, exist_ok=True)
        onnx.save_model(
            helper.make_model(graph),
            folder / "model.onnx",
            save_as_external_data=True,
            location="model.onnx.data",
            size_threshold=64,
        )
        said = {
            "model": {
                "context_length": self.config["max_position_embeddings"],
                "bos_token_id": 1,
                "eos_token_id": [7, 9],
            },
            "search": {"do_sample": True, "temperature": 0.6, "top_k": 20},
        }
        (folder / "genai_config.json").write_text(json.dumps(said))
        return folder
