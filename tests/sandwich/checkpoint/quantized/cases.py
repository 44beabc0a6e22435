"""What other programs write: their configuration, a matrix of theirs, the format that keeps it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from codegen.spec import WeightFormat
from tests.sandwich.checkpoint.quantized.writers import (
    Written,
    awq,
    bytes_of_channels,
    fp8,
    gptq,
    packed_integers,
)


@dataclass
class Case:
    """What a program writes: its `quantization_config`, a matrix, and the format that keeps it."""

    name: str
    config: dict[str, Any]
    write: Callable[[np.ndarray], Written]
    kept: WeightFormat | None = None


def of_gptq(**config: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True} | config


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"}


def of_tensors(kind: str, inputs: dict[str, Any] | None = None, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {
        "quant_method": "compressed-tensors",
        "format": kind,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


INT8 = {"num_bits": 8, "type": "int", "dynamic": True, "strategy": "token"}
HALF: dict[str, Any] = {"scale_dtype": "float16"}
BF16: dict[str, Any] = {"scale_dtype": "bfloat16"}
CASES = [
    Case("gptq", of_gptq(), gptq, WeightFormat("int4", group=32, **HALF)),
    Case(
        "gptq-zero-points",
        of_gptq(sym=False, group_size=128),
        lambda w: gptq(w, group=128, symmetric=False),
        WeightFormat("int4", group=128, has_zero_points=True, **HALF),
    ),
    Case(
        "gptq-v2-in-wide-groups",
        of_gptq(sym=False, group_size=256, checkpoint_format="gptq_v2"),
        lambda w: gptq(w, group=256, symmetric=False, offset=0),
        WeightFormat("int4", group=128, has_zero_points=True, **HALF),
    ),
    Case(
        "gptq-of-channels",
        of_gptq(group_size=-1),
        lambda w: gptq(w, group=0),
        WeightFormat("int4", **HALF),
    ),
    Case(
        "gptq-of-channels-with-zero-points",
        of_gptq(group_size=-1, sym=False),
        lambda w: gptq(w, group=0, symmetric=False),
        WeightFormat("int4", group=128, has_zero_points=True, **HALF),
    ),
    Case(
        "gptq-8-bits",
        of_gptq(bits=8, group_size=64),
        lambda w: gptq(w, 8, 64),
        WeightFormat("int8", group=64, **HALF),
    ),
    Case(
        "gptq-3-bits",
        of_gptq(bits=3, sym=False),
        lambda w: gptq(w, 3, symmetric=False),
        WeightFormat("int4", group=32, has_zero_points=True, **HALF),
    ),
    Case(
        "gptq-2-bits",
        of_gptq(bits=2),
        lambda w: gptq(w, 2),
        WeightFormat("int4", group=32, **HALF),
    ),
    Case("gptq-narrow", of_gptq(group_size=16), lambda w: gptq(w, group=16)),
    Case("gptq-act-order", of_gptq(desc_act=True), lambda w: gptq(w, has_order=True)),
    Case("awq", AWQ, awq, WeightFormat("int4", group=64, has_zero_points=True, **HALF)),
    Case(
        "packed",
        of_tensors("pack-quantized", num_bits=4, type="int", group_size=128),
        packed_integers,
        WeightFormat("int4", group=128, **BF16),
    ),
    Case(
        "packed-zero-points",
        of_tensors("pack-quantized", num_bits=4, type="int", symmetric=False),
        lambda w: packed_integers(w, group=32, symmetric=False),
        WeightFormat("int4", group=32, has_zero_points=True, **BF16),
    ),
    Case(
        "packed-8-bits",
        of_tensors("pack-quantized", num_bits=8, type="int"),
        lambda w: packed_integers(w, 8, 0),
        WeightFormat("int8", **BF16),
    ),
    Case(
        "packed-5-bits",
        of_tensors("pack-quantized", num_bits=5, type="int"),
        lambda w: packed_integers(w, 5, 64),
        WeightFormat("int8", group=64, **BF16),
    ),
    Case(
        "packed-act-order",
        of_tensors("pack-quantized", num_bits=4, type="int", actorder="group"),
        lambda w: packed_integers(w, group=32, has_order=True),
    ),
    Case(
        "w8a8",
        of_tensors("int-quantized", INT8, num_bits=8, type="int"),
        bytes_of_channels,
        WeightFormat("int8", "int8", **BF16),
    ),
    Case(
        "w8a16-zero-points",
        of_tensors("int-quantized", num_bits=8, type="int", symmetric=False),
        lambda w: bytes_of_channels(w, symmetric=False),
        WeightFormat("int8", group=128, has_zero_points=True, **BF16),
    ),
    Case(
        "fp8-of-channels",
        of_tensors("float-quantized", num_bits=8, type="float"),
        lambda w: fp8(w, (1, 0)),
    ),
    Case(
        "fp8-blocks",
        {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [48, 96]},
        lambda w: fp8(w, (48, 96), "weight_scale_inv"),
    ),
    Case("fp8-of-matrices", {"quant_method": "fp8"}, lambda w: fp8(w, (0, 0))),
]
BY_NAME = {case.name: case for case in CASES}
