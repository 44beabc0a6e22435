"""Codes of GGUF files are kept bit for bit where our formats hold them; else said to be rounded."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from codegen.layout.model import ModelLayout
from codegen.spec import WeightFormat
from platforms.memory import Arena
from sandwich.checkpoint.gguf.codes import FORMATS, read_blocks
from sandwich.checkpoint.gguf.source import GgufModel
from sandwich.config import EngineConfig
from sandwich.errors import ModelError
from sandwich.models.config import ModelConfig
from sandwich.models.stored import ROUNDED
from sandwich.startup.model import Model
from sandwich.startup.quantization import weight_formats
from sandwich.weights.load import load_weights
from tests.sandwich.checkpoint.conftest import (
    HIDDEN,
    LAYERS,
    Tensors,
    llama_metadata,
    llama_shapes,
    random_blocks,
    random_tensors,
    write_gguf,
)


def write_quantized(
    file: Path, vocab_size: int, kinds: tuple[str, ...], head: str = "Q8_0"
) -> tuple[Path, Tensors]:
    """A tiny Llama whose matrices have these types in turn."""
    rng = np.random.default_rng(7)
    tensors: Tensors = {}
    for index, (name, shape) in enumerate(llama_shapes(vocab_size).items()):
        if len(shape) == 1:
            tensors[name] = np.ones(shape, np.float32)
        else:
            kind = head if name == "token_embd.weight" else kinds[index % len(kinds)]
            tensors[name] = random_blocks(rng, shape, kind)
    return write_gguf(file, llama_metadata(), tensors), tensors


def layout_of(model: ModelConfig, quantization: str = "auto", lanes: int = 8) -> ModelLayout:
    formats = weight_formats(EngineConfig(quantization=quantization), "bfloat16", model.stored)
    shape = model.shape(64)
    return ModelLayout.build(shape, "bfloat16", lanes, 32, formats.layers, formats.lm_head)


@pytest.mark.parametrize("kind", FORMATS)
def test_codes_and_scales_make_the_values_of_the_gguf_package(kind: str) -> None:
    raw, dtype = random_blocks(np.random.default_rng(3), (5, 512), kind)
    rows = read_blocks(raw, kind)
    np.testing.assert_array_equal(rows.dequantized(FORMATS[kind]), dequantize(raw, dtype))
    assert rows.codes.max() < 2 ** FORMATS[kind].bits


@pytest.mark.parametrize("kind", FORMATS)
def test_packed_codes_are_those_of_the_file(tmp_path: Path, vocab_size: int, kind: str) -> None:
    file, tensors = write_quantized(tmp_path / "m.gguf", vocab_size, (kind,))
    source = GgufModel(file)
    model = ModelConfig.from_source(source)
    assert model.stored.remark == ""
    layout = layout_of(model)
    weights = load_weights(
        source.checkpoint(), model, layout, Arena(layout.weight_bytes, "weights")
    )
    for role, name in (("down", "ffn_down"), ("o", "attn_output")):
        for layer in range(LAYERS):
            raw, _ = tensors[f"blk.{layer}.{name}.weight"]
            expected = read_blocks(raw, kind)
            found = layout.panels(role).read_codes(
                layout.matrix(weights.tensors, role, layer), np.arange(HIDDEN)
            )
            np.testing.assert_array_equal(found.codes, expected.codes)
            np.testing.assert_array_equal(found.scales, expected.scales)
            if expected.minima is not None:
                np.testing.assert_array_equal(found.minima, expected.minima)
    raw, dtype = tensors["token_embd.weight"]
    head = layout.panels("lm_head").unpack(layout.matrix(weights.tensors, "lm_head"))
    np.testing.assert_array_equal(head, dequantize(raw, dtype))


def test_q_and_k_keep_their_codes_in_the_order_of_hugging_face(
    tmp_path: Path, vocab_size: int
) -> None:
    file, _ = write_quantized(tmp_path / "m.gguf", vocab_size, ("Q4_1",))
    with GgufModel(file).checkpoint() as checkpoint:
        for part in ("q", "k"):
            name = f"model.layers.0.self_attn.{part}_proj.weight"
            for start, stop in ((0, 128), (5, 70), (63, 65)):
                buffer = np.empty(4 * (stop - start) * HIDDEN, np.uint8)
                values = checkpoint.read_rows(name, start, stop, buffer)
                codes = checkpoint.read_codes(name, start, stop, buffer)
                np.testing.assert_array_equal(codes.dequantized(FORMATS["Q4_1"]), values)


def test_a_matrix_with_room_inside_its_heads_is_rounded_anew(
    tmp_path: Path, vocab_size: int
) -> None:
    values = random_tensors(vocab_size)
    q8_0 = GGMLQuantizationType.Q8_0
    tensors: Tensors = {
        name: array if array.ndim == 1 else (quantize(array, q8_0), q8_0)
        for name, array in values.items()
    }
    source = GgufModel(write_gguf(tmp_path / "m.gguf", llama_metadata(), tensors))
    model = ModelConfig.from_source(source)
    layout = layout_of(model, lanes=16)  # heads of 64 have no room
    wide = ModelLayout.build(
        model.shape(64), "bfloat16", 48, 96, layout.weights, layout.head
    )  # but of 96
    assert not wide.matrices["o"].can_keep_codes
    weights = load_weights(source.checkpoint(), model, wide, Arena(wide.weight_bytes, "weights"))
    packed = wide.panels("o").unpack(wide.matrix(weights.tensors, "o", 0))
    found = packed.reshape(HIDDEN, 4, 96)[:, :, :64].reshape(HIDDEN, HIDDEN)
    expected = values["blk.0.attn_output.weight"]
    assert 0 < np.abs(found - expected).max() <= np.abs(expected).max() / 100


# ---- which formats ----


@pytest.mark.parametrize(
    ("kinds", "head", "layers", "lm_head"),
    [
        (("Q4_0",), "Q8_0", ("int4", "float", "float16"), ROUNDED),
        (("Q4_1",), "Q8_0", ("int4", "float", "float16"), ROUNDED),
        (("Q8_0",), "F16", ("int8", "float", "float16"), None),
        (("Q4_K",), "Q6_K", ("int4", "float", "float32"), ROUNDED),
        (("Q4_K", "Q6_K"), "Q4_0", ("int8", "float", "float16"), None),
        (("Q6_K",), "Q8_0", ("int8", "float", "float16"), ROUNDED),
        (("F16",), "BF16", None, None),
    ],
)
def test_one_type_is_kept_and_others_become_eight_bits(
    tmp_path: Path,
    vocab_size: int,
    kinds: tuple[str, ...],
    head: str,
    layers: tuple[str, str, str] | None,
    lm_head: WeightFormat | None,
) -> None:
    file, _ = write_quantized(tmp_path / "m.gguf", vocab_size, kinds, head)
    stored = ModelConfig.from_source(GgufModel(file)).stored
    if layers is None:
        assert stored.layers is None
    else:
        assert stored.layers is not None
        found = (stored.layers.dtype, stored.layers.activations, stored.layers.scale_dtype)
        assert found == layers
        assert stored.layers.group == 32
    if lm_head is not None:
        assert stored.lm_head == lm_head
    assert bool(stored.remark) == bool({"Q6_K"} & {*kinds, head})


def test_what_is_rounded_anew_is_said_with_the_memory_it_takes(
    tmp_path: Path, vocab_size: int, caplog: pytest.LogCaptureFixture
) -> None:
    file, _ = write_quantized(tmp_path / "m.gguf", vocab_size, ("Q6_K", "Q4_K"))
    caplog.set_level(logging.WARNING)
    Model.of(EngineConfig(model=str(file)))
    assert "Q4_K, Q6_K are rounded to int8-g32 x float, which takes 1.2 MiB" in caplog.text
    caplog.clear()
    Model.of(EngineConfig(model=str(file), quantization="none"))
    assert caplog.text == ""


def test_none_widens_and_other_names_win(tmp_path: Path, vocab_size: int) -> None:
    file, _ = write_quantized(tmp_path / "m.gguf", vocab_size, ("Q4_0",))
    model = ModelConfig.from_source(GgufModel(file))
    assert layout_of(model, "none").weights == WeightFormat("bfloat16")
    assert layout_of(model, "int8-w8a8").weights.dtype == "int8"
    assert layout_of(model).weights == WeightFormat("int4", group=32, scale_dtype="float16")


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0"])
def test_the_same_codes_are_kept_for_inputs_of_8_bits(
    kind: str, tmp_path: Path, vocab_size: int
) -> None:
    file, _ = write_quantized(tmp_path / "m.gguf", vocab_size, (kind,))
    source = GgufModel(file)
    model, kept = ModelConfig.from_source(source), []
    for name in ("auto", "stored-a8"):
        layout = layout_of(model, name)
        arena = Arena(layout.weight_bytes, "weights")
        weights = load_weights(source.checkpoint(), model, layout, arena)
        matrix = layout.matrix(weights.tensors, "down", 0)
        kept.append(layout.panels("down").read_codes(matrix, np.arange(HIDDEN)))
    floats, rounded = kept
    assert layout_of(model, "stored-a8").weights == replace(FORMATS[kind], activations="int8")
    np.testing.assert_array_equal(floats.codes, rounded.codes)
    np.testing.assert_array_equal(floats.scales, rounded.scales)


def test_scales_that_are_no_numbers_are_refused(tmp_path: Path, vocab_size: int) -> None:
    file, tensors = write_quantized(tmp_path / "m.gguf", vocab_size, ("Q4_1",))
    raw, dtype = tensors["blk.1.ffn_down.weight"]
    assert dtype == GGMLQuantizationType.Q4_1
    raw[-1, -18:-16] = np.array([np.nan], np.float16).view(np.uint8)  # a minimum
    write_gguf(file, llama_metadata(), tensors)
    source = GgufModel(file)
    model = ModelConfig.from_source(source)
    layout = layout_of(model)
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.down_proj\.weight has values"):
        load_weights(source.checkpoint(), model, layout, Arena(layout.weight_bytes, "weights"))
