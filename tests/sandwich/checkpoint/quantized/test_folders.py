"""Folders that other programs quantised: values, codes that are kept, and what is refused."""

from __future__ import annotations

import json
import logging
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from sandwich.checkpoint.huggingface import HuggingFaceFolder
from sandwich.checkpoint.quantized.fp8 import _VALUES
from sandwich.config import EngineConfig
from sandwich.errors import ModelError
from sandwich.models.config import ModelConfig
from sandwich.models.stored import ROUNDED
from sandwich.startup.model import Model
from tests.sandwich.checkpoint.executors import executor_of
from tests.sandwich.checkpoint.quantized.cases import (
    AWQ,
    BY_NAME,
    CASES,
    Case,
    of_gptq,
    of_tensors,
)
from tests.sandwich.models.conftest import Driver

SIZES = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "vocab_size": 90,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 64,
    "attention_bias": True,
}
NUM_GREEDY = 8


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tiny Llama with biases."""
    torch.manual_seed(4)
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 1.2 * parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.3
            parameter.normal_(std=scale)
    folder = tmp_path_factory.mktemp("original")
    model.save_pretrained(folder)
    return folder


def write(case: Case, original: Path, folder: Path) -> dict[str, np.ndarray]:
    """The folder of a case, and beside it, as FOLDER-wide, what its codes stand for, which is also
    given by name.
    """
    wide = Path(f"{folder}-wide")
    state = load_file(original / "model.safetensors")
    stored: dict[str, torch.Tensor] = {}
    values: dict[str, np.ndarray] = {}
    for name, tensor in state.items():
        if name.endswith("_proj.weight"):
            written = case.write(tensor.numpy())
            values[name] = written.values
            state[name] = torch.tensor(written.values)
            for part, array in written.parts.items():
                key = f"{name.removesuffix('weight')}{part}"
                stored[key] = array if isinstance(array, torch.Tensor) else torch.from_numpy(array)
        else:
            stored[name] = tensor
    for target in (folder, wide):
        shutil.copytree(original, target)
    save_file(state, wide / "model.safetensors", {"format": "pt"})
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    set_config(folder, case.config)
    return values


def set_config(folder: Path, quantization: dict[str, Any]) -> None:
    file = folder / "config.json"
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"quantization_config": quantization})
    )


def greedy(driver: Driver, prompt: list[int]) -> list[int]:
    logits = driver.prefill(prompt, len(prompt))[-1]
    tokens = []
    for _ in range(NUM_GREEDY):
        tokens.append(int(logits.argmax()))
        logits = driver.decode(tokens[-1])
    return tokens


def greedy_of_transformers(folder: Path, prompt: list[int]) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        for _ in range(NUM_GREEDY):
            logits = model(torch.tensor([prompt])).logits[0, -1]
            prompt = [*prompt, int(logits.argmax())]
    return prompt[-NUM_GREEDY:]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_values_and_codes_are_those_that_were_written(
    case: Case, original: Path, tmp_path: Path
) -> None:
    values = write(case, original, tmp_path / "m")
    with HuggingFaceFolder(tmp_path / "m").checkpoint() as checkpoint:
        for name, expected in values.items():
            n, k = expected.shape
            assert checkpoint.tensors[name].shape == (n, k)
            assert checkpoint.tensors[name].codes == case.kept
            for start, stop in ((0, n), (1, 2), (16, 41), (n - 3, n)):
                buffer = np.empty((stop - start) * k * 4, np.uint8)
                rows = checkpoint.read_rows(name, start, stop, buffer)
                np.testing.assert_array_equal(rows, expected[start:stop])
                if case.kept is not None:
                    codes = checkpoint.read_codes(name, start, stop, buffer)
                    np.testing.assert_array_equal(codes.dequantized(case.kept), rows)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_widened_it_says_what_transformers_says_of_the_values(
    case: Case, original: Path, tmp_path: Path
) -> None:
    write(case, original, tmp_path / "m")
    prompt = [3, 77, 12, 5, 88, 41]
    expected = greedy_of_transformers(tmp_path / "m-wide", prompt)
    with closing(executor_of(HuggingFaceFolder(tmp_path / "m"), "none")) as executor:
        assert greedy(Driver(executor), prompt) == expected
    config = ModelConfig.from_source(HuggingFaceFolder(tmp_path / "m"))
    assert config.stored.layers == (case.kept or ROUNDED)
    assert bool(config.stored.remark) == (case.kept is None)
    if case.kept is not None and not case.kept.has_int8_activations:
        with closing(executor_of(HuggingFaceFolder(tmp_path / "m"))) as executor:
            assert greedy(Driver(executor), prompt) == expected


def test_int8_inputs_are_rounded_as_the_folder_says(original: Path, tmp_path: Path) -> None:
    write(BY_NAME["w8a8"], original, tmp_path / "m")
    prompt = [3, 77, 12, 5, 88, 41]
    with closing(executor_of(HuggingFaceFolder(tmp_path / "m"), "none")) as executor:
        expected = Driver(executor).prefill(prompt, len(prompt))
    with closing(executor_of(HuggingFaceFolder(tmp_path / "m"))) as executor:
        found = Driver(executor).prefill(prompt, len(prompt))
    assert 0 < np.sqrt(np.mean((found - expected) ** 2)) < 0.02 * np.sqrt(np.mean(expected**2))


def test_every_byte_of_fp8_is_what_torch_makes_of_it() -> None:
    codes = torch.arange(256).to(torch.uint8).view(torch.float8_e4m3fn)
    np.testing.assert_array_equal(_VALUES, codes.float().numpy())


def test_what_is_not_kept_is_said(
    original: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, save_tokenizer: Any
) -> None:
    write(BY_NAME["gptq-act-order"], original, tmp_path / "m")
    save_tokenizer(tmp_path / "m")
    caplog.set_level(logging.WARNING)
    Model.of(EngineConfig(model=str(tmp_path / "m")))
    assert "GPTQ 4 bits, act-order are rounded to int8-g32 x float" in caplog.text


def test_biases_of_zero_that_the_model_lacks_change_nothing(original: Path, tmp_path: Path) -> None:
    write(BY_NAME["gptq"], original, tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    state = load_file(file)
    state["model.layers.0.mlp.down_proj.bias"] = torch.zeros(128, dtype=torch.float16)
    state["model.layers.0.self_attn.k_scale"] = torch.ones(1)
    save_file(state, file)
    executor_of(HuggingFaceFolder(tmp_path / "m")).close()
    state["model.layers.0.mlp.down_proj.bias"][7] = 1
    save_file(state, file)
    with pytest.raises(ModelError, match=r"down_proj\.bias is not part of the model"):
        executor_of(HuggingFaceFolder(tmp_path / "m"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, r"a form for GPUs"),
        ({"quant_method": "hqq"}, r"quant_method is 'hqq'; supported: gptq, awq"),
        (of_gptq(bits=5), r"bits is 5; supported: 2, 3, 4, 8"),
        (of_gptq(checkpoint_format="marlin"), r"checkpoint_format is 'marlin'; supported: gptq"),
        (of_gptq(dynamic={"+:lm_head": {}}), r"dynamic is .*the same bits"),
        (of_gptq(group_size=-2), r"group_size is -2; a whole number of at least 1"),
        (AWQ | {"version": "gemv"}, r"version is 'gemv'; supported: gemm"),
        (AWQ | {"bits": 3}, r"bits is 3; supported: 4"),
        (of_tensors("nvfp4-pack-quantized"), r"format is 'nvfp4-pack-quantized'; supported"),
        (
            of_tensors("pack-quantized") | {"sparsity_config": {"format": "sparse-24-bitmask"}},
            r"sparsity_config\.format is 'sparse-24-bitmask'; supported: dense",
        ),
        ({"quant_method": "fp8", "fmt": "e5m2"}, r"fmt is 'e5m2'; supported: e4m3"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, r"two whole numbers are needed"),
    ],
)
def test_a_method_that_is_not_read_is_refused_with_the_reason(
    original: Path, tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(original, folder)
    set_config(folder, config)
    with pytest.raises(ModelError, match=message):
        ModelConfig.from_source(HuggingFaceFolder(folder))


def broken(original: Path, folder: Path, case: str, **parts: torch.Tensor | None) -> None:
    """A case's folder with parts of one matrix changed or left out."""
    write(BY_NAME[case], original, folder)
    file = folder / "model.safetensors"
    state = load_file(file)
    for part, tensor in parts.items():
        name = f"model.layers.1.mlp.up_proj.{part}"
        state.pop(name, None)
        if tensor is not None:
            state[name] = tensor
    save_file(state, file)


WORDS = torch.zeros(16, 256, dtype=torch.int32)


@pytest.mark.parametrize(
    ("case", "parts", "message"),
    [
        ("gptq", {"scales": None}, r"up_proj: scales is missing; F32 or F16 or BF16 is needed"),
        ("gptq", {"scales": torch.ones(4, 255)}, r"scales is \[4, 255\]; \[4, 256\] is needed"),
        ("gptq", {"qzeros": WORDS}, r"qzeros is \[16, 256\]; \[4, 32\] is needed"),
        ("gptq", {"qweight": WORDS.float()}, r"qweight is F32; I32 is needed"),
        ("gptq", {"qweight": WORDS[0]}, r"a matrix of words is needed"),
        ("awq", {"qzeros": None}, r"qzeros is missing"),
        ("awq", {"scales": torch.ones(2, 8)}, r"scales is \[2, 8\]; \[2, 256\] is needed"),
        ("packed", {"weight_shape": None}, r"weight_shape is missing"),
        ("packed", {"weight_packed": WORDS}, r"weight_packed is \[16, 256\], which does not fit"),
        ("packed", {"weight_scale": torch.ones(256, 3)}, r"weight_scale is \[256, 3\], no match"),
        ("w8a8", {"weight": torch.ones(256, 128)}, r"weight is F32; I8 or F8_E4M3 is needed"),
        ("fp8-blocks", {"weight_scale_inv": torch.ones(3, 3)}, r"which does not fit \[256, 128\]"),
    ],
)
def test_parts_that_do_not_fit_are_named(
    original: Path, tmp_path: Path, case: str, parts: dict[str, Any], message: str
) -> None:
    broken(original, tmp_path / "m", case, **parts)
    with pytest.raises(ModelError, match=message):
        HuggingFaceFolder(tmp_path / "m").checkpoint()


@pytest.mark.parametrize(
    ("case", "part", "value", "message"),
    [
        ("gptq", "qzeros", torch.zeros(4, 32, dtype=torch.int32), r"sym to false"),
        ("gptq", "g_idx", torch.zeros(128, dtype=torch.int32), r"desc_act to true"),
        ("gptq-act-order", "g_idx", torch.full((128,), 4, dtype=torch.int32), r"other than 0 to 3"),
        ("packed-act-order", "weight_g_idx", torch.full((128,), -1), r"other than 0 to 3"),
        ("fp8-of-matrices", "weight_scale", torch.tensor(torch.nan), r"infinite or no numbers"),
    ],
)
def test_contents_that_contradict_the_configuration_are_refused(
    original: Path, tmp_path: Path, case: str, part: str, value: torch.Tensor, message: str
) -> None:
    broken(original, tmp_path / "m", case, **{part: value})
    with pytest.raises(ModelError, match=message):
        executor_of(HuggingFaceFolder(tmp_path / "m"), "none")
