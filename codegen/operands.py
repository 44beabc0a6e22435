"""How the operands of kernels travel: the words of weights and activations, by ISA and dtype.

Values only: it must not know tvm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from codegen.arrays import TensorSpec, round_up
from codegen.panels import PanelLayout
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
    return 0 if weights.dtype == "int8" and not isa.has_u8_dot else weights.zero_code


@dataclass(frozen=True)
class Int8Rows:
    """Rows of activations, rounded to int8, as the kernels for `weights` on `isa` read them.

    A value is its integer times the scale of its row or, with has_group_scales, of its row and
    group of K (the groups of the weights).
    """

    isa: IsaRow
    weights: PanelLayout
    has_group_scales: bool = False

    @property
    def num_scales(self) -> int:
        """Scales of one row."""
        return self.weights.num_groups if self.has_group_scales else 1

    @property
    def bias_factor(self) -> int:
        """The bias of a group is minus the sum of its integers times this."""
        form = self.weights.format
        return 1 if form.has_zero_points else code_offset(form, self.isa)

    def specs(self, name: str, num_rows: int) -> dict[str, TensorSpec]:
        """The arrays of `num_rows` rows: `name` (words of four integers, from the lowest byte on,
        whole vectors of them), `name`_scales and `name`_bias.
        """
        int32, weights = np.dtype(np.int32), self.weights
        num_values = max(weights.k_padded, round_up(weights.k, self.isa.lanes))
        return {
            name: TensorSpec((num_rows, num_values // 4), int32),
            name + "_scales": TensorSpec((num_rows, self.num_scales), np.dtype(np.float32)),
            name + "_bias": TensorSpec((num_rows, weights.num_groups), int32),
        }
