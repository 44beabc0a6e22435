"""The shape of the embedded Llama, its initial weights, its loss. Knows no text, no optimizer."""

import numpy as np
import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from sandwich.embedded.tokens import VOCAB_SIZE


def llama_config(end_of_text_id: int) -> LlamaConfig:
    """About seven million parameters; dimensions are multiples of 64, a key head serves two."""
    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=1024,
        rope_theta=10000.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=end_of_text_id,
        eos_token_id=end_of_text_id,
    )


def new_model(config: LlamaConfig, seed: int) -> LlamaForCausalLM:
    """Initial float32 weights; the projections back into the residual stream start at zero."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    return model


def token_losses(
    model: LlamaForCausalLM, inputs: torch.Tensor, targets: torch.Tensor, autocast: bool = True
) -> torch.Tensor:
    """Cross entropy of each target in nats, float32 (num_tokens,); `autocast` is to bfloat16."""
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(input_ids=inputs, use_cache=False).logits
    return functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), reduction="none"
    )


def total_loss(model: LlamaForCausalLM, ids: np.ndarray, autocast: bool) -> tuple[float, int]:
    """Summed nats and number of predicted tokens of `ids`, in windows of the model's length.

    A window starts with the last token of the one before: all but the first are predicted once.
    """
    length = model.config.max_position_embeddings
    nats = 0.0
    for start in range(0, len(ids) - 1, length):
        window = torch.from_numpy(ids[start : start + length + 1].astype(np.int64))[None]
        with torch.inference_mode():
            losses = token_losses(model, window[:, :-1], window[:, 1:], autocast)
        nats += float(losses.double().sum())
    return nats, len(ids) - 1
