"""Qwen3: Llama's text with a norm of each head of queries and keys before they are rotated.

Source: "Qwen3 Technical Report" (arXiv 2505.09388).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from codegen.spec import HeadNorm, Traits
from sandwich.checkpoint.fields import Fields
from sandwich.models import llama
from sandwich.models.family import Family, Switches

_NORMS: Final = {"self_attn.q_norm": ("q_norm",), "self_attn.k_norm": ("k_norm",)}
NAMES: Final = replace(llama.NAMES, inside=llama.NAMES.inside | _NORMS)


def _read(fields: Fields) -> Switches:
    bias = fields.flag("attention_bias")
    return Switches(qkv_bias=bias, o_bias=bias, traits=Traits(head_norm=HeadNorm.HEAD))


FAMILY: Final = Family("Qwen3ForCausalLM", "qwen3", NAMES, _read)
