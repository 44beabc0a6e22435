"""Mixtral: Mistral's text with experts in the place of the MLP.

Source: "Mixtral of Experts" (arXiv 2401.04088).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from codegen.spec import Traits
from sandwich.checkpoint.fields import Fields
from sandwich.models import llama
from sandwich.models.family import Family, Switches, read_experts, window_kinds

_EXPERTS: Final = {
    "block_sparse_moe.gate": ("router",),
    "block_sparse_moe.experts.{}.w1": ("gate",),
    "block_sparse_moe.experts.{}.w3": ("up",),
    "block_sparse_moe.experts.{}.w2": ("down",),
}
NAMES: Final = replace(llama.NAMES, inside=llama.ATTENTION | _EXPERTS)


def _read(fields: Fields) -> Switches:
    size = fields.integer("intermediate_size")
    experts = read_experts(fields, size, is_normalised=True)
    return Switches(traits=Traits(window_kinds(fields), experts=experts))


FAMILY: Final = Family("MixtralForCausalLM", "mixtral", NAMES, _read)
