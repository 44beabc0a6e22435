"""Rotary position embedding: its parameters, how config.json spells them, its cos and sin tables.

Source: RoFormer (arXiv 2104.09864); Llama 3.1's scaling as transformers computes it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sandwich.checkpoint.fields import Fields

ROPE_TYPES = ("default", "linear", "llama3")
POSITIONS_AT_ONCE = 4096  # rows of a table computed together, to keep temporaries small

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class RopeConfig:
    """Base frequency, and how longer contexts stretch the wavelengths."""

    theta: float = 10000.0
    rope_type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0  # this and the next two: llama3 only
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


def read_rope(fields: Fields, max_positions: int) -> RopeConfig:
    """The parameters in a config.json, whose `max_position_embeddings` is `max_positions`.

    transformers 5 writes all of it in `rope_parameters`; 4 writes `rope_theta` beside
    `rope_scaling`. Raises ModelError for a type or value that is not supported.
    """
    key = "rope_parameters" if fields.has("rope_parameters") else "rope_scaling"
    rope = fields.object(key)
    if any(isinstance(rope.get(name), dict) for name in rope):
        raise fields.error(key, "position embeddings that differ between layers are not supported")
    return _read_parameters(fields, rope, max_positions)


def read_ropes(fields: Fields, max_positions: int, count: int) -> tuple[RopeConfig, ...]:
    """The parameters of each of `count` tables of rotations: that of layers with full attention,
    and the other one of layers with windows if the model has two.

    transformers 5 writes an object for each type of layer in `rope_parameters`; 4 has the base of
    the second in `rope_local_base_freq`, which is not scaled. Raises ModelError as `read_rope`.
    """
    rope = fields.object("rope_parameters")
    types = ("full_attention", "sliding_attention")
    if count == 1:
        return (read_rope(fields, max_positions),)
    if not rope.has(types[0]):
        local = fields.number("rope_local_base_freq", default=10000.0)
        return read_rope(fields, max_positions), RopeConfig(local)
    first, second = (_read_parameters(fields, rope.object(name), max_positions) for name in types)
    return first, second


def _read_parameters(fields: Fields, rope: Fields, max_positions: int) -> RopeConfig:
    """Those in `rope`, an object of `fields`."""
    type_key = "rope_type" if rope.has("rope_type") else "type"
    rope_type = rope.choice(type_key, ROPE_TYPES, default="default")
    for place in (fields, rope):
        if place.number("partial_rotary_factor", default=1.0) != 1.0:
            raise place.error("partial_rotary_factor", "supported: 1.0")
    if not rope.has(type_key) and set(rope) - {"rope_theta", "partial_rotary_factor"}:
        raise rope.error(
            type_key, f"the other keys need a type; write one of {', '.join(ROPE_TYPES)}"
        )
    theta = rope.number("rope_theta", default=fields.number("rope_theta", default=10000.0))
    if rope_type == "default":
        return RopeConfig(theta)
    if rope_type == "linear":
        return RopeConfig(theta, rope_type, rope.number("factor"))
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if low >= high:
        raise rope.error("high_freq_factor", f"it must be above low_freq_factor, which is {low}")
    original_key = "original_max_position_embeddings"
    original = rope.integer(original_key, default=fields.integer(original_key, max_positions))
    return RopeConfig(theta, rope_type, rope.number("factor"), low, high, original)


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> Floats:
    """Radians per position of each pair of dims, (head_dim / 2,).

    Rounded to float32 where transformers rounds: the exponent, the power, its reciprocal. Here each
    rounding is correct. torch's power is one unit in the last place off for some exponents, and for
    which ones depends on the instruction set it runs on; the angle at position 2000 is then some
    1e-4 radians away.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    wavelengths = np.power(rope.theta, exponents, dtype=np.float64).astype(np.float32)
    frequencies: Floats = np.reciprocal(wavelengths)
    if rope.rope_type == "linear":
        return frequencies / np.float32(rope.factor)
    if rope.rope_type == "llama3":
        return _stretch_low_frequencies(rope, frequencies)
    return frequencies


def _stretch_low_frequencies(rope: RopeConfig, frequencies: Floats) -> Floats:
    """Llama 3.1: slow waves are stretched by `factor`, fast ones kept, those between blended."""
    original = np.float32(rope.original_max_position_embeddings)
    low, high = np.float32(rope.low_freq_factor), np.float32(rope.high_freq_factor)
    # torch divides a number by a tensor as number * (1 / tensor); so is it done here.
    wavelengths = np.float32(2 * math.pi) * np.reciprocal(frequencies)
    stretched = frequencies / np.float32(rope.factor)
    share = (original * np.reciprocal(wavelengths) - low) / (high - low)
    blended = (1 - share) * frequencies / np.float32(rope.factor) + share * frequencies
    is_slow = wavelengths > original / low
    is_fast = wavelengths < original / high
    return np.where(is_slow, stretched, np.where(is_fast, frequencies, blended))


def fill_tables(rope: RopeConfig, head_dim: int, cos: Floats, sin: Floats) -> None:
    """Write cos and sin of every position into `cos` and `sin` (positions, head_dim / 2).

    The angle is rounded to float32, as transformers does it: far from the start that rounding is
    the largest part of the error, and a checkpoint was trained with it.
    """
    frequencies = inverse_frequencies(rope, head_dim)
    for start in range(0, len(cos), POSITIONS_AT_ONCE):
        stop = min(start + POSITIONS_AT_ONCE, len(cos))
        angles = np.arange(start, stop, dtype=np.float32)[:, None] * frequencies
        cos[start:stop] = np.cos(angles, dtype=np.float64)
        sin[start:stop] = np.sin(angles, dtype=np.float64)
