"""How items are shared between the cores of a plan: for kernels, and for whoever must know which
core reads what.

Arithmetic only.
"""

from __future__ import annotations

from typing import Any


def share(core: Any, num_cores: int, count: Any, turn: Any = 0, turns: Any = 1) -> tuple[Any, Any]:
    """The contiguous share [begin, end) of `count` items that `core` of `num_cores` owns.

    Shares differ by one item at most. Right for integers and for expressions of them.

    turn, turns: of so many rows of `count` items each, which are dealt together, the first items
    of all rows before the second ones, the share in row `turn`. A core's shares in all rows differ
    by one item at most, and so does what it has altogether from what another one has.
    """

    def border(number: Any) -> Any:
        return (number * count * turns // num_cores + turns - 1 - turn) // turns

    return border(core), border(core + 1)
