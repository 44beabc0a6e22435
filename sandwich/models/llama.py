"""The Llama family: what its checkpoints call the tensors of the text (`codegen.model.text`).

    h = embed_tokens[token]
    for each layer:
        x = rms_norm(h, input_layernorm)
        q, k, v = q_proj x, k_proj x, v_proj x
        h = h + o_proj attention(rope(q), rope(k), v)
        x = rms_norm(h, post_attention_layernorm)
        h = h + down_proj (silu(gate_proj x) * up_proj x)
    logits = lm_head rms_norm(h, norm)

Source: LLaMA (arXiv 2302.13971), Llama 3 (arXiv 2407.21783).
"""

from __future__ import annotations

from typing import Final

from sandwich.checkpoint.fields import Fields
from sandwich.models.family import Family, Switches, refuse_windows
from sandwich.models.tensors import TensorNames

ATTENTION: Final[dict[str, tuple[str, ...]]] = {
    "input_layernorm": ("input_norm",),
    "post_attention_layernorm": ("post_attention_norm",),
    "self_attn.q_proj": ("q",),
    "self_attn.k_proj": ("k",),
    "self_attn.v_proj": ("v",),
    "self_attn.o_proj": ("o",),
}
_MLP: Final = {
    "mlp.gate_proj": ("gate",),
    "mlp.up_proj": ("up",),
    "mlp.down_proj": ("down",),
}
NAMES: Final = TensorNames(
    embedding="model.embed_tokens",
    norm="model.norm",
    lm_head="lm_head",
    layer="model.layers.{}.",
    inside=ATTENTION | _MLP,
)


def _read(fields: Fields) -> Switches:
    refuse_windows(fields)
    bias = fields.flag("attention_bias")
    return Switches(qkv_bias=bias, o_bias=bias, mlp_bias=fields.flag("mlp_bias"))


FAMILY: Final = Family("LlamaForCausalLM", "llama", NAMES, _read)
