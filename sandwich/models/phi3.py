"""Phi-3, Phi-3.5, Phi-4 and their minis: Llama's text, with queries, keys and values in one tensor
and gate and up in another; some rotate a part of each head, by LongRoPE.

A context longer than the original one takes the long factors from its first token on.

Source: "Phi-3 Technical Report" (arXiv 2404.14219), "Phi-4-Mini" (arXiv 2503.01743).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from codegen.spec import Traits
from sandwich.checkpoint.fields import Fields
from sandwich.models import llama
from sandwich.models.family import Family, Switches, window_kinds
from sandwich.models.tensors import without

FUSED: Final = {
    "self_attn.qkv_proj": ("q", "k", "v"),
    "mlp.gate_up_proj": ("gate", "up"),
}
_APART: Final = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_NAMES: Final = replace(
    llama.NAMES, inside=without(llama.NAMES.inside, *_APART, "mlp.gate_proj", "mlp.up_proj") | FUSED
)


def _read(fields: Fields) -> Switches:
    return Switches(traits=Traits(window_kinds(fields)))


FAMILY: Final = Family("Phi3ForCausalLM", "phi3", _NAMES, _read)
