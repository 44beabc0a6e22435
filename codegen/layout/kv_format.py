"""How keys and values are stored in the KV cache. Values only."""

from __future__ import annotations

from dataclasses import dataclass

KV_DTYPES = ("float32", "bfloat16", "int8")


@dataclass(frozen=True)
class KvFormat:
    """How keys and values are cached; ValueError for a dtype that is not made.

    dtype: "float32", "bfloat16", or "int8" with a float32 scale for the keys and one for the values
    of each token and head.
    """

    dtype: str

    def __post_init__(self) -> None:
        if self.dtype not in KV_DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}; it is one of {KV_DTYPES}")

    @property
    def has_scales(self) -> bool:
        """Whether keys and values are integers with scales."""
        return self.dtype == "int8"

    @property
    def product_dtype(self) -> str:
        """What queries and probabilities are rounded to; it holds integers of a byte exactly."""
        return "bfloat16" if self.has_scales else self.dtype

    def nbytes(self, num_values: int) -> int:
        """Of so many keys, or values, of one head that belong to one token."""
        itemsize = {"float32": 4, "bfloat16": 2, "int8": 1}[self.dtype]
        return num_values * itemsize + 4 * self.has_scales
