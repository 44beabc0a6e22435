"""From the name of a quantisation to how each matrix is stored and multiplied.

The only place that knows what the names stand for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from codegen.spec import WeightFormat
from sandwich.config import STORED, EngineConfig
from sandwich.errors import ConfigError
from sandwich.models.stored import FLOATS, StoredFormats

GROUP: Final = 32  # inputs that share a scale, unless the user says otherwise
# Its inputs stay floats: few rows meet it, and a vocabulary is where rounding them costs most.
LM_HEAD: Final = WeightFormat("int8", group=GROUP, scale_dtype="float16")


@dataclass(frozen=True)
class WeightFormats:
    """How the matrices of a model are stored: those of the layers, and the LM head.

    Where embeddings are tied, they are read out of the LM head.
    """

    layers: WeightFormat
    lm_head: WeightFormat


def weight_formats(
    config: EngineConfig, dtype: str, stored: StoredFormats = FLOATS
) -> WeightFormats:
    """The formats that `config` asks for in a model of `dtype` ("float32" or "bfloat16").

    stored: what names of STORED keep.

    A group that does not divide the inputs of a matrix leaves a shorter one at the end of each row.
    Raises ConfigError for a group without a quantisation, and for inputs of codes where there are
    none.
    """
    group = config.quantization_group
    if config.quantization in (*STORED, "none"):
        if group is not None:
            raise ConfigError(
                f"--quantization-group is {group}, but without --quantization no matrix has "
                "scales; give --quantization too, or leave the group out"
            )
        plain = WeightFormat(dtype)
        if config.quantization == "none":
            return WeightFormats(plain, plain)
        layers = stored.layers or plain
        if config.quantization == "stored-a8":
            if stored.layers is None:
                raise ConfigError(
                    "--quantization stored-a8 rounds the inputs of matrices that the checkpoint "
                    f"has as codes, but it has them as {dtype}; int8-w8a8 and int4 round both"
                )
            layers = replace(layers, activations="int8")
        return WeightFormats(layers, stored.lm_head or plain)
    group = GROUP if group is None else group
    has_minima = config.quantization in ("int8", "int4") and bool(group)
    layers = WeightFormat(
        "int4" if config.quantization == "int4" else "int8",
        activations="float" if config.quantization == "int8" else "int8",
        group=group,
        scale_dtype="float16" if group else "float32",
        has_minima=has_minima,
    )
    return WeightFormats(layers, LM_HEAD)
