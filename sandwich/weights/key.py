"""The key of packed weights: a digest of all that decides over their bytes.

Of the checkpoint's files these are names, sizes, times of change and samples of the contents: to
read all of them would take as long as packing.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from codegen.cache import generator_hash, source_hash
from codegen.layout.model import ModelLayout
from codegen.model.tables import rotation
from sandwich.checkpoint.source import Checkpoint
from sandwich.errors import ModelError
from sandwich.models.tensors import TensorNames

NUM_SAMPLES: Final = 64  # of each file, evenly spaced, the first and the last bytes among them
SAMPLE_NBYTES: Final = 4096


def packed_nbytes(layout: ModelLayout) -> int:
    """Bytes at the front of an arena whose contents come from the checkpoint: all but the tables of
    rotations, which depend on the longest sequence and are computed.
    """
    (first,) = (each for each in layout.placed_tensors() if each.name == rotation(0)[0])
    return first.offset


def weights_key(checkpoint: Checkpoint, layout: ModelLayout, names: TensorNames) -> str:
    """The key of what the checkpoint's tensors become in `layout`, but for the tables of rotations.
    Raises ModelError if a file cannot be read.
    """
    here = Path(__file__).parent.parent
    parts = (
        repr(layout.of_shape(replace(layout.shape, max_model_len=1))),
        repr(names),
        repr(sorted(checkpoint.tensors.items())),
        generator_hash(),
        source_hash(*(here / name for name in _ROOMS)),
        np.__version__,
        *(_of_file(file) for file in sorted(checkpoint.files)),
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


_ROOMS: Final = ("checkpoint", "models", "weights")  # that have a part in packing


def _of_file(file: Path) -> str:
    """What stands for the contents of a file."""
    digest = hashlib.sha256()
    try:
        status = file.stat()
        with file.open("rb", buffering=0) as stream:
            for sample in range(NUM_SAMPLES):
                last = max(0, status.st_size - SAMPLE_NBYTES)
                stream.seek(last * sample // (NUM_SAMPLES - 1))
                digest.update(stream.read(SAMPLE_NBYTES))
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror})") from error
    return f"{file.name} {status.st_size} {status.st_mtime_ns} {digest.hexdigest()}"
