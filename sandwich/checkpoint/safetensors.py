"""Reads Hugging Face safetensors checkpoints, one file or sharded, rows at a time.

The `safetensors` library checks the headers; the data is read with `pread` into the caller's
buffer, because the library has no NumPy type for bf16 and maps whole files.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from codegen.layout.quantize import QuantizedRows
from sandwich.checkpoint.fields import Fields, read_json
from sandwich.checkpoint.files import ReadsFiles
from sandwich.checkpoint.source import Array, StoredTensor
from sandwich.checkpoint.strangers import unreadable, what_is
from sandwich.errors import ModelError

SINGLE_FILE: Final = "model.safetensors"
INDEX_FILE: Final = "model.safetensors.index.json"
# The types that can be read; bf16 has no NumPy type, so its bit patterns are.
NUMPY_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(np.uint16),
}


class SafetensorsCheckpoint(ReadsFiles):
    """The tensors of a folder by name."""

    dtypes = tuple(NUMPY_DTYPES)

    def __init__(self, folder: Path) -> None:
        """Read and check all headers. Raises ModelError if a file is missing or damaged."""
        super().__init__()
        self.path = folder
        self.tensors: dict[str, StoredTensor] = {}
        file_of_tensor = _read_index(folder)
        self.files = sorted(set(file_of_tensor.values())) or [folder / SINGLE_FILE]
        for file in self.files:
            for name, tensor in _read_header(file):
                if file_of_tensor.get(name, file) == file:
                    self.tensors[name] = tensor
        for name, file in file_of_tensor.items():
            if name not in self.tensors:
                raise ModelError(
                    f"{file}: lacks tensor {name}, which {INDEX_FILE} says it holds; fetch it again"
                )

    def read_rows(self, name: str, start: int, stop: int, buffer: npt.NDArray[np.uint8]) -> Array:
        """As Checkpoint says; a view of `buffer`."""
        tensor = self.tensors[name]
        dtype = NUMPY_DTYPES[tensor.dtype]
        shape = (stop - start, *tensor.shape[1:])
        row_nbytes = dtype.itemsize * int(np.prod(tensor.shape[1:], dtype=np.int64))
        wanted = buffer[: (stop - start) * row_nbytes]
        self._files.read(tensor.file, tensor.offset + start * row_nbytes, wanted)
        return wanted.view(dtype).reshape(shape)

    def read_codes(
        self, name: str, start: int, stop: int, buffer: npt.NDArray[np.uint8]
    ) -> QuantizedRows:
        """There are none."""
        raise AssertionError(name)


def has_weights(folder: Path) -> bool:
    """Whether the folder holds a checkpoint in this format."""
    return any((folder / name).is_file() for name in (SINGLE_FILE, INDEX_FILE))


def _read_index(folder: Path) -> dict[str, Path]:
    """Tensor name -> file of a sharded checkpoint; empty if the checkpoint is a single file."""
    if (folder / SINGLE_FILE).is_file():
        return {}
    index = folder / INDEX_FILE
    if not index.is_file():
        found = what_is(folder)
        raise ModelError(
            f"{folder}: holds neither {SINGLE_FILE} nor {INDEX_FILE}"
            + (f", but {found}" if found else "; give a folder with a safetensors checkpoint")
        )
    weight_map = Fields(read_json(index), index).object("weight_map")
    files: dict[str, Path] = {}
    for name in weight_map:
        file = weight_map.get(name)
        if not isinstance(file, str) or Path(file).name != file:
            raise weight_map.error(name, "the name of a file beside the index is needed")
        files[name] = folder / file
    if not files:
        raise ModelError(f"{index}: weight_map names no tensor; fetch it again")
    return files


def _read_header(file: Path) -> Iterator[tuple[str, StoredTensor]]:
    """Name and place of every tensor of a file that the library found sound."""
    try:
        with safe_open(file, framework="numpy"):
            pass
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
    except FileNotFoundError:
        raise ModelError(f"{file}: there is no such file; fetch the whole checkpoint") from None
    except (OSError, SafetensorError) as error:
        raise unreadable(file, f"is damaged or cut short ({error})") from error
    header.pop("__metadata__", None)
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        offset = 8 + length + start
        yield name, StoredTensor(entry["dtype"], tuple(entry["shape"]), file, offset, stop - start)
