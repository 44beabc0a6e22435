"""config.json says that the LM head is the embedding; the file may say otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from tests.sandwich.models.cases import Case, sizes
from tests.sandwich.models.conftest import (
    Driver,
    ExecutorFactory,
    make_compiled,
    make_reference,
    read_config,
)

TIED = Case("tied", sizes(64, 4, 2, 16, tie_word_embeddings=True))
TOKEN_IDS = [3, 99, 41, 5, 17, 62]


def write(folder: Path, head: str | None, dtype: torch.dtype = torch.float32) -> Path:
    """A tied tiny Llama; `head`: "equal" or "differs" puts an lm_head.weight into the file."""
    torch.manual_seed(5)
    LlamaForCausalLM(LlamaConfig(**TIED.config)).save_pretrained(folder)
    file = folder / "model.safetensors"
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(file).items()}
    embedding = tensors["model.embed_tokens.weight"]
    if head == "equal":
        tensors["lm_head.weight"] = embedding.clone()
    elif head is not None:
        tensors["lm_head.weight"] = embedding.clone()
        tensors["lm_head.weight"][-1, -1] += 1  # the last value of all
    save_file(tensors, file, {"format": "pt"})
    return folder


@pytest.mark.parametrize(("head", "is_tied"), [(None, True), ("equal", True), ("differs", False)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_values_in_the_file_decide(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    head: str | None,
    is_tied: bool,
    dtype: torch.dtype,
) -> None:
    config = read_config(write(tmp_path, head, dtype))
    assert config.tie_word_embeddings is is_tied
    assert [r.levelname for r in caplog.records] == ([] if is_tied else ["WARNING"])


def test_a_folder_without_weights_is_what_it_says(tmp_path: Path) -> None:
    (write(tmp_path, "differs") / "model.safetensors").unlink()
    assert read_config(tmp_path).tie_word_embeddings


@pytest.mark.parametrize("make", [make_compiled, make_reference])
def test_a_head_that_differs_is_the_head_that_transformers_uses(
    tmp_path: Path, make: ExecutorFactory
) -> None:
    folder = write(tmp_path, "differs")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = torch.randn_like(tensors["lm_head.weight"])
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    truth = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = truth(torch.tensor([TOKEN_IDS])).logits[0].numpy()
    executor = make(folder, "float32")
    try:
        logits = Driver(executor).prefill(TOKEN_IDS, len(TOKEN_IDS))
    finally:
        executor.close()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
