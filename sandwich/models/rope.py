"""Rotary position embedding: its parameters, how config.json spells them, its cos and sin tables.

Source: RoFormer (arXiv 2104.09864); Llama 3.1's scaling as transformers computes it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from sandwich.checkpoint.fields import Fields

ROPE_TYPES = ("default", "linear", "llama3", "yarn", "longrope")
POSITIONS_AT_ONCE = 4096  # rows of a table computed together, to keep temporaries small
_LAYER_TYPES = ("full_attention", "sliding_attention")

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class RopeConfig:
    """Base frequency, and how longer contexts stretch the wavelengths.

    rope_type: one of ROPE_TYPES, or "none", which rotates nothing. partial: share of the dims of a
    head that are rotated. attention_factor: what cosines and sines are times. short, long: divisors
    of the frequencies, one for each pair of dims, for contexts up to `original` and for longer ones
    (longrope).
    """

    theta: float = 10000.0
    rope_type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0  # this and the next: llama3 only
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    partial: float = 1.0
    attention_factor: float = 1.0
    beta_fast: float = 32.0  # turns in the original context that are not stretched: this, to the
    beta_slow: float = 1.0  # next three: yarn only
    is_truncated: bool = True  # bounds of dims are whole numbers
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()

    def rotated_dims(self, head_dim: int) -> int:
        """Dims of a head that are rotated, an even number as config.json is read."""
        return int(head_dim * self.partial)


UNROTATED = RopeConfig(rope_type="none")


def read_rope(fields: Fields, max_positions: int, partial: float = 1.0) -> RopeConfig:
    """The parameters in a config.json, whose `max_position_embeddings` is `max_positions`.

    transformers 5 writes all of it in `rope_parameters`; 4 writes `rope_theta` beside
    `rope_scaling`. partial: share of rotated dims where it does not say. Raises ModelError for a
    type or value that is not supported.
    """
    key = "rope_parameters" if fields.has("rope_parameters") else "rope_scaling"
    rope = fields.object(key)
    if any(isinstance(rope.get(name), dict) for name in rope):
        raise fields.error(key, "position embeddings that differ between layers are not supported")
    return _read_parameters(fields, rope, max_positions, partial)


def read_ropes(
    fields: Fields, max_positions: int, local_theta: float = 0.0
) -> tuple[RopeConfig, RopeConfig]:
    """The parameters of layers with full attention, and those of layers with windows.

    transformers 5 writes an object for each type of layer in `rope_parameters`; 4 has the base of
    the second in `rope_local_base_freq`, which is not scaled. local_theta: that base where it does
    not say, 0 for the base of the first. Raises ModelError as `read_rope`.
    """
    rope = fields.object("rope_parameters")
    if not rope.has(_LAYER_TYPES[0]):
        full = read_rope(fields, max_positions)
        local = fields.number("rope_local_base_freq", default=local_theta or full.theta)
        return full, RopeConfig(local)
    first, second = (
        _read_parameters(fields, rope.object(name), max_positions, 1.0) for name in _LAYER_TYPES
    )
    return first, second


def _read_parameters(
    fields: Fields, rope: Fields, max_positions: int, partial: float
) -> RopeConfig:
    """Those in `rope`, an object of `fields`."""
    type_key = "rope_type" if rope.has("rope_type") else "type"
    rope_type = rope.choice(type_key, ROPE_TYPES, default="default")
    partial_key = "partial_rotary_factor"
    partial = rope.number(partial_key, default=fields.number(partial_key, default=partial))
    if partial > 1.0:
        place = rope if rope.has(partial_key) else fields
        raise place.error(partial_key, "a share of at most 1 is needed")
    if not rope.has(type_key) and set(rope) - {"rope_theta", partial_key}:
        raise rope.error(
            type_key, f"the other keys need a type; write one of {', '.join(ROPE_TYPES)}"
        )
    theta = rope.number("rope_theta", default=fields.number("rope_theta", default=10000.0))
    found = RopeConfig(theta, rope_type, partial=partial)
    if rope_type == "default":
        return found
    if rope_type == "linear":
        return replace(found, factor=rope.number("factor"))
    original_key = "original_max_position_embeddings"
    original = rope.integer(original_key, default=fields.integer(original_key, max_positions))
    found = replace(found, original_max_position_embeddings=original)
    if rope_type == "llama3":
        low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
        if low >= high:
            raise rope.error(
                "high_freq_factor", f"it must be above low_freq_factor, which is {low}"
            )
        factor = rope.number("factor")
        return replace(found, factor=factor, low_freq_factor=low, high_freq_factor=high)
    factor = rope.number("factor", default=max(max_positions / original, 1.0))
    found = replace(found, factor=factor)
    return (_read_yarn if rope_type == "yarn" else _read_longrope)(rope, found)


def _read_yarn(rope: Fields, found: RopeConfig) -> RopeConfig:
    """YaRN (arXiv 2309.00071)."""

    def scale(mscale: float) -> float:
        return 0.1 * mscale * math.log(found.factor) + 1.0 if found.factor > 1.0 else 1.0

    default = scale(1.0)
    if rope.has("mscale") and rope.has("mscale_all_dim"):
        default = scale(rope.number("mscale")) / scale(rope.number("mscale_all_dim"))
    return replace(
        found,
        attention_factor=rope.number("attention_factor", default=default),
        beta_fast=rope.number("beta_fast", default=32.0),
        beta_slow=rope.number("beta_slow", default=1.0),
        is_truncated=rope.flag("truncate", default=True),
    )


def _read_longrope(rope: Fields, found: RopeConfig) -> RopeConfig:
    """LongRoPE (arXiv 2402.13753)."""
    original, default = found.original_max_position_embeddings, 1.0
    if found.factor > 1.0:
        default = math.sqrt(1 + math.log(found.factor) / math.log(original))
    return replace(
        found,
        factor=1.0,  # which the divisors replace
        attention_factor=rope.number("attention_factor", default=default),
        short=_read_divisors(rope, "short_factor"),
        long=_read_divisors(rope, "long_factor"),
    )


def _read_divisors(rope: Fields, key: str) -> tuple[float, ...]:
    values = rope.get(key)
    is_list = isinstance(values, list)
    if not is_list or not all(isinstance(v, int | float) and 0 < v < math.inf for v in values):
        raise rope.error(key, "a list of numbers above 0 is needed")
    return tuple(map(float, values))


def inverse_frequencies(rope: RopeConfig, head_dim: int, num_positions: int = 1) -> Floats:
    """Radians per position of each pair of dims that is rotated, in a context of `num_positions`.

    Rounded to float32 where transformers rounds: the exponent, the power, its reciprocal. Here each
    rounding is correct. torch's power is one unit in the last place off for some exponents, and for
    which ones depends on the instruction set it runs on; the angle at position 2000 is then some
    1e-4 radians away.
    """
    dims = rope.rotated_dims(head_dim)
    exponents = np.arange(0, dims, 2, dtype=np.float32) / np.float32(dims)
    wavelengths = np.power(rope.theta, exponents, dtype=np.float64).astype(np.float32)
    if rope.rope_type == "longrope":
        is_long = num_positions > rope.original_max_position_embeddings
        wavelengths *= np.array(rope.long if is_long else rope.short, np.float32)
    frequencies: Floats = np.reciprocal(wavelengths)
    if rope.rope_type == "linear":
        return frequencies / np.float32(rope.factor)
    if rope.rope_type == "llama3":
        return _stretch_low_frequencies(rope, frequencies)
    if rope.rope_type == "yarn":
        return _stretch_by_turns(rope, wavelengths, dims)
    return frequencies


def _stretch_by_turns(rope: RopeConfig, wavelengths: Floats, dims: int) -> Floats:
    """YaRN: waves that turn less than `beta_slow` times in the original context are stretched by
    `factor`, those that turn more than `beta_fast` times kept, dims between blended.
    """

    def dim_of(turns: float) -> float:
        shortest = rope.original_max_position_embeddings / (turns * 2 * math.pi)
        return dims * math.log(shortest) / (2 * math.log(rope.theta))

    low, high = dim_of(rope.beta_fast), dim_of(rope.beta_slow)
    if rope.is_truncated:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    places = np.arange(dims // 2, dtype=np.float32) - np.float32(low)
    stretched = np.clip(places / np.float32(high - low if high != low else 0.001), 0, 1)
    kept = 1 - stretched
    slow = np.reciprocal(np.float32(rope.factor) * wavelengths)
    blended: Floats = slow * (1 - kept) + np.reciprocal(wavelengths) * kept
    return blended


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
    """Write cos and sin of every position into `cos` and `sin` (positions, head_dim / 2). Pairs of
    dims that are not rotated come last.

    The angle is rounded to float32, as transformers does it: far from the start that rounding is
    the largest part of the error, and a checkpoint was trained with it.
    """
    cos[:], sin[:] = 1, 0
    if rope.rope_type == "none":
        return
    frequencies = inverse_frequencies(rope, head_dim, len(cos))
    rotated = np.s_[:, : len(frequencies)]
    for start in range(0, len(cos), POSITIONS_AT_ONCE):
        some = slice(start, min(start + POSITIONS_AT_ONCE, len(cos)))
        angles = np.arange(some.start, some.stop, dtype=np.float32)[:, None] * frequencies
        for table, function in ((cos, np.cos), (sin, np.sin)):
            values = function(angles, dtype=np.float64).astype(np.float32)
            table[some][rotated] = values * np.float32(rope.attention_factor)


def head_order(rope: RopeConfig, head_dim: int, is_interleaved: bool) -> tuple[int, ...]:
    """Where the packed model has each dim of a head of queries or keys: the partners of a pair lie
    half a head apart, and rotated pairs come first. Empty if checkpoints have them so.

    is_interleaved: a checkpoint has the partners side by side. Scores are the same in any order
    that queries and keys share.
    """
    dims, half = rope.rotated_dims(head_dim), head_dim // 2
    if dims == head_dim and not is_interleaved:
        return ()
    first, second = np.arange(dims // 2), half + np.arange(dims // 2)
    pairs = (first, second)
    rotated = np.stack(pairs, 1).ravel() if is_interleaved else np.concatenate(pairs)
    others = np.setdiff1d(np.arange(head_dim), rotated)
    return tuple(np.concatenate((rotated, others)).tolist())
