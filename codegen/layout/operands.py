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
    """How far the numbers that an integer dot product takes for codes are above those that scales
    multiply: it takes codes as they are or, where int8 codes are made signed first, minus 128.
    """
    is_signed = weights.dtype == "int8" and isa.has_s8_dot and not isa.has_u8_dot
    return weights.zero_code - (128 if is_signed else 0)


# The order of four activations in two words where int8 is multiplied in pairs of 16 bits: what the
# even bytes of a word of weights meet, then what the odd ones do.
PAIRS_OF_QUAD = (0, 2, 1, 3)
LARGEST = 127  # magnitude of an int8 activation
MOST_INVERSE = 2.0**120  # of a scale: magnitudes near the least of float32 get smaller integers


@dataclass(frozen=True)
class Int8Rows:
    """Rows of activations, rounded to int8, as the kernels for `weights` on `isa` read them.

    A value is its integer times the scale of its row or, where the weights have groups of K, of its
    row and group.
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

    def specs(self, name: str, num_rows: int) -> dict[str, TensorSpec]:
        """The arrays of `num_rows` rows: `name` (words of integers, from the lowest byte on, whole
        vectors of them), `name`_scales and, where the bias is not always zero, `name`_bias. Weights
        with minima meet `name`_sums: of a group's integers, times its scale.
        """
        int32, float32, weights = np.dtype(np.int32), np.dtype(np.float32), self.weights
        num_values = max(weights.k_padded, round_up(weights.k, self.isa.lanes))
        per_group = (num_rows, weights.num_groups)
        specs = {
            name: TensorSpec((num_rows, num_values // self.values_per_word), int32),
            name + "_scales": TensorSpec(per_group, float32),
        }
        if self.bias_factor:
            specs[name + "_bias"] = TensorSpec(per_group, int32)
        if weights.format.has_minima:
            specs[name + "_sums"] = TensorSpec(per_group, float32)
        return specs

    def stored(self, name: str, integers: npt.NDArray[np.int8], scales: Floats) -> dict[str, Array]:
        """What is in those arrays for integers (m, k) and scales (m, 1 or groups)."""
        weights, specs = self.weights, self.specs(name, len(integers))
        padded = np.zeros((len(integers), specs[name].shape[1] * self.values_per_word), np.int8)
        padded[:, : weights.k] = integers
        groups = padded[:, : weights.k_padded].reshape(len(integers), weights.num_groups, -1)
        sums = groups.sum(axis=2, dtype=np.int32)
        if self.values_per_word == 2:
            quads = padded.astype(np.int16).reshape(len(padded), -1, 4)[..., PAIRS_OF_QUAD].copy()
            words = quads.reshape(len(padded), -1).view(np.int32)
        else:
            words = padded.view(np.int32)
        arrays: dict[str, Array] = {name: words, name + "_scales": scales}
        if self.bias_factor:
            arrays[name + "_bias"] = sums * np.int32(-self.bias_factor)
        if weights.format.has_minima:
            arrays[name + "_sums"] = sums.astype(np.float32) * scales
        return arrays
