"""The counts agree with sums written out by hand and with figures known of a real model."""

import dataclasses

import pytest

from bench.work import StepWork
from codegen.spec import Experts, ModelShape, Traits, WeightFormat

BF16, FP32 = WeightFormat("bfloat16"), WeightFormat("float32")
W8A8 = WeightFormat("int8", activations="int8")
INT4 = WeightFormat("int4", activations="int8", group=32, scale_dtype="float16")

TINY = ModelShape(
    num_layers=2,
    hidden_size=8,
    num_heads=4,
    num_kv_heads=2,
    head_dim=3,
    intermediate_size=16,
    vocab_size=10,
    rms_norm_eps=1e-5,
    qkv_bias=False,
    o_bias=False,
    mlp_bias=False,
    tied_embeddings=True,
    max_model_len=64,
)
LLAMA_1B = dataclasses.replace(
    TINY,
    num_layers=16,
    hidden_size=2048,
    num_heads=32,
    num_kv_heads=8,
    head_dim=64,
    intermediate_size=8192,
    vocab_size=128256,
)


def test_a_tiny_model_is_counted_by_hand() -> None:
    work = StepWork(TINY, BF16, BF16, "float32")
    per_layer = 8 * 12 + 2 * 8 * 6 + 12 * 8 + 3 * 8 * 16  # q, k and v, o, MLP
    assert work.layer_weights == 2 * per_layer
    assert work.kv_bytes_per_token == 2 * 2 * 2 * 3 * 4
    scores_and_values = 2 * 4 * (3 + 3)  # layers, heads, multiply-adds per key
    expected = 2 * (2 * per_layer * 3 + 80 + scores_and_values * (1 + 2 + 3))
    assert work.prefill_flops(3) == expected
    assert work.decode_bytes([5, 7]) == 2 * (2 * per_layer + 80) + 12 * work.kv_bytes_per_token


def test_a_prompt_costs_the_same_in_one_chunk_and_in_many() -> None:
    work = StepWork(TINY, FP32, FP32, "float32")
    chunks = work.flops([1, 2, 3], 0) + work.flops([4, 5], 1)
    assert chunks == work.prefill_flops(5)


def test_a_model_of_a_billion_weights_has_the_known_size() -> None:
    work = StepWork(LLAMA_1B, BF16, BF16, "bfloat16")
    assert work.decode_bytes([0]) == pytest.approx(2.47e9, rel=0.005)
    assert work.flops([1], 0) == pytest.approx(1.95e9, rel=0.005)
    assert work.kv_bytes_per_token == 32768


def test_scales_are_bytes_that_a_step_reads() -> None:
    int8 = StepWork(LLAMA_1B, W8A8, W8A8, "bfloat16")
    channels = 16 * (3072 + 2048 + 2 * 8192 + 2048) + 128256
    assert int8.decode_bytes([0]) == int8.layer_weights + int8.lm_head_weights + 4 * channels
    int4 = StepWork(LLAMA_1B, INT4, W8A8, "bfloat16")
    per_weight = 1 / 2 + 2 / 32  # half a byte, and a share of a scale of 16 bits
    head = int4.lm_head_weights + 4 * 128256
    assert int4.decode_bytes([0]) == int4.layer_weights * per_weight + head


def test_tokens_are_multiplied_with_their_experts_and_steps_read_those_of_all_tokens() -> None:
    traits = Traits(experts=Experts(count=8, per_token=2, size=4))
    work = StepWork(dataclasses.replace(TINY, traits=traits), BF16, BF16, "float32")
    others = 8 * 12 + 2 * 8 * 6 + 12 * 8 + 8 * 8  # q, k and v, o, router
    expert = 3 * 8 * 4
    assert work.layer_weights == 2 * (others + 2 * expert)
    assert work.weight_bytes(1) == 2 * (2 * (others + 2 * expert) + 80)
    # of 8 experts a token leaves out 3/4, two tokens 9/16
    assert work.weight_bytes(2) == pytest.approx(2 * (2 * (others + 3.5 * expert) + 80))
    assert work.weight_bytes(999) == 2 * (2 * (others + 8 * expert) + 80)
