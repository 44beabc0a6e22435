"""OLMo 3: OLMo 2's text, where three of four layers have windows and rotate without YaRN.

Source: "Olmo 3" (Allen Institute for AI, 2025).
"""

from __future__ import annotations

from typing import Final

from codegen.spec import HeadNorm, NormPlace, Traits
from sandwich.checkpoint.fields import Fields
from sandwich.models.family import Family, Switches, window_kinds
from sandwich.models.olmo2 import NAMES

_PERIOD: Final = 4


def _read(fields: Fields) -> Switches:
    bias = fields.flag("attention_bias")
    kinds = window_kinds(fields, period=_PERIOD, rotation=1)
    return Switches(qkv_bias=bias, o_bias=bias, traits=Traits(kinds, HeadNorm.ROW, NormPlace.AFTER))


FAMILY: Final = Family("Olmo3ForCausalLM", "olmo3", NAMES, _read)
