"""Prints docs/models.md's table: families by format and type, from random tiny models.

    python -m pytest -q -s tests/sandwich/models/fidelity.py

The NumPy executor stands for the compiled one, whose tests compare the two.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from codegen.layout.model import ModelLayout
from platforms.memory import Arena
from sandwich.checkpoint.gguf.architectures import ARCHITECTURES
from sandwich.checkpoint.huggingface import HuggingFaceFolder
from sandwich.config import EngineConfig
from sandwich.executor.reference import ReferenceExecutor
from sandwich.models.families import FAMILIES
from sandwich.startup.quantization import weight_formats
from sandwich.weights.load import load_weights
from tests.sandwich.models.cases import CASES, MAX_MODEL_LEN, Case
from tests.sandwich.models.conftest import (
    Driver,
    TinyModel,
    kv_layout,
    limits_of,
    read_config,
    write_model,
)

TYPES = ("none", "int8", "int8-w8a8", "int4")


def error_of(tiny: TinyModel, dtype: str, quantization: str) -> float:
    """Root mean square of the error of all logits over that of the logits."""
    config = read_config(tiny.folder)
    formats = weight_formats(EngineConfig(quantization=quantization), dtype)
    shape, limits = config.shape(MAX_MODEL_LEN), limits_of(config)
    layout = ModelLayout.build(shape, dtype, 8, 32, formats.layers, formats.lm_head)
    source, arena = HuggingFaceFolder(tiny.folder), Arena(layout.weight_bytes, "weights")
    weights = load_weights(source.checkpoint(), config, layout, arena)
    with closing(ReferenceExecutor(weights, kv_layout(shape, 8, dtype, limits), limits)) as made:
        logits = Driver(made).prefill(tiny.token_ids, len(tiny.token_ids))
    return float(np.sqrt(np.mean((logits - tiny.logits) ** 2) / np.mean(tiny.logits**2)))


def row_of(case: Case, folder: Path) -> str:
    tiny = write_model(case, folder)
    architecture = next(each.architecture for each in FAMILIES if each.model_type == case.family)
    classes = {each.model_class for each in ARCHITECTURES.values()} | {"Olmo3ForCausalLM"}
    has_gguf = architecture in classes or case.family == "mistral"  # which is Llama's there
    errors = [error_of(tiny, "float32", "none")]
    errors += [error_of(tiny, "bfloat16", quantization) for quantization in TYPES]
    cells = " | ".join(f"{100 * error:.2g} %" for error in errors)
    return f"| {architecture} | {'yes' if has_gguf else 'no'} | {cells} |"


def test_print_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = {case.family: case for case in reversed(CASES)}
    assert first.keys() == {family.model_type for family in FAMILIES}
    rows = [row_of(first[family.model_type], tmp_path / family.model_type) for family in FAMILIES]
    with capsys.disabled():
        print("\n| architecture | GGUF | float32 | bfloat16 | int8 | int8-w8a8 | int4 |")
        print("|---|---|---|---|---|---|---|")
        print("\n".join(rows))
