"""Fills the packed weights of a model, from a checkpoint or at random.

Streams chunks of rows through small buffers: memory peaks at the packed weights plus a bounded
remainder.
"""

from __future__ import annotations

import logging
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from codegen.layout.arrays import bf16_from_float32, widen
from codegen.layout.model import ModelLayout
from codegen.layout.quantize import QuantizedRows
from codegen.model.tables import rotation
from codegen.spec import ModelShape
from platforms.memory import Arena
from sandwich.checkpoint.source import Checkpoint
from sandwich.errors import ModelError
from sandwich.models.config import ModelConfig
from sandwich.models.rope import fill_tables, inverse_frequencies
from sandwich.models.tensors import (
    STORED_FREQUENCIES,
    CheckpointTensor,
    TensorNames,
    checkpoint_tensors,
    is_redundant,
)
from sandwich.weights.cache import WeightCache
from sandwich.weights.finite import is_finite
from sandwich.weights.key import packed_nbytes, weights_key
from sandwich.weights.pack import Rows, WeightPacker

CHUNK_VALUES: Final = 1 << 20  # of a tensor, read and packed at once
MAX_VALUE_NBYTES: Final = 4  # of the types a checkpoint may hold
CACHED_FROM_NBYTES: Final = 64 << 20  # of packed weights: less is packed in no time
NUM_THREADS: Final = 2
RANDOM_SCALE: Final = 0.02  # standard deviation of random weights, as models are initialised
NAMES_SHOWN: Final = 5  # of each kind of wrong tensor
FREQUENCY_ROUNDING: Final = 1e-2  # of rotation frequencies that are stored in 16 bits

_log = logging.getLogger(__name__)

Array = npt.NDArray[Any]
Buffer = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ModelWeights:
    """The packed tensors of a model by name: `layout.tensor_specs()` as views of one arena."""

    layout: ModelLayout
    tensors: dict[str, Array]


@dataclass(frozen=True)
class Chunk:
    """Rows [start, stop) of a checkpoint tensor."""

    tensor: CheckpointTensor
    start: int
    stop: int

    @property
    def num_values(self) -> int:
        return (self.stop - self.start) * self.tensor.num_columns


# Gives the rows of a chunk as float32, float16 or bf16 bit patterns, perhaps in the buffer, or as
# codes. It is called from several threads, each with a buffer of its own.
ReadRows = Callable[[Chunk, Buffer], Rows]
OnProgress = Callable[[float], None]  # told the share of the weights that is packed, from 0 to 1


def told_nobody(share: float) -> None:
    """An OnProgress for where nobody asks."""


def load_weights(
    checkpoint: Checkpoint,
    config: ModelConfig,
    layout: ModelLayout,
    arena: Arena,
    on_progress: OnProgress = told_nobody,
    cache: WeightCache | None = None,
) -> ModelWeights:
    """Pack the tensors of a checkpoint, which is opened and closed here, into `arena`, or read them
    from `cache`, which otherwise keeps them for the next time.

    The arena needs `layout.weight_bytes` free. Shows a progress bar on a terminal.

    Raises:
        ModelError: a file is missing or damaged, its tensors are not those of `config`, or a value
            is no number.
    """
    stored = checkpoint.tensors
    start = arena.nbytes_used
    tensors = _allocated(config, layout, arena)
    packed = arena.bytes_between(start, start + packed_nbytes(layout))
    key = ""
    if cache is not None and len(packed) >= CACHED_FROM_NBYTES:
        key = weights_key(checkpoint, layout, config.names)
        with _bar(f"reading packed {config.name}", len(packed), on_progress) as advance:
            if cache.read(key, packed, advance):
                return ModelWeights(layout, tensors)
    with checkpoint:
        _check_tensors(checkpoint, layout.shape, config.names)
        _check_frequencies(checkpoint, config)

        def position(tensor: CheckpointTensor) -> tuple[Path, int]:
            return stored[tensor.name].file, stored[tensor.name].offset

        def read_rows(chunk: Chunk, buffer: Buffer) -> Rows:
            name = chunk.tensor.name
            read = checkpoint.read_codes if name in kept else checkpoint.read_rows
            rows = read(name, chunk.start, chunk.stop, buffer)
            if not _is_finite(rows):
                raise ModelError(
                    f"{stored[name].file}: {name} has values that are infinite or no numbers, in "
                    f"rows {chunk.start} to {chunk.stop - 1}; fetch it again"
                )
            return rows

        found = sorted(checkpoint_tensors(layout.shape, config.names), key=position)
        kept = {tensor.name for tensor in found if _keeps_codes(checkpoint, tensor, layout)}
        chunks = list(_chunks(found, layout))
        _pack(read_rows, chunks, config.name, layout, tensors, on_progress)
    if cache is not None and key:
        cache.write(key, packed, config.name, layout.weights.name)
    return ModelWeights(layout, tensors)


def _keeps_codes(checkpoint: Checkpoint, tensor: CheckpointTensor, layout: ModelLayout) -> bool:
    """Whether the checkpoint's codes are those of the matrices that the tensor becomes."""
    codes = checkpoint.tensors[tensor.name].codes
    if codes is None or any(part.role not in layout.matrices for part in tensor.parts):
        return False
    matrices = [layout.matrices[part.role] for part in tensor.parts]
    formats = {matrix.panels.format for matrix in matrices}
    same = {replace(codes, activations=each.activations) for each in formats}
    return formats == same and all(matrix.can_keep_codes for matrix in matrices)


def _is_finite(rows: Rows) -> bool:
    if not isinstance(rows, QuantizedRows):
        return is_finite(rows)
    return is_finite(rows.scales) and (rows.minima is None or is_finite(rows.minima))


def random_weights(
    config: ModelConfig, layout: ModelLayout, arena: Arena, seed: int = 0
) -> ModelWeights:
    """Fill `arena` with small random weights, the same for the same seed; norms are 1.

    Rows are cut out of one block of normal values, every chunk from another place of it.
    """
    chunks = list(_chunks(checkpoint_tensors(layout.shape, config.names), layout))
    size = max(chunk.num_values for chunk in chunks) + CHUNK_VALUES
    values = np.random.default_rng(seed).standard_normal(size, np.float32)
    values *= np.float32(RANDOM_SCALE)
    is_bf16 = layout.weights.dtype == "bfloat16"
    block: Array = bf16_from_float32(values) if is_bf16 else values

    def read_rows(chunk: Chunk, buffer: Buffer) -> Array:
        if chunk.tensor.is_norm:
            return np.full(chunk.stop - chunk.start, 1 - chunk.tensor.offset, np.float32)
        at = zlib.crc32(f"{chunk.tensor.name}[{chunk.start}]".encode()) % CHUNK_VALUES
        rows = block[at : at + chunk.num_values]
        return rows.reshape(chunk.stop - chunk.start, *chunk.tensor.shape[1:])

    tensors = _allocated(config, layout, arena)
    _pack(read_rows, chunks, config.name, layout, tensors, told_nobody)
    return ModelWeights(layout, tensors)


def _check_tensors(checkpoint: Checkpoint, shape: ModelShape, names: TensorNames) -> None:
    """ModelError if the checkpoint lacks tensors, has others, or has them in another shape."""
    stored = checkpoint.tensors
    expected = {tensor.name: tensor.shape for tensor in checkpoint_tensors(shape, names)}
    found = {
        name
        for name in stored
        if name in expected
        or not (is_redundant(name, shape, names) or _is_zero_bias(checkpoint, name))
    }
    common = [name for name in expected if name in stored]
    problems = {
        "missing": [name for name in expected if name not in stored],
        "not part of the model": sorted(found - expected.keys()),
        "of another shape than the configuration says": [
            f"{name} {list(stored[name].shape)} instead of {list(expected[name])}"
            for name in common
            if stored[name].shape != expected[name]
        ],
        f"of a type other than {', '.join(checkpoint.dtypes)}": [
            f"{name} {stored[name].dtype}"
            for name in common
            if stored[name].dtype not in checkpoint.dtypes
        ],
    }
    lines = [f"{_shorten(names)} {what}" for what, names in problems.items() if names]
    if lines:
        raise ModelError(
            f"{checkpoint.path}: the tensors do not fit the model's configuration: "
            f"{'; '.join(lines)}. Fetch it again, or correct the configuration"
        )


def _is_zero_bias(checkpoint: Checkpoint, name: str) -> bool:
    """Whether a tensor is a bias that adds nothing: some programs write one for every matrix."""
    tensor = checkpoint.tensors[name]
    if not name.endswith(".bias") or len(tensor.shape) != 1 or tensor.codes is not None:
        return False
    buffer = np.empty(tensor.num_values * MAX_VALUE_NBYTES, np.uint8)
    readable = tensor.dtype in checkpoint.dtypes
    return readable and not widen(checkpoint.read_rows(name, 0, tensor.shape[0], buffer)).any()


def _check_frequencies(checkpoint: Checkpoint, config: ModelConfig) -> None:
    """Warn if the checkpoint stores other rotation frequencies than config.json asks for.

    They are computed from config.json, as in transformers; a stored copy is rounded at most.
    """
    expected = inverse_frequencies(config.rope, config.head_dim)
    for name, tensor in checkpoint.tensors.items():
        if not name.endswith(STORED_FREQUENCIES) or tensor.dtype not in checkpoint.dtypes:
            continue
        if tensor.shape == expected.shape:
            buffer = np.empty(expected.nbytes, np.uint8)
            values = widen(checkpoint.read_rows(name, 0, len(expected), buffer))
            is_same = np.allclose(values, expected, rtol=FREQUENCY_ROUNDING, atol=0.0)
        else:
            is_same = False
        if not is_same:
            _log.warning(
                "%s: %s is not what config.json's rope settings give; config.json is used, as in "
                "transformers",
                tensor.file,
                name,
            )
            return


def _shorten(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more + (" is" if len(names) == 1 else " are")


def _allocated(config: ModelConfig, layout: ModelLayout, arena: Arena) -> dict[str, Array]:
    """The packed tensors, zeros but for the tables of rotations."""
    tensors = {
        name: arena.array(spec.shape, spec.dtype) for name, spec in layout.tensor_specs().items()
    }
    for index, rope in enumerate(config.ropes):
        fill_tables(rope, config.head_dim, *(tensors[name] for name in rotation(index)))
    return tensors


def _pack(
    read_rows: ReadRows,
    chunks: Sequence[Chunk],
    name: str,
    layout: ModelLayout,
    tensors: dict[str, Array],
    on_progress: OnProgress,
) -> None:
    packer = WeightPacker(layout, tensors)
    per_thread = threading.local()

    def pack_chunk(chunk: Chunk) -> int:
        if len(getattr(per_thread, "buffer", ())) < chunk.num_values * MAX_VALUE_NBYTES:
            per_thread.buffer = np.empty(chunk.num_values * MAX_VALUE_NBYTES, np.uint8)
        packer.pack(chunk.tensor, chunk.start, read_rows(chunk, per_thread.buffer))
        return chunk.num_values

    value_nbytes = layout.weights.bits / 8
    threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="pack-weights")
    try:
        total = sum(chunk.num_values for chunk in chunks) * value_nbytes
        with _bar(f"loading {name}", total, on_progress) as advance:
            for packed in as_completed([threads.submit(pack_chunk, chunk) for chunk in chunks]):
                advance(packed.result() * value_nbytes)
    finally:
        threads.shutdown(cancel_futures=True)


def _chunks(tensors: Iterable[CheckpointTensor], layout: ModelLayout) -> Iterator[Chunk]:
    """Whole panels of every matrix, about CHUNK_VALUES at once; vectors in one piece."""
    for tensor in tensors:
        num_rows = tensor.shape[0]
        panels = max(1, CHUNK_VALUES // (tensor.num_columns * layout.panel))
        step = panels * layout.panel if len(tensor.shape) == 2 else num_rows
        for start in range(0, num_rows, step):
            yield Chunk(tensor, start, min(start + step, num_rows))


@contextmanager
def _bar(what: str, total: float, on_progress: OnProgress) -> Iterator[Callable[[float], None]]:
    """A function that takes the bytes done since its last call. It tells `on_progress` the share,
    and shows a bar on standard error if that is a terminal.
    """
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    console, done = Console(stderr=True), 0.0
    is_hidden = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=is_hidden) as progress:
        bar = progress.add_task(what, total=total)

        def advance(nbytes: float) -> None:
            nonlocal done
            done += nbytes
            progress.update(bar, completed=done)
            on_progress(min(done / total, 1.0))

        yield advance
