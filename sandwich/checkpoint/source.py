"""What every checkpoint format gives: settings, a tokenizer, and tensors by name.

Names and settings are those of Hugging Face checkpoints, whatever the file itself calls them; a
format that has others translates. A format is one implementation of both protocols and a row in
`sandwich/checkpoint/formats.py`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from codegen.layout.quantize import QuantizedRows
from codegen.spec import WeightFormat
from sandwich.checkpoint.fields import Fields
from sandwich.checkpoint.tokenizer_files import TokenizerFiles

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of the file `file`, row-major from byte `offset` on.

    codes: the format in which `Checkpoint.read_codes` gives its rows, whatever they are multiplied
    with; None for floats, and for codes that no format of ours holds.
    """

    dtype: str  # as the format spells it
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int
    codes: WeightFormat | None = None

    @property
    def num_values(self) -> int:
        return math.prod(self.shape)


class Checkpoint(Protocol):
    """The tensors of a model, read while the context is open.

    `tensors` is there before; what its headers say was checked when the object was made.
    """

    @property
    def path(self) -> Path:
        """For messages."""
        ...

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """By name."""
        ...

    @property
    def files(self) -> Collection[Path]:
        """Those that the tensors are in."""
        ...

    @property
    def dtypes(self) -> Collection[str]:
        """Those that `read_rows` can read."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def read_rows(self, name: str, start: int, stop: int, buffer: npt.NDArray[np.uint8]) -> Array:
        """Rows [start, stop) as float32, float16 or bf16 bit patterns (uint16).

        The result may be a view of `buffer`, which has four bytes for each value. Threads with a
        buffer of their own may call it at once. Raises ModelError if the file ends too early.
        """
        ...

    def read_codes(
        self, name: str, start: int, stop: int, buffer: npt.NDArray[np.uint8]
    ) -> QuantizedRows:
        """As `read_rows`, the codes and scales of a tensor whose `codes` is a format."""
        ...


class ModelSource(Protocol):
    """Where a model comes from. Making one reads nothing; every method raises ModelError."""

    @property
    def name(self) -> str:
        """Of the folder or file."""
        ...

    @property
    def has_tensors(self) -> bool:
        """Whether there is a checkpoint, or only what is said of the model."""
        ...

    def config(self) -> Fields:
        """The model's sizes and switches: the keys of a config.json."""
        ...

    def generation(self) -> Fields:
        """Sampling defaults and end tokens: the keys of a generation_config.json, perhaps none."""
        ...

    def tokenizer(self) -> TokenizerFiles:
        """The tokenizer as it encodes for this model."""
        ...

    def checkpoint(self) -> Checkpoint:
        """The tensors."""
        ...
