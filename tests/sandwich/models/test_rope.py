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
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from sandwich.checkpoint.fields import Fields
from sandwich.models.rope import (
    POSITIONS_AT_ONCE,
    UNROTATED,
    RopeConfig,
    fill_tables,
    head_order,
    inverse_frequencies,
    read_rope,
)
from tests.sandwich.models.cases import Case, sizes
from tests.sandwich.models.conftest import Driver, make_compiled, write_model

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


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
LONG = {"rope_type": "longrope", "original_max_position_embeddings": 4096}


@pytest.mark.parametrize(
    "parameters",
    [
        YARN,
        {**YARN, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False},
        {**YARN, "attention_factor": 1.5},
        {**YARN, "factor": 40.0, "mscale": 0.7, "mscale_all_dim": 1.0},
        {**YARN, "factor": 1.0},
        {**LONG, "factor": 32.0},
        {**LONG, "factor": 1.0},
        {**LONG, "attention_factor": 1.25, "factor": 2.0},
        {**LONG, "partial_rotary_factor": 0.75},
    ],
)
@pytest.mark.parametrize("num_positions", [4096, 4099])
def test_stretched_tables_equal_those_of_transformers(
    parameters: dict[str, Any], num_positions: int
) -> None:
    head_dim = 32
    dims = int(head_dim * parameters.get("partial_rotary_factor", 1.0))
    if parameters["rope_type"] == "longrope":
        divisors = np.linspace(1.0, 1.7, dims // 2), np.linspace(1.0, 40.0, dims // 2)
        parameters |= {"short_factor": divisors[0].tolist(), "long_factor": divisors[1].tolist()}
    given = {"rope_theta": 20000.0, **parameters}
    config = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        max_position_embeddings=131072,
        rope_parameters=dict(given),
    )
    make = ROPE_INIT_FUNCTIONS[parameters["rope_type"]]
    frequencies, factor = make(config, seq_len=num_positions)
    fields = Fields({"rope_parameters": given}, Path("config.json"))
    rope = read_rope(fields, 131072)
    assert rope.attention_factor == pytest.approx(factor)
    found = inverse_frequencies(rope, head_dim, num_positions)
    np.testing.assert_array_max_ulp(found, frequencies.numpy(), maxulp=8)
    cos, sin = np.zeros((2, num_positions, head_dim // 2), np.float32)
    fill_tables(rope, head_dim, cos, sin)
    angles = np.outer(np.arange(num_positions), found.astype(np.float64))
    for table, function, rest in ((cos, np.cos, 1.0), (sin, np.sin, 0.0)):
        expected = function(angles) * factor
        assert np.abs(table[:, : dims // 2] - expected).max() <= num_positions * 2.0**-23
        assert (table[:, dims // 2 :] == rest).all()


def test_what_is_not_rotated_has_tables_that_do_nothing() -> None:
    cos, sin = np.full((2, 5, 4), 7.0, np.float32)
    fill_tables(UNROTATED, 8, cos, sin)
    assert (cos == 1).all()
    assert (sin == 0).all()


@pytest.mark.parametrize(
    ("partial", "is_interleaved", "order"),
    [
        (1.0, False, ()),
        (1.0, True, (0, 4, 1, 5, 2, 6, 3, 7)),
        (0.5, False, (0, 1, 4, 5, 2, 3, 6, 7)),
        (0.5, True, (0, 4, 1, 5, 2, 3, 6, 7)),
        (0.75, False, (0, 1, 2, 4, 5, 6, 3, 7)),
    ],
)
def test_partners_of_a_pair_come_to_lie_half_a_head_apart(
    partial: float, is_interleaved: bool, order: tuple[int, ...]
) -> None:
    assert head_order(RopeConfig(partial=partial), 8, is_interleaved) == order


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
