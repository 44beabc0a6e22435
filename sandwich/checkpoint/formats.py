"""The formats of checkpoints, and which of them a path is in."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sandwich.checkpoint.gguf.source import GgufModel
from sandwich.checkpoint.huggingface import HuggingFaceFolder
from sandwich.checkpoint.onnx.source import OnnxModel
from sandwich.checkpoint.source import ModelSource
from sandwich.checkpoint.strangers import what_is
from sandwich.errors import ModelError

FORMATS: Final = (
    GgufModel,
    OnnxModel,
    HuggingFaceFolder,
)  # the first that recognises a path reads it


def open_source(path: Path) -> ModelSource:
    """The model at `path`, not read yet. ModelError if no format recognises it."""
    for source in FORMATS:
        if source.recognises(path):
            return source(path)
    raise ModelError(f"{path}: is {what_is(path) or 'not a model; give a GGUF file or a folder'}")
