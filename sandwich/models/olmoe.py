"""OLMoE: experts in the place of the MLP, and norms of all queries and of all keys of a token.

Source: "OLMoE: Open Mixture-of-Experts Language Models" (arXiv 2409.02060).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from codegen.spec import HeadNorm, Traits
from sandwich.checkpoint.fields import Fields
from sandwich.models import llama
from sandwich.models.family import Family, Switches, read_experts, refuse_windows
from sandwich.models.tensors import HEAD_NORMS

EXPERTS: Final = {
    "mlp.gate": ("router",),
    "mlp.experts.{}.gate_proj": ("gate",),
    "mlp.experts.{}.up_proj": ("up",),
    "mlp.experts.{}.down_proj": ("down",),
}
NAMES: Final = replace(llama.NAMES, inside=llama.ATTENTION | HEAD_NORMS | EXPERTS)


def _read(fields: Fields) -> Switches:
    refuse_windows(fields)
    if fields.has("clip_qkv"):
        raise fields.error("clip_qkv", "only queries, keys and values as they are (null)")
    bias = fields.flag("attention_bias")
    size = fields.integer("intermediate_size")
    experts = read_experts(fields, size, fields.flag("norm_topk_prob"))
    traits = Traits(head_norm=HeadNorm.ROW, experts=experts)
    return Switches(qkv_bias=bias, o_bias=bias, traits=traits)


FAMILY: Final = Family("OlmoeForCausalLM", "olmoe", NAMES, _read)
