"""How the cores of a plan work together: one launch, shares of the work, waiting for each other.

Knows nothing of operators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from codegen.kit import Expr, T


def split(core: Expr, num_cores: int, count: Expr) -> tuple[Expr, Expr]:
    """The contiguous share [begin, end) of `count` items that `core` of `num_cores` owns."""
    return T.bind(core * count // num_cores), T.bind((core + 1) * count // num_cores)


def each_core(num_cores: int, body: Callable[[Expr], None]) -> None:
    """Run `body(core)` on every core of the parallel region, then wait for all of them."""
    if num_cores == 1:
        body(T.int32(0))
        return
    with T.attr(T.int32(0), "pragma_parallel_barrier_when_finish", T.int32(1)):
        with T.parallel(0, num_cores) as core:
            body(core)


@contextmanager
def parallel_region(num_cores: int) -> Iterator[None]:
    """One launch of `num_cores` workers around the `each_core` loops inside; none for one core."""
    if num_cores == 1:
        yield
        return
    with T.attr(T.int32(0), "pragma_parallel_launch_point", T.int32(1)):
        yield


__all__ = ["each_core", "parallel_region", "split"]
