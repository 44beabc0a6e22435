"""Mistral and Ministral: Llama's text, where tokens see a window of the keys before them, in all
layers or in those that `layer_types` names.

Source: "Mistral 7B" (arXiv 2310.06825).
"""

from __future__ import annotations

from typing import Final

from codegen.spec import Traits
from sandwich.checkpoint.fields import Fields
from sandwich.models.family import Family, Switches, window_kinds
from sandwich.models.llama import NAMES


def _read(fields: Fields) -> Switches:
    return Switches(traits=Traits(window_kinds(fields)))


FAMILIES: Final = (
    Family("MistralForCausalLM", "mistral", NAMES, _read),
    Family("MinistralForCausalLM", "ministral", NAMES, _read),
)
