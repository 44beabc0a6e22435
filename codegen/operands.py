"""How the operands of kernels travel: the words of weights and activations, by ISA and dtype.

Values only: it must not know tvm.
"""

from __future__ import annotations

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
