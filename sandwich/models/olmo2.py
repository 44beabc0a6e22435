"""OLMo 2: norms behind attention and MLP, and of all queries and of all keys of a token.

Source: "2 OLMo 2 Furious" (arXiv 2501.00656).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from codegen.spec import HeadNorm, NormPlace, Traits
from sandwich.checkpoint.fields import Fields
from sandwich.models import llama
from sandwich.models.family import Family, Switches, window_kinds
from sandwich.models.tensors import HEAD_NORMS

_NORMS: Final = {
    "post_attention_layernorm": ("post_attention_norm",),
    "post_feedforward_layernorm": ("post_mlp_norm",),
}
NAMES: Final = replace(llama.NAMES, inside=llama.NAMES.inside | _NORMS | HEAD_NORMS)


def _read(fields: Fields) -> Switches:
    bias = fields.flag("attention_bias")
    traits = Traits(window_kinds(fields), HeadNorm.ROW, NormPlace.AFTER)
    return Switches(qkv_bias=bias, o_bias=bias, traits=traits)


FAMILY: Final = Family("Olmo2ForCausalLM", "olmo2", NAMES, _read)
