"""The families that are supported, one row each."""

from __future__ import annotations

from typing import Final

from sandwich.checkpoint.fields import Fields
from sandwich.models import (
    exaone4,
    gemma,
    glm,
    granite,
    llama,
    mistral,
    mixtral,
    olmo2,
    olmo3,
    olmoe,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    smollm3,
)
from sandwich.models.family import Family

FAMILIES: Final[tuple[Family, ...]] = (
    exaone4.FAMILY,
    *gemma.FAMILIES,
    *glm.FAMILIES,
    granite.FAMILY,
    llama.FAMILY,
    *mistral.FAMILIES,
    mixtral.FAMILY,
    olmo2.FAMILY,
    olmo3.FAMILY,
    olmoe.FAMILY,
    phi3.FAMILY,
    qwen2.FAMILY,
    qwen3.FAMILY,
    qwen3_moe.FAMILY,
    smollm3.FAMILY,
)


def family_of(fields: Fields) -> Family:
    """The family that a config.json names. Raises ModelError for one that is not supported."""
    architectures = fields.get("architectures")
    if architectures is None:
        model_type = fields.get("model_type")
        for family in FAMILIES:
            if family.model_type == model_type:
                return family
        known = ", ".join(family.model_type for family in FAMILIES)
        raise fields.error("model_type", f"supported: {known}")
    for family in FAMILIES:
        if architectures == [family.architecture]:
            return family
    known = ", ".join(f'["{family.architecture}"]' for family in FAMILIES)
    raise fields.error("architectures", f"supported: {known}")
