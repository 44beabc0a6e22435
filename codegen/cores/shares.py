"""How items are shared between the cores of a plan: for kernels, and for whoever must know which
core reads what.

Arithmetic only.
"""

from __future__ import annotations

from typing import Any


def share(core: Any, num_cores: int, count: Any) -> tuple[Any, Any]:
    """The contiguous share [begin, end) of `count` items that `core` of `num_cores` owns.

    Shares differ by one item at most. Right for integers and for expressions of them.
    """
    return core * count // num_cores, (core + 1) * count // num_cores
