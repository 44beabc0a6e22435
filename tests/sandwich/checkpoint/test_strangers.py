"""What is no checkpoint is named for what it is, with a remedy, before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sandwich.checkpoint.fields import read_json
from sandwich.checkpoint.formats import open_source
from sandwich.checkpoint.gguf.header import read_header
from sandwich.checkpoint.safetensors import SafetensorsCheckpoint
from sandwich.checkpoint.tokenizer_files import read_tokenizer
from sandwich.config import EngineConfig
from sandwich.errors import ModelError
from sandwich.startup.model import Model

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 1,
    "vocab_size": 64,
}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 123\n"


def model_of(path: Path) -> Model:
    return Model.of(EngineConfig(model=str(path)))


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"adapter_config.json": b"{}"}, r"holds no config\.json, but an adapter \(LoRA, PEFT\),"),
        (
            {"adapter_config.json": b'{"base_model_name_or_path": "meta/llama"}'},
            r"adapter \(LoRA, PEFT\) of meta/llama.*merge_and_unload",
        ),
        ({"adapter_config.json": b"{"}, "merge_and_unload"),
        ({"config.json": POINTER}, r"config\.json: a pointer of Git LFS.*git lfs pull"),
        ({}, r"config\.json: there is no such file"),
    ],
)
def test_a_folder_without_a_config_says_what_it_holds(
    tmp_path: Path, files: dict[str, bytes], reason: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=reason):
        model_of(tmp_path)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "give a folder with a safetensors checkpoint"),
        ({"pytorch_model.bin": b"PK"}, r"but pytorch_model\.bin: weights in PyTorch's own format"),
        ({"pytorch_model-00001-of-00002.bin": b"PK"}, "can run code.*save_pretrained"),
        ({"consolidated.00.pth": b"PK"}, "PyTorch's own format"),
        ({"tf_model.h5": b""}, "TensorFlow or Flax"),
        ({"weights.npz": b""}, "MLX"),
        ({"adapter_config.json": b"{}", "adapter_model.safetensors": b""}, "an adapter"),
    ],
)
def test_a_folder_without_safetensors_says_what_it_holds_before_anything_is_built(
    save_tokenizer: Callable[..., Path], tmp_path: Path, files: dict[str, bytes], reason: str
) -> None:
    folder = save_tokenizer(tmp_path)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with pytest.raises(ModelError, match=reason):
        model_of(folder)
    assert Model.of(EngineConfig(model=str(folder), executor="null")).config.vocab_size == 64


def test_a_pointer_of_git_is_seen_in_every_file(
    save_tokenizer: Callable[..., Path], tmp_path: Path
) -> None:
    folder = save_tokenizer(tmp_path)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "m.gguf"):
        (folder / name).write_bytes(POINTER)
    for read in (
        lambda: read_json(folder / "config.json"),
        lambda: SafetensorsCheckpoint(folder),
        lambda: read_tokenizer(folder),
        lambda: read_header(folder / "m.gguf"),
    ):
        with pytest.raises(ModelError, match="a pointer of Git LFS, not the file itself"):
            read()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (POINTER, "is a pointer of Git LFS"),
        (b"", "is a file, but no GGUF file and no ONNX graph; give one"),
    ],
)
def test_a_file_is_named_for_what_it_holds(tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "model"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=reason):
        open_source(file)
