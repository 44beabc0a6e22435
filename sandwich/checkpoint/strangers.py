"""What a path holds that is no checkpoint Sandwich reads, and what to do about it.

For refusals: an adapter, a pointer of Git LFS, weights in PyTorch's own format.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

from sandwich.errors import ModelError

LFS_POINTER: Final = b"version https://git-lfs.github.com/spec/"

_RESAVE: Final = (
    "write them anew with transformers: "
    "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)"
)
# Endings of weight files -> what they are and what to do.
_WEIGHTS: Final = (
    (("*.bin", "*.pt", "*.pth"), f"weights in PyTorch's own format, which can run code; {_RESAVE}"),
    (("*.h5", "*.msgpack"), f"weights of TensorFlow or Flax; {_RESAVE}"),
    (("*.npz",), "weights of MLX; give the model they were converted from"),
)


def is_lfs_pointer(file: Path) -> bool:
    """Whether Git has left a pointer where the file should be."""
    return _begins(file, LFS_POINTER)


def what_is(path: Path) -> str | None:
    """What stands at `path` instead of a model, with a remedy; None if that cannot be told."""
    if path.is_file():
        if is_lfs_pointer(path):
            return pointer_remedy()
        known = "no GGUF file and no ONNX graph"
        return f"a file, but {known}; give one, or the folder that holds a config.json"
    tests: tuple[Callable[[Path], str | None], ...] = (_adapter, _pointers, _other_weights)
    return next((found for test in tests if (found := test(path)) is not None), None)


def unreadable(file: Path, problem: str) -> ModelError:
    """The error for a file that is not what its name says."""
    if is_lfs_pointer(file):
        return ModelError(f"{file}: {pointer_remedy()}")
    return ModelError(f"{file}: {problem}; fetch it again")


def pointer_remedy() -> str:
    return "a pointer of Git LFS, not the file itself; run `git lfs pull` in its folder"


def _adapter(folder: Path) -> str | None:
    file = folder / "adapter_config.json"
    if not file.is_file():
        return None
    try:
        base = json.loads(file.read_text("utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        base = None
    of_base = f" of {base}" if base else ""
    return (
        f"an adapter (LoRA, PEFT){of_base}, not a whole model; merge it with peft: "
        "AutoPeftModelForCausalLM.from_pretrained(folder).merge_and_unload()"
        ".save_pretrained(new_folder)"
    )


def _pointers(folder: Path) -> str | None:
    files = sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.json"))
    pointer = next((file.name for file in files if is_lfs_pointer(file)), None)
    return None if pointer is None else f"{pointer}: {pointer_remedy()}"


def _other_weights(folder: Path) -> str | None:
    for patterns, what in _WEIGHTS:
        files = sorted(file.name for pattern in patterns for file in folder.glob(pattern))
        if files:
            return f"{files[0]}: {what}"
    return None


def _begins(file: Path, start: bytes) -> bool:
    try:
        with file.open("rb") as stream:
            return stream.read(len(start)) == start
    except OSError:
        return False
