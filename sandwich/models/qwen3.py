"""Qwen3: Llama's text with a norm of each head of queries and keys before they are rotated.

Source: "Qwen3 Technical Report" (arXiv 2505.09388).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from codegen.spec import HeadNorm, Traits
from sandwich.checkpoint.fields import Fields
from sandwich.models import llama
from sandwich.models.family import Family, Switches, window_kinds
from sandwich.models.tensors import HEAD_NORMS

NAMES: Final = replace(llama.NAMES, inside=llama.NAMES.inside | HEAD_NORMS)


def _read(fields: Fields) -> Switches:
    bias = fields.flag("attention_bias")
    traits = Traits(window_kinds(fields, "use_sliding_window"), HeadNorm.HEAD)
    return Switches(qkv_bias=bias, o_bias=bias, traits=traits)


FAMILY: Final = Family("Qwen3ForCausalLM", "qwen3", NAMES, _read)
