"""Whether weights are numbers: a damaged checkpoint is refused before it answers nonsense."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

# Bits of a value without its sign from which on it is infinite or no number.
_LIMITS: Final = {"uint16": 0x7F80, "float16": 0x7C00}  # bf16 is stored as uint16


def is_finite(rows: npt.NDArray[Any]) -> bool:
    """Whether all of float32, float16 or bf16 bit patterns are numbers. One pass mostly."""
    limit = _LIMITS.get(rows.dtype.name)
    if limit is not None:
        return bool(np.max(rows.view(np.uint16) & np.uint16(0x7FFF), initial=0) < limit)
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(rows.sum()):
            return True
    return bool(np.isfinite(rows).all())  # finite values may have an infinite sum
