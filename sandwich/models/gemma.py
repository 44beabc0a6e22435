"""Gemma 2 and Gemma 3 (text): norms around attention and MLP, GELU, scaled embeddings, windows.

Stored weights of norms are one less than what they stand for. Gemma 2 has soft caps of scores and
logits; Gemma 3 has norms of heads instead, and layers with windows rotate by a base of their own.

Source: "Gemma 2" (arXiv 2408.00118), "Gemma 3 Technical Report" (arXiv 2503.19786).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from codegen.spec import Activation, HeadNorm, LayerKind, NormPlace, Traits
from sandwich.checkpoint.fields import Fields
from sandwich.models import llama
from sandwich.models.family import ACTIVATIONS, Family, Switches, window_kinds
from sandwich.models.tensors import HEAD_NORMS

_NORMS: Final = {
    "post_attention_layernorm": ("post_attention_norm",),
    "pre_feedforward_layernorm": ("pre_mlp_norm",),
    "post_feedforward_layernorm": ("post_mlp_norm",),
}
_GEMMA2_NAMES: Final = replace(llama.NAMES, inside=llama.NAMES.inside | _NORMS, norm_offset=1.0)
_GEMMA3_NAMES: Final = replace(_GEMMA2_NAMES, inside=_GEMMA2_NAMES.inside | HEAD_NORMS)


def _read(fields: Fields, kinds: tuple[LayerKind, ...], head_norm: HeadNorm) -> Switches:
    names = ACTIVATIONS[Activation.GELU_TANH]
    fields.choice("hidden_activation", names, default=names[0])
    if fields.flag("use_bidirectional_attention"):
        raise fields.error("use_bidirectional_attention", "tokens see those before them (false)")
    bias = fields.flag("attention_bias")
    traits = Traits(
        kinds,
        head_norm,
        NormPlace.AROUND,
        Activation.GELU_TANH,
        embedding_scale=fields.integer("hidden_size") ** 0.5,
        score_scale=fields.number("query_pre_attn_scalar", default=256.0) ** -0.5,
        score_cap=fields.number("attn_logit_softcapping", default=0.0),
        logit_cap=fields.number("final_logit_softcapping", default=0.0),
    )
    return Switches(qkv_bias=bias, o_bias=bias, traits=traits, local_theta=10000.0)


def _read_gemma2(fields: Fields) -> Switches:
    return _read(fields, window_kinds(fields, period=2), HeadNorm.NONE)


def _read_gemma3(fields: Fields) -> Switches:
    period = fields.integer("sliding_window_pattern", default=6)
    kinds = window_kinds(fields, period=period, rotation=1)
    return _read(fields, kinds, HeadNorm.HEAD)


FAMILIES: Final = (
    Family("Gemma2ForCausalLM", "gemma2", _GEMMA2_NAMES, _read_gemma2, is_tied=True),
    Family("Gemma3ForCausalLM", "gemma3_text", _GEMMA3_NAMES, _read_gemma3, is_tied=True),
)
