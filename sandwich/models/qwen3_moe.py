"""Qwen3-MoE: Qwen3 with experts in the place of the MLP.

Source: "Qwen3 Technical Report" (arXiv 2505.09388).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from codegen.spec import HeadNorm, Traits
from sandwich.checkpoint.fields import Fields
from sandwich.models import llama, olmoe
from sandwich.models.family import Family, Switches, read_experts, window_kinds
from sandwich.models.tensors import HEAD_NORMS

NAMES: Final = replace(llama.NAMES, inside=llama.ATTENTION | HEAD_NORMS | olmoe.EXPERTS)


def _read(fields: Fields) -> Switches:
    if fields.get("mlp_only_layers"):
        raise fields.error("mlp_only_layers", "only experts in every layer ([])")
    if fields.integer("decoder_sparse_step", default=1) != 1:
        raise fields.error("decoder_sparse_step", "only experts in every layer (1)")
    bias = fields.flag("attention_bias")
    size = fields.integer("moe_intermediate_size")
    experts = read_experts(fields, size, fields.flag("norm_topk_prob"))
    traits = Traits(window_kinds(fields, "use_sliding_window"), HeadNorm.HEAD, experts=experts)
    return Switches(qkv_bias=bias, o_bias=bias, traits=traits)


FAMILY: Final = Family("Qwen3MoeForCausalLM", "qwen3_moe", NAMES, _read)
