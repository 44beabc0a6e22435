"""A quantised folder holds what rounding while loading gives, or better, and is served as such."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from codegen.layout.arrays import Floats
from codegen.layout.model import ModelLayout
from codegen.spec import WeightFormat
from platforms.memory import Arena
from sandwich.checkpoint.huggingface import HuggingFaceFolder
from sandwich.cli import main
from sandwich.config import EngineConfig
from sandwich.errors import ModelError
from sandwich.models.config import ModelConfig
from sandwich.models.tensors import CheckpointTensor, checkpoint_tensors
from sandwich.quantization.calibrate import Calibration
from sandwich.quantization.store import num_rounded, quantize_folder
from sandwich.startup.quantization import weight_formats
from sandwich.weights.load import ModelWeights, load_weights
from tests.sandwich.models.cases import Case, sizes
from tests.sandwich.models.conftest import TinyModel, write_model

HEAD = WeightFormat("int8", group=32, scale_dtype="float16")
INT4 = WeightFormat("int4", "int8", 32, "float16", has_minima=True)
W8A8 = WeightFormat("int8", "int8", 32, "float16")
CASES = [
    Case("tied", sizes(64, 4, 2, 16, tie_word_embeddings=True)),
    Case("biases", sizes(48, 3, 3, 16, attention_bias=True, mlp_bias=True)),
    Case("norms-of-heads", sizes(64, 4, 2, 16), "qwen3"),
    Case("experts", sizes(64, 4, 2, 16, num_experts=3, num_experts_per_tok=2), "olmoe"),
    Case("window", sizes(64, 4, 2, 16, sliding_window=8), "mistral"),
    Case("rotated-in-pairs", sizes(64, 4, 2, 16, pad_token_id=0), "glm4"),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return write_model(request.param, tmp_path_factory.mktemp("tiny"))


def windows_of(tiny: TinyModel) -> np.ndarray:
    return np.array(tiny.token_ids, np.int32).reshape(2, -1)


def loaded(folder: Path, layers: WeightFormat) -> ModelWeights:
    source = HuggingFaceFolder(folder)
    config = ModelConfig.from_source(source)
    layout = ModelLayout.build(config.shape(64), "float32", 16, 32, layers, HEAD)
    arena = Arena(layout.weight_bytes, "weights")
    return load_weights(source.checkpoint(), config, layout, arena)


@pytest.mark.parametrize("layers", [INT4, W8A8], ids=lambda weights: weights.name)
def test_a_folder_of_nearest_codes_is_loaded_as_what_loading_rounds_itself(
    tiny: TinyModel, layers: WeightFormat, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done: list[int] = []
    quantize_folder(HuggingFaceFolder(tiny.folder), out, layers, HEAD, None, done.append)
    config = ModelConfig.from_source(HuggingFaceFolder(out))
    assert sum(done) == num_rounded(config)
    found = weight_formats(EngineConfig(), "float32", config.stored)
    assert (found.layers, found.lm_head) == (layers, HEAD)
    expected = loaded(tiny.folder, layers).tensors
    for name, array in loaded(out, layers).tensors.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


class _Watched(Calibration):
    """Keeps what is normed at the end."""

    last: Floats

    def wanted(self, x: Floats) -> Floats:
        self.last = self.norm("norm", x)
        return super().wanted(x)


def test_the_text_goes_through_the_layers_as_through_transformers(tiny: TinyModel) -> None:
    """With 8 bits and no loss to speak of, so that all that is left to differ is the way."""
    source, windows = HuggingFaceFolder(tiny.folder), windows_of(tiny)
    config = ModelConfig.from_source(source)
    shape = config.shape(windows.shape[1])
    kept = []
    with source.checkpoint() as checkpoint:

        def read(tensor: CheckpointTensor, rows: Iterable[int] | None) -> Floats:
            buffer = np.empty(4 * int(np.prod(tensor.shape)), np.uint8)
            whole = checkpoint.read_rows(tensor.name, 0, tensor.shape[0], buffer).copy()
            return whole if rows is None else whole[list(rows)]

        tensors = list(checkpoint_tensors(shape, config.names))
        weights = WeightFormat("int8", "int8", 32, has_minima=True)
        watched = _Watched(
            *(shape, config.ropes, tensors, read, weights),
            lambda tensor, _: kept.append(tensor.name),
            config.names.head_order,
        )
        watched.run(windows)
    of_layers = [t for t in tensors if len(t.shape) == 2 and t.layer is not None]
    assert sorted(kept) == sorted(tensor.name for tensor in of_layers if not tensor.is_plain)
    with torch.no_grad():
        truth = tiny.model.model(torch.tensor(windows)).last_hidden_state.numpy()
    errors = watched.last.reshape(truth.shape) - truth
    assert np.square(errors).mean() < 1e-3 * np.square(truth).mean()


def test_a_text_makes_products_with_its_inputs_better(tiny: TinyModel, tmp_path: Path) -> None:
    source, logits = HuggingFaceFolder(tiny.folder), {}
    for name, windows in (("nearest", None), ("for-text", windows_of(tiny))):
        quantize_folder(source, tmp_path / name, INT4, HEAD, windows, lambda _: None)
        logits[name] = _logits(tiny, tmp_path / name)
    truth = np.concatenate([tiny.logits_of(window.tolist()) for window in windows_of(tiny)])
    nearest, rounded = (np.square(found - truth).sum() for found in logits.values())
    assert rounded < 0.9 * nearest


def _logits(tiny: TinyModel, folder: Path) -> Floats:
    """What transformers makes of the folder's values."""
    with HuggingFaceFolder(folder).checkpoint() as checkpoint:
        state = {}
        for name, tensor in checkpoint.tensors.items():
            buffer = np.empty(4 * tensor.num_values, np.uint8)
            rows = checkpoint.read_rows(name, 0, tensor.shape[0], buffer).copy()
            state[name] = torch.from_numpy(rows.astype(np.float32))
    before = {name: value.clone() for name, value in tiny.model.state_dict().items()}
    try:
        tiny.model.load_state_dict(state, strict=False)
        parts = [tiny.logits_of(window.tolist()) for window in windows_of(tiny)]
    finally:
        tiny.model.load_state_dict(before)
    return np.concatenate(parts)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tiny = write_model(CASES[0], tmp_path_factory.mktemp("tiny"))
    out = tmp_path_factory.mktemp("quantized") / "out"
    quantize_folder(HuggingFaceFolder(tiny.folder), out, INT4, HEAD, None, lambda _: None)
    return out


def copied(folder: Path, out: Path) -> Path:
    out.mkdir()
    for file in folder.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    return out


def test_a_matrix_without_its_scales_is_refused_by_name(quantized: Path, tmp_path: Path) -> None:
    folder = copied(quantized, tmp_path / "broken")
    arrays = load_file(folder / "model.safetensors")
    del arrays["model.layers.1.mlp.up_proj.weight.scales"]
    save_file(arrays, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"up_proj\.weight is no matrix .* scales are missing"):
        HuggingFaceFolder(folder).checkpoint()


@pytest.mark.parametrize("change", [{"group": 48}, {"group": 0}, {"colour": "red"}])
def test_a_format_that_is_not_made_is_refused(
    quantized: Path, tmp_path: Path, change: dict[str, object]
) -> None:
    folder = copied(quantized, tmp_path / "broken")
    fields = json.loads((folder / "config.json").read_text())
    fields["quantization_config"]["layers"] |= change
    (folder / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ModelError, match=r"quantization_config\.layers"):
        ModelConfig.from_source(HuggingFaceFolder(folder))


def test_a_folder_that_exists_is_left_alone(
    quantized: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantize", str(quantized), str(tmp_path)]) != 0
    assert "exists already; name a new folder" in capsys.readouterr().err
