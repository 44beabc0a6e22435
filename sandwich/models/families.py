"""The families that are supported, one row each."""

from __future__ import annotations

from typing import Final

from sandwich.checkpoint.fields import Fields
from sandwich.models import gemma, llama, mistral, mixtral, olmo2, olmoe, qwen2, qwen3, qwen3_moe
from sandwich.models.family import Family

FAMILIES: Final[tuple[Family, ...]] = (
    *gemma.FAMILIES,
    llama.FAMILY,
    mistral.FAMILY,
    mixtral.FAMILY,
    olmo2.FAMILY,
    olmoe.FAMILY,
    qwen2.FAMILY,
    qwen3.FAMILY,
    qwen3_moe.FAMILY,
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
