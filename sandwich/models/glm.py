"""GLM-4: half of each head is rotated, in neighbouring pairs; gate and up are one tensor. The
newer of the two architectures has norms around attention and MLP.

Source: "ChatGLM" (arXiv 2406.12793).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Final

from codegen.spec import NormPlace, Traits
from sandwich.checkpoint.fields import Fields
from sandwich.models import llama
from sandwich.models.family import Family, Switches
from sandwich.models.tensors import without

_PARTIAL: Final = 0.5
_INSIDE: Final = without(llama.NAMES.inside, "mlp.gate_proj", "mlp.up_proj") | {
    "mlp.gate_up_proj": ("gate", "up")
}
_NORMS: Final = {
    "post_self_attn_layernorm": ("post_attention_norm",),
    "post_attention_layernorm": ("pre_mlp_norm",),
    "post_mlp_layernorm": ("post_mlp_norm",),
}
_NAMES: Final = replace(llama.NAMES, inside=_INSIDE)
_NAMES_WITH_NORMS: Final = replace(llama.NAMES, inside=_INSIDE | _NORMS)


def _read(fields: Fields, norms: NormPlace) -> Switches:
    return Switches(
        qkv_bias=fields.flag("attention_bias", default=True),
        traits=Traits(norms=norms),
        partial_rotary=_PARTIAL,
        is_interleaved=True,
    )


_READ_GLM: Final = partial(_read, norms=NormPlace.BEFORE)
_READ_GLM4: Final = partial(_read, norms=NormPlace.AROUND)
FAMILIES: Final = (
    Family("GlmForCausalLM", "glm", _NAMES, _READ_GLM),
    Family("Glm4ForCausalLM", "glm4", _NAMES_WITH_NORMS, _READ_GLM4),
)
