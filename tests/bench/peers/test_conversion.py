"""Random checkpoints and their GGUF copies hold the same values."""

import json
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from bench.peers.checkpoint import as_folder, random_checkpoint
from bench.peers.gguf_file import gguf_name, rotated, write_gguf
from sandwich.checkpoint.formats import open_source
from sandwich.checkpoint.safetensors import SafetensorsCheckpoint
from sandwich.checkpoint.tokenizer_files import read_tokenizer
from sandwich.models.config import ModelConfig


def config_of(folder: Path) -> ModelConfig:
    return ModelConfig.from_source(open_source(folder))


def values(folder: Path, name: str) -> npt.NDArray[np.uint16]:
    tensor = SafetensorsCheckpoint(folder).tensors[name]
    return np.fromfile(
        tensor.file, np.uint16, int(np.prod(tensor.shape)), offset=tensor.offset
    ).reshape(tensor.shape)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    tokenizer = read_tokenizer(tokenizer_folder)
    return random_checkpoint("tiny", tokenizer, tmp_path_factory.mktemp("cache"))


def test_a_random_checkpoint_is_one_that_can_be_read(folder: Path) -> None:
    config = config_of(folder)
    assert config.dtype == "bfloat16"
    down = values(folder, "model.layers.0.mlp.down_proj.weight")
    assert down.shape == (config.hidden_size, config.intermediate_size)
    assert len(np.unique(down)) > 100
    assert not np.array_equal(down, values(folder, "model.layers.1.mlp.down_proj.weight"))


def test_it_is_made_once(folder: Path, tokenizer_folder: Path) -> None:
    before = (folder / "model.safetensors").stat().st_mtime_ns
    again = random_checkpoint("tiny", read_tokenizer(tokenizer_folder), folder.parents[3])
    assert again == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_a_gguf_file_has_the_same_values(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(folder, file)
    reader = gguf.GGUFReader(file)
    config = config_of(folder)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors) == len(SafetensorsCheckpoint(folder).tensors)
    up = tensors["blk.1.ffn_up.weight"]
    assert up.tensor_type == gguf.GGMLQuantizationType.BF16
    stored = values(folder, "model.layers.1.mlp.up_proj.weight")
    np.testing.assert_array_equal(up.data.view(np.uint16).reshape(stored.shape), stored)
    q = tensors["blk.0.attn_q.weight"].data.view(np.uint16)
    stored = values(folder, "model.layers.0.self_attn.q_proj.weight")
    np.testing.assert_array_equal(q.reshape(stored.shape), rotated(stored, config.num_heads))
    norm = tensors["output_norm.weight"]
    assert norm.tensor_type == gguf.GGMLQuantizationType.F32
    assert set(norm.data) == {1.0}
    fields = reader.fields
    assert fields["llama.attention.head_count_kv"].contents() == config.num_kv_heads
    assert len(fields["tokenizer.ggml.tokens"].contents()) == config.vocab_size
    tokens = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert fields["tokenizer.ggml.tokens"].contents()[tokens["a"]] == "a"


@pytest.mark.parametrize(("kind", "levels"), [("Q8_0", 127), ("Q4_0", 8), ("F16", 1 << 10)])
def test_a_gguf_file_of_a_type_is_near_its_values(
    folder: Path, tmp_path: Path, kind: str, levels: int
) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(folder, file, gguf.GGMLQuantizationType[kind])
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    up = tensors["blk.1.ffn_up.weight"]
    assert up.tensor_type.name == kind
    stored = values(folder, "model.layers.1.mlp.up_proj.weight").astype(np.uint32) << 16
    exact = stored.view(np.float32)
    error = np.abs(gguf.quants.dequantize(up.data, up.tensor_type) - exact)
    assert error.max() <= np.abs(exact).max() / levels
    assert tensors["output_norm.weight"].tensor_type.name == "F32"
    assert config_of(file).num_layers == config_of(folder).num_layers


def test_a_file_becomes_a_folder_with_the_same_values(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(folder, file)
    copy = as_folder(file, tmp_path)
    for name in ("model.layers.0.self_attn.k_proj.weight", "model.norm.weight"):
        np.testing.assert_array_equal(values(copy, name), values(folder, name))
    there = config_of(copy)
    assert there.rms_norm_eps == pytest.approx(config_of(folder).rms_norm_eps)
    same = replace(config_of(folder), name=copy.name, rms_norm_eps=there.rms_norm_eps)
    assert there == same
    assert as_folder(folder, tmp_path) == folder


def test_halves_of_a_head_alternate() -> None:
    rows = np.arange(8).reshape(8, 1)  # two heads of four
    assert rotated(rows, 2).ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("model.layers.11.self_attn.o_proj.weight", "blk.11.attn_output.weight"),
        ("model.layers.0.self_attn.q_proj.bias", "blk.0.attn_q.bias"),
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("lm_head.weight", "output.weight"),
    ],
)
def test_names_are_those_of_gguf(name: str, there: str) -> None:
    assert gguf_name(name) == there
