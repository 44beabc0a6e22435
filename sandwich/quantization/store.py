"""`quantize_folder`: a checkpoint with its matrices rounded, as a folder that can be served.

The form is that of sandwich.checkpoint.codes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from codegen.layout.arrays import Floats, widen
from codegen.layout.quantize import QuantizedRows, quantize
from codegen.spec import WeightFormat
from sandwich.checkpoint.codes import CODES, CONFIG_KEY, CodedFormats, packed_bytes
from sandwich.checkpoint.huggingface import HuggingFaceFolder
from sandwich.checkpoint.safetensors import INDEX_FILE, SINGLE_FILE
from sandwich.checkpoint.source import Array, Checkpoint
from sandwich.errors import ModelError
from sandwich.models.config import ModelConfig
from sandwich.models.tensors import CheckpointTensor, checkpoint_tensors
from sandwich.quantization.calibrate import Calibration

NUM_THREADS: Final = 2
ROWS_AT_ONCE: Final = 256  # of a matrix, rounded by one thread
_NOT_COPIED: Final = ("config.json", SINGLE_FILE, INDEX_FILE)
_COPIED: Final = (".json", ".jinja", ".model", ".txt", ".md")

Done = Callable[[int], None]  # told how many values were rounded


def quantize_folder(
    source: HuggingFaceFolder,
    out: Path,
    layers: WeightFormat,
    lm_head: WeightFormat,
    windows: npt.NDArray[np.int32] | None,
    done: Done,
) -> None:
    """Write the model of `source` to the folder `out`, made anew, with its layers' matrices and its
    LM head in formats with groups.

    windows (windows, tokens): the layers are rounded for what these tokens make of their inputs;
    None: to the nearest values. Other tensors are kept as float32. Everything is in memory until it
    is written. Raises ModelError for a checkpoint that is not whole, or has matrices that do not
    fit a format.
    """
    if out.exists():
        raise ModelError(f"{out}: exists already; name a new folder")
    config = ModelConfig.from_source(source)
    length = config.max_context_len if windows is None else windows.shape[1]
    shape = config.shape(length)
    tensors = list(checkpoint_tensors(shape, config.names))
    formats = CodedFormats(layers, lm_head, _head(tensors).name)
    with source.checkpoint() as checkpoint:
        writer = _Writer(checkpoint, formats, done)
        if windows is not None:
            how = (writer.read, formats.layers, writer.keep, config.names.head_order)
            Calibration(shape, config.ropes, tensors, *how).run(windows)
        for tensor in tensors:
            writer.finish(tensor)
    out.mkdir(parents=True)
    save_file(writer.arrays, out / SINGLE_FILE, {"format": "np"})
    fields = source.config()
    said = {key: fields.get(key) for key in fields} | {CONFIG_KEY: formats.fields()}
    (out / "config.json").write_text(json.dumps(said, indent=2) + "\n")
    for file in sorted(source.folder.iterdir()):
        if file.suffix in _COPIED and file.name not in _NOT_COPIED:
            shutil.copyfile(file, out / file.name)


def num_rounded(config: ModelConfig) -> int:
    """Values of all matrices that `quantize_folder` rounds."""
    tensors = list(checkpoint_tensors(config.shape(1), config.names))
    inside = (each for each in tensors if _is_rounded(each))
    return sum(each.shape[0] * each.num_columns for each in (*inside, _head(tensors)))


def _is_rounded(tensor: CheckpointTensor) -> bool:
    """Whether it is a matrix that has the layers' format."""
    return len(tensor.shape) == 2 and tensor.layer is not None and not tensor.is_plain


def _head(tensors: Iterable[CheckpointTensor]) -> CheckpointTensor:
    """The matrix that has the LM head's format."""
    return next(each for each in tensors if each.parts[0].role == "lm_head")


class _Writer:
    """Arrays to be written, by name."""

    def __init__(self, checkpoint: Checkpoint, formats: CodedFormats, done: Done) -> None:
        self._checkpoint, self._formats, self._done = checkpoint, formats, done
        self.arrays: dict[str, Array] = {}

    def read(self, tensor: CheckpointTensor, rows: Iterable[int] | None = None) -> Floats:
        """Some rows of a tensor, or all, as float32."""
        if rows is None:
            return self._rows(tensor, 0, tensor.shape[0])
        return np.concatenate([self._rows(tensor, row, row + 1) for row in rows])

    def _rows(self, tensor: CheckpointTensor, start: int, stop: int) -> Floats:
        buffer = np.empty((stop - start) * tensor.num_columns * 4, np.uint8)
        return widen(self._checkpoint.read_rows(tensor.name, start, stop, buffer)).copy()

    def keep(self, tensor: CheckpointTensor, rows: QuantizedRows) -> None:
        """Take a matrix of the layers that is rounded."""
        self._keep(tensor, rows, self._formats.layers)

    def finish(self, tensor: CheckpointTensor) -> None:
        """Take a tensor that is not there yet."""
        if f"{tensor.name}.{CODES}" in self.arrays:
            return
        if tensor.name == self._formats.head:
            self._keep(tensor, self._nearest(tensor, self._formats.lm_head), self._formats.lm_head)
        elif _is_rounded(tensor):
            self.keep(tensor, self._nearest(tensor, self._formats.layers))
        else:
            self.arrays[tensor.name] = self.read(tensor)

    def _nearest(self, tensor: CheckpointTensor, weights: WeightFormat) -> QuantizedRows:
        num_rows = tensor.shape[0]

        def rounded(start: int) -> QuantizedRows:
            return quantize(self._rows(tensor, start, min(start + ROWS_AT_ONCE, num_rows)), weights)

        starts = range(0, num_rows, ROWS_AT_ONCE)
        with ThreadPoolExecutor(NUM_THREADS) as threads:
            return QuantizedRows.joined(threads.map(rounded, starts), axis=0)

    def _keep(self, tensor: CheckpointTensor, rows: QuantizedRows, weights: WeightFormat) -> None:
        if tensor.num_columns % 2:
            raise ModelError(
                f"{tensor.name} has {tensor.num_columns} inputs; codes of 4 bits are kept in pairs"
            )
        stored = np.float16 if weights.scale_dtype == "float16" else np.float32
        self.arrays[f"{tensor.name}.{CODES}"] = packed_bytes(rows.codes, weights.bits)
        self.arrays[f"{tensor.name}.scales"] = rows.scales.astype(stored)
        if rows.minima is not None:
            self.arrays[f"{tensor.name}.minima"] = rows.minima.astype(stored)
        self._done(tensor.shape[0] * tensor.num_columns)
