"""Rounding a matrix so that its products with given inputs change least, column by column.

Sources: GPTQ (Frantar et al., arXiv 2210.17323), in the form of LDLQ (Chee et al., arXiv
2307.13304): a column is rounded after it has taken over what the columns before it have lost, as
far as inputs that go together can make up for it.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from codegen.layout.arrays import Floats
from codegen.layout.quantize import QuantizedRows, quantize
from codegen.spec import WeightFormat

DAMPING: Final = 0.01  # of the mean square of inputs, added to that of each

Moments = npt.NDArray[np.float64]


def round_for_inputs(weight: Floats, moments: Moments, weights: WeightFormat) -> QuantizedRows:
    """weight (n, k) in a format with groups, for inputs x (m, k) of which moments is x^T x (k, k).

    A group's scale, and its minimum if it has one, are those that `quantize` finds for what the
    group is to be when its turn comes. Time grows with n * k**2 and k**3.
    """
    assert weights.group, weights
    feedback = _feedback(moments)
    errors = np.zeros_like(weight)
    parts = []
    for start in range(0, weight.shape[1], weights.group):
        stop = min(start + weights.group, weight.shape[1])
        wanted = weight[:, start:stop] + errors[:, :start] @ feedback[:start, start:stop]
        grid = quantize(wanted, weights)
        scales, origins = grid.scales[:, 0], grid.origins(weights)[:, 0]
        inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
        codes = np.empty_like(grid.codes)
        lost = errors[:, start:stop]
        for column in range(stop - start):
            own = feedback[start : start + column, start + column]
            target = wanted[:, column] + lost[:, :column] @ own
            rounded = np.clip(np.rint((target - origins) * inverse), *weights.code_range)
            lost[:, column] = weight[:, start + column] - (rounded * scales + origins)
            codes[:, column] = rounded
        parts.append(QuantizedRows(codes, grid.scales, grid.zero_points, grid.minima))
    return QuantizedRows.joined(parts, axis=1)


def _feedback(moments: Moments) -> Floats:
    """(k, k), strictly upper: how much of the error of input i's column, by row, input j's column,
    by column, takes over. From moments = (F + I) D (F + I)^T with a diagonal D.
    """
    damped = moments + DAMPING * np.mean(np.diag(moments)) * np.eye(len(moments))
    damped += np.eye(len(moments)) * np.finfo(np.float32).tiny  # where all inputs are zero
    upper = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
    return np.triu(upper / np.diag(upper), 1).astype(np.float32)
