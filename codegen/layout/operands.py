"""How the operands of kernels travel: the words of weights and activations, by ISA and dtype.

Values only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from codegen.layout.arrays import Array, Floats, TensorSpec, round_up
from codegen.layout.panels import PanelLayout
from codegen.spec import WeightFormat
from platforms.isa import IsaRow


class Operands:
    """Words of `isa` for weights of `dtype` ("float32" or "bfloat16").

    Weights travel as words of `kr` values (bf16: an int32 pair). Activations that feed a GEMM are
    stored as words of `act_kr` values: bf16 pairs where the ISA multiplies bf16, else float32.
    """

    def __init__(self, isa: IsaRow, dtype: str) -> None:
        self.isa = isa
        self.lanes = isa.lanes
        self.dtype = dtype
        self.kr = 2 if dtype == "bfloat16" else 1
        self.word_dtype = "int32" if self.kr == 2 else "float32"
        self.has_dot = self.kr == 2 and isa.has_bf16_dot
        self.act_kr = 2 if self.has_dot else 1
        self.act_dtype = "int32" if self.has_dot else "float32"

    def act_words(self, num_values: int) -> int:
        """Activation words that hold `num_values` values."""
        return -(-num_values // self.act_kr)


def code_offset(weights: WeightFormat, isa: IsaRow) -> int:
    """How far the numbers that an integer dot product takes for symmetric weights are above them:
    codes as they are, or, where int8 codes are made signed first, nothing.
    """
    is_signed = weights.dtype == "int8" and isa.has_s8_dot and not isa.has_u8_dot
    return 0 if is_signed else weights.zero_code


# The order of four activations in two words where int8 is multiplied in pairs of 16 bits: what the
# even bytes of a word of weights meet, then what the odd ones do.
PAIRS_OF_QUAD = (0, 2, 1, 3)
LARGEST = 127  # magnitude of an int8 activation
SCALE_EXPONENTS = (-100, 100)  # of the scale of a group: its least and its greatest
HEADROOM = 1 + 2.0**-7  # over a largest magnitude, so that none is rounded to LARGEST + 1
# With HEADROOM, a magnitude from here on is more than the greatest scale has integers for.
TOO_LARGE = 2.0 ** (SCALE_EXPONENTS[1] + LARGEST.bit_length())
# A float32 of this value has a last bit worth one: an integer of at most 22 bits and a sign that is
# added to its bits is added to its value.
ORIGIN = 1.5 * 2.0**23
ORIGIN_BITS = 0x4B400000
NAN_BITS = 0x7FC00000  # stays NaN whatever such an integer is added to it


@dataclass(frozen=True)
class Int8Rows:
    """Rows of activations, rounded to int8, as the kernels for `weights` on `isa` read them.

    A value is its integer times the scale of its row or, where the weights have groups of K, of its
    row and group; those scales are powers of two. They are stored times ORIGIN: a sum of products
    that starts from the bits of that is, as float32, (ORIGIN + sum) * scale. No sum of a group
    needs more than the 22 bits: 128 * 127 * 255 < 2**22.
    """

    isa: IsaRow
    weights: PanelLayout

    @property
    def values_per_word(self) -> int:
        """Four bytes or, where the ISA multiplies int8 weights in pairs, two of 16 bits."""
        return 2 if self.weights.format.dtype == "int8" and self.isa.multiplies_pairs else 4

    @property
    def bias_factor(self) -> int:
        """The bias of a group is minus the sum of its integers times this."""
        form = self.weights.format
        return 1 if form.has_zero_points else code_offset(form, self.isa)

    @property
    def has_origin_in_bias(self) -> bool:
        """Whether a bias is on top of its stored scale's bits; a zero point would multiply them."""
        return bool(self.weights.format.group) and not self.weights.format.has_zero_points

    def specs(self, name: str, num_rows: int) -> dict[str, TensorSpec]:
        """The arrays of `num_rows` rows: `name` (words of integers, from the lowest byte on, whole
        vectors of them), `name`_scales and `name`_bias.
        """
        int32, weights = np.dtype(np.int32), self.weights
        num_values = max(weights.k_padded, round_up(weights.k, self.isa.lanes))
        return {
            name: TensorSpec((num_rows, num_values // self.values_per_word), int32),
            name + "_scales": TensorSpec((num_rows, weights.num_groups), np.dtype(np.float32)),
            name + "_bias": TensorSpec((num_rows, weights.num_groups), int32),
        }

    def stored(self, name: str, integers: npt.NDArray[np.int8], scales: Floats) -> dict[str, Array]:
        """What is in those arrays for integers (m, k) and scales (m, 1 or groups)."""
        weights = self.weights
        (_, num_words), _, _ = (spec.shape for spec in self.specs(name, len(integers)).values())
        padded = np.zeros((len(integers), num_words * self.values_per_word), np.int8)
        padded[:, : weights.k] = integers
        groups = padded[:, : weights.k_padded].reshape(len(integers), weights.num_groups, -1)
        bias = groups.sum(axis=2, dtype=np.int32) * np.int32(-self.bias_factor)
        if weights.format.group:
            scales = scales * np.float32(ORIGIN)
        if self.has_origin_in_bias:
            bias += scales.view(np.int32)
        if self.values_per_word == 2:
            quads = padded.astype(np.int16).reshape(len(padded), -1, 4)[..., PAIRS_OF_QUAD].copy()
            words = quads.reshape(len(padded), -1).view(np.int32)
        else:
            words = padded.view(np.int32)
        return {name: words, name + "_scales": scales, name + "_bias": bias}
