"""A folder with a decoder as an ONNX graph, as onnxruntime-genai's builder writes one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np

from sandwich.checkpoint.fields import Fields, read_json
from sandwich.checkpoint.gguf.rope_factors import llama3_scaling
from sandwich.checkpoint.onnx.checkpoint import OnnxCheckpoint
from sandwich.checkpoint.onnx.decoder import Decoder, find_decoder
from sandwich.checkpoint.onnx.graph import OnnxGraph
from sandwich.checkpoint.tokenizer_files import TokenizerFiles, read_tokenizer
from sandwich.errors import ModelError

_GENAI: Final = "genai_config.json"
_SAMPLING: Final = ("temperature", "top_k", "top_p", "repetition_penalty")
_TOLERANCE: Final = 1e-3  # of frequencies that are found again in cosines and sines


@dataclass(frozen=True)
class OnnxModel:
    """The model at `path`: a graph, or a folder with one graph."""

    path: Path

    @staticmethod
    def recognises(path: Path) -> bool:
        """Whether it is a graph, or a folder that holds one and no other weights."""
        if path.is_dir():
            return any(path.glob("*.onnx")) and not any(path.glob("*.safetensors"))
        return path.suffix == ".onnx"

    @property
    def name(self) -> str:
        return self._file.parent.resolve().name

    has_tensors = True

    @cached_property
    def _file(self) -> Path:
        if not self.path.is_dir():
            return self.path
        files = sorted(self.path.glob("*.onnx"))
        if len(files) != 1:
            names = ", ".join(file.name for file in files)
            raise ModelError(f"{self.path}: holds {names}; name the one that is meant")
        return files[0]

    @cached_property
    def _graph(self) -> OnnxGraph:
        return OnnxGraph(self._file)

    @cached_property
    def _decoder(self) -> Decoder:
        return find_decoder(self._graph)

    @cached_property
    def _genai(self) -> Fields:
        file = self._file.parent / _GENAI
        return Fields(read_json(file) if file.is_file() else {}, file)

    def checkpoint(self) -> OnnxCheckpoint:
        return OnnxCheckpoint(self._graph, self._decoder)

    def tokenizer(self) -> TokenizerFiles:
        return read_tokenizer(self._file.parent)

    def generation(self) -> Fields:
        model, search = self._genai.object("model"), self._genai.object("search")
        said: dict[str, Any] = {"eos_token_id": model.get("eos_token_id")}
        if search.get("do_sample"):
            said |= {key: search.get(key) for key in _SAMPLING}
        return Fields(said, self._genai.file)

    def config(self) -> Fields:
        """Sizes are those of the constants, the rest is what the nodes say."""
        found, tensors = self._decoder, self._decoder.tensors
        first = "model.layers.0."
        facts = self._one([_comparable(each) for each in found.attentions])
        rotation = found.rotation
        assert rotation is not None, self._file
        table = tensors["model.embed_tokens.weight"]
        dim = tensors[f"{first}self_attn.q_proj.weight"].count // facts["num_heads"]
        sizes = self.checkpoint().tensors
        model = self._genai.object("model")
        config = {
            "architectures": [self._model_class(facts["local_window_size"])],
            "num_hidden_layers": len(found.attentions),
            "hidden_size": sizes["model.norm.weight"].shape[0],
            "intermediate_size": tensors[f"{first}mlp.up_proj.weight"].count,
            "num_attention_heads": facts["num_heads"],
            "num_key_value_heads": facts["kv_num_heads"],
            "head_dim": dim,
            "vocab_size": table.count,
            "max_position_embeddings": model.get("context_length") or rotation[0].shape[0],
            "rms_norm_eps": found.epsilon,
            "tie_word_embeddings": found.is_tied,
            "attention_bias": f"{first}self_attn.o_proj.bias" in tensors,
            "mlp_bias": f"{first}mlp.up_proj.bias" in tensors,
            "partial_rotary_factor": 2 * rotation[0].shape[1] / dim,
            "bos_token_id": model.get("bos_token_id"),
            "eos_token_id": model.get("eos_token_id"),
            "dtype": "float32" if table.of.weights.tensor.dtype == "F32" else "bfloat16",  # type: ignore[union-attr]
        }
        if facts["local_window_size"] > 0:
            config["sliding_window"] = facts["local_window_size"]
        if facts["scale"] and not np.isclose(facts["scale"], dim**-0.5, rtol=1e-4):
            raise self._graph.error(f"scores are times {facts['scale']:.6g}, not {dim**-0.5:.6g}")
        return Fields(config | self._rotation(), self._file)

    def _model_class(self, window: int) -> str:
        """The class of transformers that computes what the graph does."""
        first = "model.layers.0.self_attn."
        has_norms = f"{first}q_norm.weight" in self._decoder.tensors
        has_bias = f"{first}q_proj.bias" in self._decoder.tensors
        has_all = f"{first}o_proj.bias" in self._decoder.tensors
        kinds = {
            "Qwen3ForCausalLM": has_norms and has_bias == has_all and window <= 0,
            "Qwen2ForCausalLM": not has_norms and has_bias and not has_all and window <= 0,
            "MistralForCausalLM": not (has_norms or has_bias or has_all) and window > 0,
            "LlamaForCausalLM": not has_norms and has_bias == has_all and window <= 0,
        }
        for name, is_it in kinds.items():
            if is_it:
                return name
        raise self._graph.error("no family has its norms, biases and windows together")

    def _one(self, facts: list[dict[str, Any]]) -> dict[str, Any]:
        if any(each != facts[0] for each in facts):
            raise self._graph.error("its layers differ in heads, windows or scales")
        return facts[0]

    def _rotation(self) -> dict[str, Any]:
        """Base and scaling, found again in the cosines and sines of position 1."""
        assert self._decoder.rotation is not None
        with self.checkpoint() as checkpoint:
            cos, sin = (
                checkpoint.read_constant(table)[1].astype(np.float64)
                for table in self._decoder.rotation
            )
        frequencies = np.arctan2(sin, cos)
        half = len(frequencies)
        if half < 2 or not np.all(frequencies > 0):
            raise self._graph.error("its rotations turn backwards or not at all")
        theta = float(f"{frequencies[1] ** -half:.4g}")
        factors = theta ** (-np.arange(half) / half) / frequencies
        if np.allclose(factors, 1.0, rtol=_TOLERANCE):
            return {"rope_theta": theta}
        config: Mapping[str, Any] = {"rope_theta": theta}
        scaling = llama3_scaling(factors.astype(np.float32), config, self._file)
        return {"rope_theta": theta, "rope_scaling": scaling}


def _comparable(facts: dict[str, Any]) -> dict[str, Any]:
    """What of an attention node decides over what it computes."""
    defaults = {"num_heads": 0, "kv_num_heads": 0, "local_window_size": -1, "scale": 0.0}
    return {key: facts.get(key, default) for key, default in defaults.items()}
