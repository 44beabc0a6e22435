"""A safetensors folder in which each quantised matrix is several tensors of one module.

What they are is the matter of a `Method`; the checkpoint shows the matrix in their place.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from codegen.layout.arrays import Floats, widen
from codegen.layout.quantize import QuantizedRows
from sandwich.checkpoint.quantized.grid import Grid
from sandwich.checkpoint.safetensors import NUMPY_DTYPES, SafetensorsCheckpoint
from sandwich.checkpoint.source import Array, StoredTensor
from sandwich.errors import ModelError

# As safetensors spells them; FP8 as bytes.
_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    **NUMPY_DTYPES,
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
    "I8": np.dtype(np.int8),
    "F8_E4M3": np.dtype(np.uint8),
}
_OF_CACHE: Final = (".k_scale", ".v_scale", ".q_scale")  # of caches in 8 bits, which ours is not
KEPT_PARTS: Final = 12  # of which all is read at once: those of a few matrices


class Parts:
    """The tensors of one module. Their contents can be read while the checkpoint is open."""

    def __init__(
        self, module: str, tensors: dict[str, StoredTensor], folder: QuantizedFolder
    ) -> None:
        self.module, self.tensors = module, tensors
        self._folder = folder

    @property
    def nbytes(self) -> int:
        """Of all parts."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def __contains__(self, part: str) -> bool:
        return part in self.tensors

    def error(self, problem: str) -> ModelError:
        """The error that the module is not what it should be."""
        file = next(iter(self.tensors.values())).file
        return ModelError(f"{file}: {self.module}: {problem}; fetch it again")

    def tensor(self, part: str, *dtypes: str) -> StoredTensor:
        """A part that must be there, in one of `dtypes`."""
        found = self.tensors.get(part)
        if found is None or found.dtype not in dtypes:
            what = "missing" if found is None else found.dtype
            raise self.error(f"{part} is {what}; {' or '.join(dtypes)} is needed")
        return found

    def check(self, part: str, shape: tuple[int, ...]) -> None:
        """ModelError unless a part that is there has this shape."""
        if self.tensors[part].shape != shape:
            found = list(self.tensors[part].shape)
            raise self.error(f"{part} is {found}; {list(shape)} is needed")

    def order(self, part: str, groups: int) -> npt.NDArray[np.int32] | None:
        """The group of each input, as a part says it; None without that part. ModelError for
        groups that are not there.
        """
        if part not in self:
            return None
        group_of: npt.NDArray[np.int32] = self.whole(part).astype(np.int32, copy=False)
        if group_of.min(initial=0) < 0 or group_of.max(initial=0) >= groups:
            raise self.error(f"{part} names groups other than 0 to {groups - 1}")
        return group_of

    def rows(self, part: str, start: int, stop: int) -> Array:
        """Rows [start, stop) of a part; bf16 as bit patterns."""
        return self._folder.read_part(self.tensors[part], start, stop)

    def whole(self, part: str) -> Array:
        """All of a part, which is kept for the next time."""
        return self._folder.read_whole(self.tensors[part])

    def floats(self, part: str) -> Floats:
        """All of a part as float32."""
        return widen(self.whole(part))


class Method(Protocol):
    """A way to store a matrix."""

    @property
    def marks(self) -> Collection[str]:
        """The parts of which each quantised matrix has one; `matrix` may decline."""
        ...

    @property
    def parts(self) -> Collection[str]:
        """All that a quantised matrix may have beside its bias."""
        ...

    def matrix(self, parts: Parts) -> StoredTensor:
        """The matrix as it appears: shape (n, k), what its codes are, how many bytes it takes.

        Raises ModelError if parts are missing or do not fit each other.
        """
        ...

    def read(self, parts: Parts, start: int, stop: int) -> Grid | Floats:
        """Rows [start, stop) of it. ModelError if a part says what the method excludes."""
        ...


class QuantizedFolder(SafetensorsCheckpoint):
    """The tensors of a folder, each quantised matrix NAME under NAME.weight."""

    def __init__(self, folder: Path, method: Method) -> None:
        """Raises ModelError as SafetensorsCheckpoint does, or if matrices lack parts."""
        super().__init__(folder)
        self._method = method
        self._parts: dict[str, Parts] = {}
        self.read_whole = lru_cache(KEPT_PARTS)(self._read_whole)
        modules = {
            name.removesuffix(f".{mark}"): None
            for mark in method.marks
            for name in self.tensors
            if name.endswith(f".{mark}")
        }
        with self:
            for module in modules:
                self._take(module)
        for name in [name for name in self.tensors if name.endswith(_OF_CACHE)]:
            del self.tensors[name]
        self.dtypes = (
            *NUMPY_DTYPES,
            *sorted({self.tensors[name].dtype for name in self._parts}),
        )

    def _take(self, module: str) -> None:
        """Put a matrix in the place of its parts."""
        names = {part: f"{module}.{part}" for part in self._method.parts}
        own = {part: self.tensors[name] for part, name in names.items() if name in self.tensors}
        parts = Parts(module, own, self)
        matrix = self._method.matrix(parts)
        for part in own:
            del self.tensors[names[part]]
        self.tensors[f"{module}.weight"] = matrix
        self._parts[f"{module}.weight"] = parts

    def close(self) -> None:
        self.read_whole.cache_clear()
        super().close()

    def read_part(self, tensor: StoredTensor, start: int, stop: int) -> Array:
        """Rows [start, stop) of a tensor of any type; a scalar is one row."""
        dtype, shape = _DTYPES[tensor.dtype], tensor.shape or (1,)
        rows = np.empty((stop - start, *shape[1:]), dtype)
        row_nbytes = tensor.nbytes // max(1, shape[0])
        flat = rows.reshape(-1).view(np.uint8)
        self._files.read(tensor.file, tensor.offset + start * row_nbytes, flat)
        return rows

    def _read_whole(self, tensor: StoredTensor) -> Array:
        return self.read_part(tensor, 0, (tensor.shape or (1,))[0])

    def read_codes(
        self, name: str, start: int, stop: int, buffer: npt.NDArray[np.uint8]
    ) -> QuantizedRows:
        """As Checkpoint says."""
        weights = self.tensors[name].codes
        grid = self._method.read(self._parts[name], start, stop)
        assert weights is not None, name
        assert isinstance(grid, Grid), name
        return grid.rows(weights)

    def read_rows(self, name: str, start: int, stop: int, buffer: npt.NDArray[np.uint8]) -> Array:
        """As Checkpoint says; quantised matrices as float32."""
        if name not in self._parts:
            return super().read_rows(name, start, stop, buffer)
        found = self._method.read(self._parts[name], start, stop)
        return found.values() if isinstance(found, Grid) else found
