"""Weights reach their packed place; a checkpoint that is wrong is refused by name."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codegen.layout.arrays import bf16_from_float32, float32_from_bf16, widen
from codegen.layout.model import ModelLayout
from codegen.layout.quantize import quantize
from codegen.spec import WeightFormat
from platforms.memory import Arena
from sandwich.checkpoint.safetensors import SafetensorsCheckpoint
from sandwich.errors import ModelError
from sandwich.models.config import ModelConfig
from sandwich.models.family import Switches
from sandwich.models.llama import NAMES
from sandwich.models.rope import inverse_frequencies
from sandwich.models.tensors import checkpoint_tensors
from sandwich.weights import load as weights_module
from sandwich.weights.load import ModelWeights, load_weights, random_weights

Arrays = dict[str, np.ndarray]
SAFETENSORS_DTYPES = {"float32": "F32", "float16": "F16", "uint16": "BF16", "int64": "I64"}


def make_config(
    attention_bias: bool = False, mlp_bias: bool = False, **changes: Any
) -> ModelConfig:
    values: dict[str, Any] = {
        "name": "made-up",
        "num_layers": 2,
        "hidden_size": 36,
        "num_heads": 3,
        "num_kv_heads": 1,
        "head_dim": 20,
        "intermediate_size": 43,
        "vocab_size": 75,
        "max_position_embeddings": 16,
        "switches": Switches(attention_bias, attention_bias, mlp_bias),
    }
    return ModelConfig(**(values | changes))


def make_tensors(config: ModelConfig) -> Arrays:
    """Every tensor of a checkpoint, float32 values that bf16 can hold, no two alike."""
    rng = np.random.default_rng(1)
    return {
        tensor.name: float32_from_bf16(
            bf16_from_float32(rng.standard_normal(tensor.shape).astype(np.float32))
        )
        for tensor in checkpoint_tensors(config.shape(16), NAMES)
    }


def write_file(file: Path, tensors: Arrays) -> None:
    """The format, by hand: length of the header, JSON header, data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, array in tensors.items():
        header[name] = {
            "dtype": SAFETENSORS_DTYPES[str(array.dtype)],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header).encode()
    data = b"".join(array.tobytes() for array in tensors.values())
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


def write_checkpoint(folder: Path, tensors: Arrays) -> Path:
    folder.mkdir(exist_ok=True)
    write_file(folder / "model.safetensors", tensors)
    return folder


def write_shards(folder: Path, tensors: Arrays, num_shards: int = 3) -> Path:
    folder.mkdir(exist_ok=True)
    weight_map: dict[str, str] = {}
    for shard in range(num_shards):
        file = f"model-{shard + 1:05}-of-{num_shards:05}.safetensors"
        part = dict(list(tensors.items())[shard::num_shards])
        write_file(folder / file, part)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def make_layout(
    config: ModelConfig,
    dtype: str = "float32",
    weights: WeightFormat | None = None,
    lm_head: WeightFormat | None = None,
) -> ModelLayout:
    return ModelLayout.build(config.shape(16), dtype, 4, 16, weights, lm_head)


def load(folder: Path, config: ModelConfig, dtype: str = "float32") -> ModelWeights:
    return load_into(make_layout(config, dtype), folder, config)


def load_into(layout: ModelLayout, folder: Path, config: ModelConfig) -> ModelWeights:
    return load_weights(
        SafetensorsCheckpoint(folder), config, layout, Arena(layout.weight_bytes, "weights")
    )


def unpack(weights: ModelWeights) -> Arrays:
    """The checkpoint's tensors again, float32, out of the packed ones."""
    layout, packed = weights.layout, weights.tensors

    def rows(role: str, layer: int | None = None) -> np.ndarray:
        return layout.panels(role).unpack(layout.matrix(packed, role, layer))

    shape = layout.shape
    query, key = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    gate, up = map(layout.matrices["gate_up"].columns, ("gate", "up"))
    tensors = {
        "model.embed_tokens.weight": rows("lm_head"),
        "model.norm.weight": packed["norm"][: shape.hidden_size],
    }
    if not shape.tied_embeddings:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        tensors["model.embed_tokens.weight"] = widen(packed["embed_tokens"])
    for layer in range(shape.num_layers):
        qkv = np.split(rows("qkv", layer), (query, query + key))
        gate_up = rows("gate_up", layer)
        wide_o = rows("o", layer)  # heads are padded
        linears: dict[str, tuple[np.ndarray, str, Any]] = {
            "self_attn.q_proj": (qkv[0], "qkv_bias", slice(0, query)),
            "self_attn.k_proj": (qkv[1], "qkv_bias", slice(query, query + key)),
            "self_attn.v_proj": (qkv[2], "qkv_bias", slice(query + key, query + 2 * key)),
            "self_attn.o_proj": (
                wide_o.reshape(36, shape.num_heads, -1)[:, :, : shape.head_dim].reshape(36, -1),
                "o_bias",
                slice(0, 36),
            ),
            "mlp.gate_proj": (gate_up[gate], "gate_up_bias", gate),
            "mlp.up_proj": (gate_up[up], "gate_up_bias", up),
            "mlp.down_proj": (rows("down", layer), "down_bias", slice(0, 36)),
        }
        prefix = f"model.layers.{layer}."
        for name, (matrix, bias, columns) in linears.items():
            tensors[f"{prefix}{name}.weight"] = matrix
            if bias in packed:
                tensors[f"{prefix}{name}.bias"] = packed[bias][layer, columns]
        for name, role in (("input", "input_norm"), ("post_attention", "post_attention_norm")):
            tensors[f"{prefix}{name}_layernorm.weight"] = packed[role][layer, : shape.hidden_size]
    return tensors


def assert_same(actual: Arrays, expected: Arrays) -> None:
    assert actual.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(actual[name], expected[name], err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("write", [write_checkpoint, write_shards])
def test_every_tensor_reaches_its_place(
    tmp_path: Path, write: Any, has_bias: bool, is_tied: bool, dtype: str
) -> None:
    config = make_config(attention_bias=has_bias, mlp_bias=has_bias, tie_word_embeddings=is_tied)
    tensors = make_tensors(config)
    assert_same(unpack(load(write(tmp_path, tensors), config, dtype)), tensors)


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_are_converted_from_every_stored_type(
    tmp_path: Path, stored: str, dtype: str
) -> None:
    config = make_config(attention_bias=True)
    rng = np.random.default_rng(2)
    exact = {
        name: rng.standard_normal(a.shape).astype(np.float16 if stored == "float16" else np.float32)
        for name, a in make_tensors(config).items()
    }
    if stored == "bfloat16":
        exact = {name: bf16_from_float32(a) for name, a in exact.items()}
    expected = {name: widen(a) for name, a in exact.items()}
    if dtype == "bfloat16":  # of matrices: norms and biases keep their values
        expected = {
            name: widen(bf16_from_float32(a)) if a.ndim == 2 else a for name, a in expected.items()
        }
    assert_same(unpack(load(write_checkpoint(tmp_path, exact), config, dtype)), expected)


@pytest.mark.parametrize(
    "weights",
    [
        WeightFormat("int8"),
        WeightFormat("int8", activations="int8", group=32),
        WeightFormat("int4", activations="int8", group=32, scale_dtype="float16"),
    ],
    ids=lambda weights: weights.name,
)
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_matrices_are_quantised_from_the_stored_values_and_vectors_are_kept(
    tmp_path: Path, weights: WeightFormat, stored: str
) -> None:
    config = make_config(head_dim=12, attention_bias=True, mlp_bias=True)
    tensors = make_tensors(config)
    if stored == "float32":
        tensors = {name: array * np.float32(1.001) for name, array in tensors.items()}
    lm_head = WeightFormat("int8", activations="int8")

    def rounded(name: str, rows: np.ndarray) -> np.ndarray:
        if rows.ndim == 1:
            return rows
        if name == "model.embed_tokens.weight":
            return widen(bf16_from_float32(rows))
        into = lm_head if name == "lm_head.weight" else weights
        return quantize(rows, into).dequantized(into)

    halves = {name: bf16_from_float32(array) for name, array in tensors.items()}
    folder = write_checkpoint(tmp_path, tensors if stored == "float32" else halves)
    loaded = load_into(make_layout(config, "bfloat16", weights, lm_head), folder, config)
    assert_same(unpack(loaded), {name: rounded(name, array) for name, array in tensors.items()})


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["model.norm.weight", "lm_head.weight"])
def test_values_that_are_no_numbers_are_refused(
    tmp_path: Path, stored: str, value: float, name: str
) -> None:
    config = make_config()
    tensors = make_tensors(config)
    tensors[name].reshape(-1)[-1] = value
    if stored == "bfloat16":
        tensors = {key: (a.view(np.uint32) >> 16).astype(np.uint16) for key, a in tensors.items()}
    if stored == "float16":
        tensors = {key: a.astype(np.float16) for key, a in tensors.items()}
    last = config.vocab_size - 1 if name == "lm_head.weight" else config.hidden_size - 1
    with pytest.raises(ModelError, match=rf"{name} has values .* no numbers, in rows 0 to {last}"):
        load(write_checkpoint(tmp_path, tensors), config)


@pytest.mark.parametrize("num_values", [1, 36 * 16, 36 * 16 * 2])
def test_small_chunks_give_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_values: int
) -> None:
    monkeypatch.setattr(weights_module, "CHUNK_VALUES", num_values)
    config = make_config(tie_word_embeddings=True, mlp_bias=True)
    tensors = make_tensors(config)
    assert_same(unpack(load(write_checkpoint(tmp_path, tensors), config)), tensors)


def test_padding_is_zero(tmp_path: Path) -> None:
    config = make_config(hidden_size=37, attention_bias=True)
    packed = load(write_checkpoint(tmp_path, make_tensors(config)), config).tensors
    assert packed["norm"].shape == (40,)
    assert not packed["norm"][37:].any()
    assert not packed["o_bias"][:, 37:].any()


def test_tensors_that_a_model_computes_or_shares_itself_may_be_stored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(tie_word_embeddings=True)
    tensors = make_tensors(config)
    extra = {
        "lm_head.weight": tensors["model.embed_tokens.weight"],
        "model.layers.0.self_attn.rotary_emb.inv_freq": inverse_frequencies(config.rope, 20),
    }
    assert_same(unpack(load(write_checkpoint(tmp_path, tensors | extra), config)), tensors)
    assert not caplog.records


@pytest.mark.parametrize("stored", [np.ones(10, np.float32), np.ones(9, np.float16)])
def test_stored_frequencies_that_are_not_those_of_the_config_are_spoken_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, stored: np.ndarray
) -> None:
    config = make_config()
    name = "model.layers.1.self_attn.rotary_emb.inv_freq"
    tensors = make_tensors(config)
    assert_same(
        unpack(load(write_checkpoint(tmp_path, {**tensors, name: stored}), config)), tensors
    )
    [record] = caplog.records
    assert name in record.getMessage()
    assert "config.json is used" in record.getMessage()


def test_missing_extra_and_misshapen_tensors_are_all_named(tmp_path: Path) -> None:
    config = make_config()
    tensors = make_tensors(config)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.ones(60, np.float32)
    tensors["model.norm.weight"] = np.zeros(35, np.float32)
    tensors["lm_head.weight"] = np.zeros((75, 36), np.int64)
    with pytest.raises(ModelError) as caught:
        load(write_checkpoint(tmp_path, tensors), config)
    for part in (
        "model.layers.1.mlp.up_proj.weight is missing",
        "model.layers.0.self_attn.q_proj.bias is not part of the model",
        "model.norm.weight [35] instead of [36] is of another shape",
        "lm_head.weight I64 is of a type other than F32, F16, BF16",
        str(tmp_path),
    ):
        assert part in str(caught.value)


def test_of_many_missing_tensors_some_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"and 16 more are missing"):
        load(write_checkpoint(tmp_path, {}), make_config())


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"neither model\.safetensors nor model\.safetensors\.index"
    ):
        load(tmp_path, make_config())


@pytest.mark.parametrize("num_bytes", [0, 7, 8, 100, -1])
def test_a_file_cut_short_is_refused(tmp_path: Path, num_bytes: int) -> None:
    config = make_config()
    file = write_checkpoint(tmp_path, make_tensors(config)) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:num_bytes])
    with pytest.raises(ModelError, match=r"model\.safetensors: is damaged or cut short"):
        load(tmp_path, config)


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path) -> None:
    config = make_config()
    file = write_checkpoint(tmp_path, make_tensors(config)) / "model.safetensors"
    with SafetensorsCheckpoint(tmp_path) as checkpoint:
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(ModelError, match=r"model\.safetensors: ends at byte \d+"):
            checkpoint.read_rows("lm_head.weight", 74, 75, np.empty(36 * 4, np.uint8))


@pytest.mark.parametrize(
    "header", [b"{", b"\xff\xff", b"[]", b'{"a": 1}', b'{"a": {"dtype": "F32", "shape": [4]}}']
)
def test_a_damaged_header_is_refused(tmp_path: Path, header: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ModelError, match=r"model\.safetensors: is damaged"):
        load(tmp_path, make_config())


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    config = make_config()
    write_shards(tmp_path, make_tensors(config))
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model-00002-of-00003\.safetensors: there is no such"):
        load(tmp_path, config)


def test_an_index_that_names_a_tensor_its_file_lacks_is_refused(tmp_path: Path) -> None:
    config = make_config()
    index = write_shards(tmp_path, make_tensors(config)) / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    data["weight_map"]["model.extra"] = "model-00001-of-00003.safetensors"
    index.write_text(json.dumps(data))
    with pytest.raises(ModelError, match=r"lacks tensor model\.extra"):
        load(tmp_path, config)


@pytest.mark.parametrize("weight_map", [{}, None, 3, {"a": "../x"}, {"a": 1}, {"a": "/etc/x"}])
def test_an_index_that_maps_to_no_file_beside_it_is_refused(
    tmp_path: Path, weight_map: Any
) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelError, match="weight_map"):
        load(tmp_path, make_config())


def test_random_weights_are_small_reproducible_and_fill_every_matrix() -> None:
    config = make_config(attention_bias=True)

    def fill(seed: int) -> ModelWeights:
        layout = make_layout(config, "bfloat16")
        return random_weights(config, layout, Arena(layout.weight_bytes, "weights"), seed)

    first, again, other = (unpack(fill(seed)) for seed in (0, 0, 1))
    assert_same(again, first)
    for name, array in first.items():
        if "norm" in name:
            assert (array == 1).all()
        else:
            assert 0.01 < array.std() < 0.03
            assert not np.array_equal(other[name], array)
    one, two = (first[f"model.layers.{layer}.mlp.up_proj.weight"] for layer in (0, 1))
    assert not np.array_equal(one, two)
