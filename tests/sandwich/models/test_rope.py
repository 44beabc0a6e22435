"""Inverse frequencies and the cos and sin tables, which equal transformers' to float32 rounding."""

from __future__ import annotations

from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from sandwich.models.rope import POSITIONS_AT_ONCE, RopeConfig, fill_tables, inverse_frequencies
from tests.sandwich.models.conftest import Case, Driver, make_compiled, sizes, write_model

NUM_POSITIONS = POSITIONS_AT_ONCE + 3  # a second round of three
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@pytest.mark.parametrize(
    ("rope", "parameters"),
    [
        (RopeConfig(10000.0), {"rope_type": "default"}),
        (RopeConfig(500000.0), {"rope_type": "default"}),
        (RopeConfig(10000.0, "linear", 4.0), {"rope_type": "linear", "factor": 4.0}),
        (RopeConfig(500000.0, "llama3", 32.0), {"rope_type": "llama3", "factor": 32.0, **LLAMA3}),
        (RopeConfig(10000.0, "llama3", 3.0), {"rope_type": "llama3", "factor": 3.0, **LLAMA3}),
    ],
    ids=lambda value: value.rope_type if isinstance(value, RopeConfig) else "",
)
@pytest.mark.parametrize("head_dim", [2, 20, 64, 128])
def test_tables_equal_those_of_transformers(
    rope: RopeConfig, parameters: dict[str, Any], head_dim: int
) -> None:
    embedding = LlamaRotaryEmbedding(
        LlamaConfig(
            hidden_size=4 * head_dim,
            num_attention_heads=4,
            head_dim=head_dim,
            rope_parameters={**parameters, "rope_theta": rope.theta},
        )
    )
    np.testing.assert_array_max_ulp(
        inverse_frequencies(rope, head_dim), embedding.inv_freq.numpy(), maxulp=1
    )
    expected = embedding(torch.zeros(1), torch.arange(NUM_POSITIONS)[None])
    cos, sin = np.zeros((2, NUM_POSITIONS, head_dim // 2), np.float32)
    fill_tables(rope, head_dim, cos, sin)
    for table, truth in zip((cos, sin), expected, strict=True):
        # one float32 rounding of the angle at the last position, and one of the result
        difference = np.abs(table - truth[0, :, : head_dim // 2].numpy())
        assert difference.max() <= NUM_POSITIONS * 2.0**-23 + 2.0**-24


@pytest.mark.parametrize("theta", [10000.0, 100000.0, 130000.0, 500000.0, 1000000.0])
def test_frequencies_are_rounded_correctly_for_every_head_dim(theta: float) -> None:
    for head_dim in range(2, 257, 2):
        actual = inverse_frequencies(RopeConfig(theta), head_dim)
        exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        exact = [Decimal(theta) ** Decimal(float(exponent)) for exponent in exponents]
        wavelengths = np.array([float(power) for power in exact]).astype(np.float32)
        np.testing.assert_array_equal(actual, (1 / wavelengths.astype(np.float64)).astype("f4"))
        # torch's power is one unit off in places, which is up to two after the reciprocal
        torchs = 1 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
        np.testing.assert_array_max_ulp(actual, torchs.numpy(), maxulp=2)


def test_a_table_may_be_shorter_than_one_round() -> None:
    cos, sin = np.zeros((2, 1, 4), np.float32)
    fill_tables(RopeConfig(), 8, cos, sin)
    assert cos.tolist() == [[1.0] * 4]
    assert sin.tolist() == [[0.0] * 4]


def test_logits_of_heads_of_80_agree_at_late_positions_where_frequencies_do(tmp_path: Path) -> None:
    """torch's second frequency here is one unit off, which moves the logits of 2,000 positions by
    2e-5: transformers gets ours, which are correctly rounded, and the rest is ten times as near.
    """
    length, theta = 2048, 130000.0
    rope = {"rope_type": "default", "rope_theta": theta}
    config = sizes(160, 2, 1, 80, max_position_embeddings=length, rope_parameters=rope)
    tiny = write_model(Case("heads-of-80", config), tmp_path)
    ids = [int(i) for i in np.random.default_rng(3).integers(0, config["vocab_size"], length)]
    embedding = tiny.model.model.rotary_emb
    embedding.inv_freq = torch.from_numpy(inverse_frequencies(RopeConfig(theta), 80))
    with closing(make_compiled(tmp_path, "float32", length)) as executor:
        actual = Driver(executor).prefill(ids, 128)
    expected = tiny.logits_of(ids)
    assert np.abs(actual - expected).max() <= 5e-6 * np.abs(expected).max()
