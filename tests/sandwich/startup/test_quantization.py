"""What the names of quantisations stand for, and which choices are refused."""

from __future__ import annotations

from typing import Any

import pytest

from codegen.spec import WeightFormat
from sandwich.cli import main
from sandwich.config import QUANTIZATIONS, EngineConfig
from sandwich.errors import ConfigError
from sandwich.startup.quantization import weight_formats

HEAD = WeightFormat("int8", group=32, scale_dtype="float16")


def grouped(dtype: str, activations: str, group: int, has_minima: bool) -> WeightFormat:
    return WeightFormat(dtype, activations, group, "float16", has_minima=has_minima)


@pytest.mark.parametrize(
    ("options", "layers", "lm_head"),
    [
        ({}, WeightFormat("bfloat16"), WeightFormat("bfloat16")),
        ({"quantization": "none"}, WeightFormat("bfloat16"), WeightFormat("bfloat16")),
        ({"quantization": "int8"}, grouped("int8", "float", 32, True), HEAD),
        ({"quantization": "int8-w8a8"}, grouped("int8", "int8", 32, False), HEAD),
        ({"quantization": "int4"}, grouped("int4", "int8", 32, True), HEAD),
        (
            {"quantization": "int4", "quantization_group": "128"},
            grouped("int4", "int8", 128, True),
            HEAD,
        ),
        ({"quantization": "int4", "quantization_group": 0}, WeightFormat("int4", "int8"), HEAD),
        (
            {"quantization": "int8-w8a8", "quantization_group": 0},
            WeightFormat("int8", "int8"),
            HEAD,
        ),
    ],
)
def test_a_name_stands_for_two_formats(
    options: dict[str, Any], layers: WeightFormat, lm_head: WeightFormat
) -> None:
    found = weight_formats(EngineConfig(**options), "bfloat16")
    assert (found.layers, found.lm_head) == (layers, lm_head)


def test_every_quantisation_has_formats() -> None:
    names = {weight_formats(EngineConfig(quantization=q), "float32").layers for q in QUANTIZATIONS}
    assert len(names) == len(QUANTIZATIONS)


def test_a_group_without_a_quantisation_is_refused() -> None:
    with pytest.raises(ConfigError, match="--quantization-group is 32, but without --quantization"):
        weight_formats(EngineConfig(quantization_group=32), "float32")


def test_inputs_of_floats_are_not_rounded_as_those_of_codes() -> None:
    with pytest.raises(ConfigError, match=r"stored-a8 .* but it has them as float32; int8-w8a8"):
        weight_formats(EngineConfig(quantization="stored-a8"), "float32")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--quantization", "int3"],
            "'int3' is not one of auto, stored-a8, none, int8, int8-w8a8, int4",
        ),
        (["--quantization-group", "48"], "'48' is not one of 0, 32, 64, 128"),
        (["--quantization-group", "64"], "give --quantization too"),
    ],
)
def test_a_mistake_is_one_line(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *flags]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
