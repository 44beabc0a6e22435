"""Granite 3 (dense): Llama's text with multipliers of embeddings, scores, residuals and logits.

Source: "Granite 3.0 Language Models" (IBM, 2024).
"""

from __future__ import annotations

from typing import Final

from codegen.spec import Traits
from sandwich.checkpoint.fields import Fields
from sandwich.models.family import Family, Switches, refuse_windows
from sandwich.models.llama import NAMES


def _read(fields: Fields) -> Switches:
    refuse_windows(fields)
    bias = fields.flag("attention_bias")
    traits = Traits(
        embedding_scale=fields.number("embedding_multiplier", default=1.0),
        score_scale=fields.number("attention_multiplier", default=1.0),
        logit_scale=1.0 / fields.number("logits_scaling", default=1.0),
    )
    return Switches(
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=fields.flag("mlp_bias"),
        traits=traits,
        residual_scale=fields.number("residual_multiplier", default=1.0),
    )


FAMILY: Final = Family("GraniteForCausalLM", "granite", NAMES, _read)
