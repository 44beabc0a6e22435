"""Decoders out of ONNX graphs: weights, sizes and tokens; what is not known is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from codegen.spec import WeightFormat
from sandwich.checkpoint.formats import open_source
from sandwich.checkpoint.onnx.source import OnnxModel
from sandwich.errors import ModelError
from sandwich.models.config import ModelConfig
from sandwich.models.rope import inverse_frequencies
from tests.sandwich.checkpoint.executors import executor_of
from tests.sandwich.checkpoint.onnx.graphs import Graph
from tests.sandwich.models.cases import LLAMA3_ROPE, Case, sizes
from tests.sandwich.models.conftest import Driver, read_config, write_model

SIZES = sizes(64, 4, 2, 32, intermediate_size=96)
LLAMA3 = LLAMA3_ROPE | {"original_max_position_embeddings": 8192}
PROMPT = [3, 77, 12, 5, 88, 41]


@dataclass
class Kind:
    """A tiny model and how its graph is written."""

    name: str
    family: str = "llama"
    more: dict[str, Any] = field(default_factory=dict)
    how: dict[str, Any] = field(default_factory=dict)
    kept: WeightFormat | None = None


KINDS = [
    Kind("llama"),
    Kind("llama-apart-with-biases", "llama", {"attention_bias": True}, {"is_packed": False}),
    Kind("llama3-rope", "llama", {"rope_parameters": LLAMA3}),
    Kind("tied", "qwen3", {"tie_word_embeddings": True}),
    Kind("qwen2", "qwen2"),
    Kind("window", "mistral", {"sliding_window": 8}),
    Kind("4-bits", "llama", {}, {"bits": 4}, WeightFormat("int4", group=32)),
    Kind(
        "4-bits-with-zero-points",
        "qwen3",
        {},
        {"bits": 4, "has_zeros": True},
        WeightFormat("int4", group=32, has_zero_points=True),
    ),
    Kind("8-bits", "qwen2", {}, {"bits": 8}, WeightFormat("int8", group=32)),
]


def write(kind: Kind, folder: Path) -> tuple[Path, Path]:
    """The folder of the graph, and one that transformers reads, of the same values."""
    wide = folder / "wide"
    write_model(Case(kind.name, SIZES | kind.more, kind.family), wide)
    state = {name: t.numpy() for name, t in load_file(wide / "model.safetensors").items()}
    config = read_config(wide)
    graph = Graph(json.loads((wide / "config.json").read_text()), state, **kind.how)
    graph.build(inverse_frequencies(config.rope, config.head_dim))
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    save_file(
        {name: torch.tensor(values) for name, values in state.items()},
        wide / "model.safetensors",
        {"format": "pt"},
    )
    return graph.write(folder / "graph"), wide


def logits_of(source: Any) -> np.ndarray:
    """Of PROMPT, by the NumPy executor in float32."""
    with closing(executor_of(source)) as executor:
        return Driver(executor).prefill(PROMPT, len(PROMPT))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_graph_is_read_as_the_model_it_was_made_of(kind: Kind, tmp_path: Path) -> None:
    graph, wide = write(kind, tmp_path)
    source = open_source(graph)
    assert isinstance(source, OnnxModel)
    config, expected = ModelConfig.from_source(source), read_config(wide)
    assert config.shape(64).traits.kinds == expected.shape(64).traits.kinds
    assert config.rope == expected.rope
    assert config.eos_token_ids == (7, 9)
    assert config.stored.layers == kind.kept
    tensors = load_file(wide / "model.safetensors")
    with source.checkpoint() as checkpoint:
        assert checkpoint.tensors.keys() == tensors.keys()
        for name, tensor in tensors.items():
            values = tensor.numpy()
            for start, stop in ((0, len(values)), (1, 9)):
                buffer = np.empty(values.nbytes, np.uint8)
                rows = checkpoint.read_rows(name, start, stop, buffer)
                np.testing.assert_array_equal(rows, values[start:stop])
                if (codes := checkpoint.tensors[name].codes) is not None:
                    kept = checkpoint.read_codes(name, start, stop, buffer)
                    np.testing.assert_array_equal(kept.dequantized(codes), rows)
    truth = open_source(wide)
    np.testing.assert_allclose(logits_of(source), logits_of(truth), rtol=1e-4, atol=1e-4)


def test_sampling_defaults_are_those_of_the_folder(tmp_path: Path) -> None:
    graph, _ = write(KINDS[0], tmp_path)
    said = OnnxModel(graph).generation()
    assert (said.get("temperature"), said.get("top_k"), said.get("top_p")) == (0.6, 20, None)


def change(folder: Path, what: Callable[[onnx.GraphProto], None]) -> None:
    """Edit the graph of a folder."""
    file = folder / "model.onnx"
    model = onnx.load(file, load_external_data=False)
    what(model.graph)
    file.write_bytes(model.SerializeToString())


def node(graph: onnx.GraphProto, op: str) -> onnx.NodeProto:
    return next(each for each in graph.node if each.op_type == op)


def set_fact(op: str, name: str, value: Any) -> Callable[[onnx.GraphProto], None]:
    def edit(graph: onnx.GraphProto) -> None:
        found = node(graph, op)
        kept = [each for each in found.attribute if each.name != name]
        del found.attribute[:]
        found.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])

    return edit


def set_op(op: str, other: str) -> Callable[[onnx.GraphProto], None]:
    def edit(graph: onnx.GraphProto) -> None:
        node(graph, op).op_type = other

    return edit


def set_location(graph: onnx.GraphProto) -> None:
    graph.initializer[0].external_data[0].value = "../secret"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (set_op("Sigmoid", "Tanh"), r"is no product of SiLU of a gate and another matrix"),
        (set_op("GroupQueryAttention", "MultiHeadAttention"), r"made by MultiHeadAttention \("),
        (set_op("Gather", "Embed"), r"is made by Embed .*where Gather or GatherBlockQuantized"),
        (set_fact("GroupQueryAttention", "do_rotary", 0), r"rotates in another way"),
        (lambda graph: node(graph, "Sigmoid").ClearField("input"), r"a node lacks inputs"),
        (set_fact("GroupQueryAttention", "softcap", 30.0), r"caps its scores"),
        (
            set_fact("GroupQueryAttention", "scale", 0.5),
            r"its layers differ in heads, windows or scales",
        ),
        (set_fact("GroupQueryAttention", "num_heads", 2), r"no whole heads|layers differ"),
        (set_fact("SimplifiedLayerNormalization", "epsilon", 0.5), r"epsilon of its own"),
        (set_location, r"lies in '../secret'; the name of a file beside"),
    ],
)
def test_what_is_not_known_is_named(
    tmp_path: Path, edit: Callable[[onnx.GraphProto], None], message: str
) -> None:
    graph, _ = write(KINDS[0], tmp_path)
    change(graph, edit)
    with pytest.raises(ModelError, match=message):
        ModelConfig.from_source(OnnxModel(graph))


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    graph, _ = write(KINDS[0], tmp_path)
    data = graph / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"model\.onnx\.data: has \d+ bytes, but"):
        OnnxModel(graph).config()
    data.unlink()
    with pytest.raises(ModelError, match="is missing, but"):
        OnnxModel(graph).config()
    change(graph, lambda found: found.ClearField("initializer"))
    change(graph, lambda found: node(found, "GroupQueryAttention").ClearField("attribute"))
    with pytest.raises(ModelError, match=r"is computed, where a constant is known"):
        OnnxModel(graph).config()
    (graph / "model.onnx").write_bytes(b"")
    with pytest.raises(ModelError, match="it has no outputs"):
        OnnxModel(graph).config()
    (graph / "model.onnx").write_bytes(b"\x08\xff\xff")
    with pytest.raises(ModelError, match="cannot be read as ONNX"):
        OnnxModel(graph).config()
    (graph / "other.onnx").write_bytes(b"")
    with pytest.raises(ModelError, match=r"holds model\.onnx, other\.onnx; name the one"):
        OnnxModel(graph).config()
