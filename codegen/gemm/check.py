"""Whether a kernel's product is right: compared with NumPy's of the operands as the kernel reads
them.
"""

from __future__ import annotations

import numpy as np

from codegen.gemm.program import GemmSpec
from codegen.layout.arrays import Floats, bf16_from_float32, float32_from_bf16
from codegen.reference import rounded_activations

# The sum of absolute products, times this, is more than any order of float32 additions can lose.
TOLERANCE = 1e-5


def as_read(spec: GemmSpec, a: Floats) -> Floats:
    """Rows of A, (m, k) float32, with the values that the kernel of `spec` multiplies."""
    weights = spec.layout.format
    if weights.has_int8_activations:
        return rounded_activations(a, weights.group)
    return float32_from_bf16(bf16_from_float32(a)) if spec.kit.has_dot else a


def error_beyond_rounding(product: Floats, a: Floats, weights: Floats) -> float | None:
    """The largest error of `product` (m, n) against a (m, k) times weights (n, k), transposed, or
    None if the rounding of float32 sums explains all of them. `a` is that of `as_read`.
    """
    errors = np.abs(product - a @ weights.T)
    if (errors <= TOLERANCE * (np.abs(a) @ np.abs(weights).T)).all():  # not so for NaN
        return None
    return float(errors.max())
