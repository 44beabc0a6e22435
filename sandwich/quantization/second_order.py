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

# Of the mean square of inputs, added to that of each. Few tokens say little of how many inputs go
# together, and what they seem to say does not hold for the next text: on SmolLM2, 0.01 leaves more
# error in the products of `down` with another text than rounding to the nearest does.
DAMPING: Final = 0.5

Moments = npt.NDArray[np.float64]


def moments_of(x: Floats) -> Moments:
    """What `round_for_inputs` takes for inputs x (m, k): the mean of x^T x, each of two times over
    its trace: of the inputs as they are, and of those divided by their norms.

    The first tokens of a window are often hundreds of times as large as others. Alone, the first
    would see nothing but them where they are, and the second would not see them.
    """
    squares = np.einsum("mk,mk->m", x, x, dtype=np.float64)
    if not squares.any():
        return np.zeros((x.shape[1],) * 2)
    shares = 1 / squares.sum() + np.divide(
        1, squares * len(x), out=np.zeros_like(squares), where=squares > 0
    )
    scaled = x * np.sqrt(shares).astype(np.float32)[:, None]
    moments: Moments = (scaled.T @ scaled).astype(np.float64)
    return moments


def round_for_inputs(weight: Floats, moments: Moments, weights: WeightFormat) -> QuantizedRows:
    """weight (n, k) in a format with groups, for inputs of which `moments_of` tells (k, k).

    A group's scale, and its minimum if it has one, are those that `quantize` finds for what the
    group is to be when its turn comes, where a column's error counts as much as those behind it
    cannot make up for. Time grows with n * k**2 and k**3.
    """
    assert weights.group, weights
    feedback, remaining = _feedback(moments)
    errors = np.zeros_like(weight)
    parts = []
    for start in range(0, weight.shape[1], weights.group):
        stop = min(start + weights.group, weight.shape[1])
        wanted = weight[:, start:stop] + errors[:, :start] @ feedback[:start, start:stop]
        importance = remaining[start:stop] / remaining[start:stop].max()
        grid = quantize(wanted, weights, importance)
        scales, origins = grid.scales[:, 0], grid.origins(weights)[:, 0]
        inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
        codes = np.empty_like(grid.codes)
        lost = np.empty((stop - start, len(weight)), np.float32)
        for column in range(stop - start):
            own = feedback[start : start + column, start + column]
            target = wanted[:, column] + own @ lost[:column]
            rounded = np.clip(np.rint((target - origins) * inverse), *weights.code_range)
            lost[column] = weight[:, start + column] - (rounded * scales + origins)
            codes[:, column] = rounded
        errors[:, start:stop] = lost.T
        parts.append(QuantizedRows(codes, grid.scales, grid.zero_points, grid.minima))
    return QuantizedRows.joined(parts, axis=1)


def _feedback(moments: Moments) -> tuple[Floats, Floats]:
    """F (k, k), strictly upper: how much of the error of input i's column, by row, input j's
    column, by column, takes over; and the diagonal of D (k,): what the squared error of a column
    costs after that. Damped moments are (F + I) D (F + I)^T.
    """
    damped = moments + DAMPING * np.mean(np.diag(moments)) * np.eye(len(moments))
    damped += np.eye(len(moments)) * np.finfo(np.float32).tiny  # where all inputs are zero
    upper = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
    remaining = np.square(np.diag(upper))
    remaining /= remaining.max()
    return np.triu(upper / np.diag(upper), 1).astype(np.float32), remaining.astype(np.float32)
