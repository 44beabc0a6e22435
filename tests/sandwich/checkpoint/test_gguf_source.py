"""A GGUF file as a model: its configuration, its split, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sandwich.checkpoint.formats import open_source
from sandwich.checkpoint.gguf.source import GgufModel
from sandwich.checkpoint.huggingface import HuggingFaceFolder
from sandwich.errors import ModelError
from sandwich.models.config import ModelConfig
from sandwich.models.rope import RopeConfig, inverse_frequencies
from sandwich.models.sampling_defaults import generation_defaults
from sandwich.models.tensors import checkpoint_tensors
from tests.sandwich.checkpoint.conftest import (
    DIM,
    HEADS,
    HIDDEN,
    INTERMEDIATE,
    KV_HEADS,
    LAYERS,
    llama_metadata,
    random_tensors,
    write_gguf,
)

RENAMED = "model-00001-of-00002.gguf"


def write(folder: Path, vocab_size: int, split: int = 0, **changes: Any) -> Path:
    tensors = random_tensors(vocab_size)
    return write_gguf(folder / "model.gguf", llama_metadata(**changes), tensors, split)


def config_of(file: Path) -> ModelConfig:
    return ModelConfig.from_source(GgufModel(file))


def test_the_configuration_is_that_of_the_metadata(tmp_path: Path, vocab_size: int) -> None:
    assert config_of(write(tmp_path, vocab_size)) == ModelConfig(
        name="model",
        num_layers=LAYERS,
        hidden_size=HIDDEN,
        num_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=DIM,
        intermediate_size=INTERMEDIATE,
        vocab_size=vocab_size,
        max_position_embeddings=128,
        rms_norm_eps=float(np.float32(1e-5)),
        tie_word_embeddings=True,
        rope=RopeConfig(10000.0),
        dtype="float32",
        bos_token_id=0,
        eos_token_ids=(1, 3),  # and <|end|>
    )


def test_heads_may_be_wider_than_the_hidden_size_says(tmp_path: Path, vocab_size: int) -> None:
    wide: dict[str, Any] = {"llama.attention.key_length": 96, "llama.rope.dimension_count": 96}
    file = write(tmp_path, vocab_size, **wide)
    assert config_of(file).head_dim == 96


def test_sampling_defaults_are_read(tmp_path: Path, vocab_size: int) -> None:
    file = write(tmp_path, vocab_size, general__sampling__temp=0.5, general__sampling__top_k=7)
    assert generation_defaults(GgufModel(file).generation()) == {"temperature": 0.5, "top_k": 7}


def test_llama_3_1s_scaling_is_found_in_its_factors(tmp_path: Path, vocab_size: int) -> None:
    scaled = RopeConfig(500000.0, "llama3", 8.0, 1.0, 4.0, 8192)
    plain = inverse_frequencies(RopeConfig(500000.0), DIM)
    factors = plain / inverse_frequencies(scaled, DIM)
    metadata = llama_metadata(llama__rope__freq_base=500000.0)
    tensors = random_tensors(vocab_size)
    for name, stored, expected in (
        ("scaled", factors, scaled),
        ("plain", np.ones_like(factors), RopeConfig(500000.0)),
    ):
        file = write_gguf(
            tmp_path / f"{name}.gguf", metadata, {**tensors, "rope_freqs.weight": stored}
        )
        assert config_of(file).rope == expected
    other = {**tensors, "rope_freqs.weight": factors[::-1].copy()}
    with pytest.raises(ModelError, match="other factors than Llama 3"):
        config_of(write_gguf(tmp_path / "other.gguf", metadata, other))


def test_linear_scaling_is_read_and_other_kinds_are_refused(
    tmp_path: Path, vocab_size: int
) -> None:
    changes: dict[str, Any] = {
        "llama.rope.scaling.type": "linear",
        "llama.rope.scaling.factor": 4.0,
    }
    assert config_of(write(tmp_path, vocab_size, **changes)).rope == RopeConfig(
        10000.0, "linear", 4.0
    )
    with pytest.raises(ModelError, match="su-scaled"):
        config_of(write(tmp_path, vocab_size, llama__rope__scaling__type="su-scaled"))


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_tensors_of_every_architecture_are_those_of_its_family(
    tmp_path: Path, vocab_size: int, arch: str
) -> None:
    tensors = random_tensors(vocab_size)
    for layer in range(LAYERS):
        for part, rows in (("q", HIDDEN), ("k", KV_HEADS * DIM), ("v", KV_HEADS * DIM)):
            if arch == "qwen2":
                tensors[f"blk.{layer}.attn_{part}.bias"] = np.ones(rows, np.float32)
            if arch == "qwen3" and part != "v":
                tensors[f"blk.{layer}.attn_{part}_norm.weight"] = np.ones(DIM, np.float32)
    metadata = {key.replace("llama.", f"{arch}."): v for key, v in llama_metadata().items()}
    file = write_gguf(
        tmp_path / "m.gguf",
        metadata | {"general.architecture": arch, f"{arch}.attention.key_length": DIM},
        tensors,
    )
    source = GgufModel(file)
    config = ModelConfig.from_source(source)
    wanted = {
        tensor.name: tensor.shape for tensor in checkpoint_tensors(config.shape(64), config.names)
    }
    found = source.checkpoint().tensors
    assert {name: stored.shape for name, stored in found.items()} == wanted


# ---- files ----


def test_any_file_of_a_split_model_is_the_model(tmp_path: Path, vocab_size: int) -> None:
    whole = GgufModel(write(tmp_path, vocab_size)).checkpoint()
    folder = tmp_path / "split"
    folder.mkdir()
    write(folder, vocab_size, split=7)
    files = sorted(folder.iterdir())
    assert len(files) == 3
    for path in (*files, folder):
        source = open_source(path)
        assert source.name == files[0].stem
        checkpoint = source.checkpoint()
        assert checkpoint.tensors.keys() == whole.tensors.keys()
        assert {tensor.file for tensor in checkpoint.tensors.values()} == set(files)
        with checkpoint, whole:
            buffers = [np.empty(4 * HIDDEN, np.uint8) for _ in range(2)]
            for name in whole.tensors:
                one = checkpoint.read_rows(name, 0, 1, buffers[0])
                np.testing.assert_array_equal(one, whole.read_rows(name, 0, 1, buffers[1]))


def test_a_missing_file_of_a_split_model_is_named(tmp_path: Path, vocab_size: int) -> None:
    first = write(tmp_path, vocab_size, split=7)
    sorted(tmp_path.iterdir())[1].unlink()
    with pytest.raises(ModelError, match=r"model-00002-of-00003\.gguf.*No such file"):
        GgufModel(first).config()


def test_files_of_other_names_are_refused(tmp_path: Path, vocab_size: int) -> None:
    first = write(tmp_path, vocab_size, split=7)
    for name in ("mine.gguf", RENAMED):
        renamed = first.rename(tmp_path / name)
        with pytest.raises(ModelError, match="give the files their names back"):
            GgufModel(renamed).config()
        first = renamed


def test_files_in_the_wrong_order_are_refused(tmp_path: Path, vocab_size: int) -> None:
    first = write(tmp_path, vocab_size, split=7)
    _, second, third = sorted(tmp_path.iterdir())
    other = second.rename(tmp_path / "other")
    third.rename(second)
    other.rename(third)
    with pytest.raises(ModelError, match="number 2 of its files"):
        GgufModel(first).config()


def test_a_folder_with_several_models_asks_for_one(tmp_path: Path, vocab_size: int) -> None:
    write(tmp_path, vocab_size).rename(tmp_path / "a.gguf")
    write(tmp_path, vocab_size).rename(tmp_path / "b.gguf")
    with pytest.raises(ModelError, match=r"2 models \(a\.gguf, b\.gguf\)"):
        open_source(tmp_path).config()


def test_a_folder_with_safetensors_too_is_a_hugging_face_folder(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").touch()
    (tmp_path / "model.safetensors").touch()
    assert isinstance(open_source(tmp_path), HuggingFaceFolder)


def test_a_file_is_recognised_by_what_it_holds(tmp_path: Path, vocab_size: int) -> None:
    blob = write(tmp_path, vocab_size).rename(tmp_path / "blob")
    assert open_source(blob).config().get("num_hidden_layers") == LAYERS
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ModelError, match="no GGUF file"):
        open_source(tmp_path / "text")


# ---- refused ----


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"llama.block_count": None}, "num_hidden_layers"),
        ({"llama.embedding_length": None}, "hidden_size"),
        ({"llama.attention.head_count": [4, 2]}, "num_attention_heads"),
        ({"llama.attention.head_count_kv": 3}, "num_key_value_heads"),
        ({"llama.rope.dimension_count": 32}, "dimension_count is 32; 64"),
        ({"llama.attention.sliding_window": 64}, "sliding_window"),
    ],
)
def test_metadata_that_do_not_make_a_model_are_named(
    tmp_path: Path, vocab_size: int, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(ModelError, match=named):
        config_of(write(tmp_path, vocab_size, **changes))


def test_an_unknown_architecture_is_refused_with_the_known_ones(
    tmp_path: Path, vocab_size: int
) -> None:
    file = write(tmp_path, vocab_size, general__architecture="mamba")
    with pytest.raises(ModelError, match=r"general\.architecture is 'mamba'; supported: llama"):
        GgufModel(file).config()


def test_a_file_of_a_vocabulary_alone_has_no_tensors(tmp_path: Path, vocab_size: int) -> None:
    source = GgufModel(write_gguf(tmp_path / "vocab.gguf", llama_metadata(), {}))
    assert not source.has_tensors
    assert source.tokenizer().backend.get_vocab_size() == vocab_size
