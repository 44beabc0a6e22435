"""Models in several files: `NAME-00001-of-00003.gguf` and so on, as `llama-gguf-split` names them.

Only names made from the given file's own are opened.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from sandwich.checkpoint.gguf.header import Header, read_header
from sandwich.checkpoint.source import StoredTensor
from sandwich.errors import ModelError

MAX_FILES: Final = 1000
_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


def first_file(path: Path) -> Path:
    """The file with the metadata: `path` itself, the first of its split, or the one in a folder.

    Raises ModelError for a folder with several models.
    """
    if not path.is_dir():
        match = _NAME.fullmatch(path.name)
        return path if match is None else _file(path, match[1], 1, int(match[3]))
    files = sorted(path.glob("*.gguf"))
    firsts = [f for f in files if (m := _NAME.fullmatch(f.name)) is None or int(m[2]) == 1]
    if len(firsts) == 1:
        return firsts[0]
    names = ", ".join(file.name for file in (firsts or files)[:5])
    raise ModelError(f"{path}: holds {len(firsts)} models ({names}); name one file")


def read_headers(first: Path) -> Header:
    """The metadata of the first file, with the tensors of all.

    Raises ModelError if a file is missing, damaged, or belongs to another model.
    """
    header = read_header(first)
    count = header.metadata.get("split.count", 1)
    if count in (0, 1):
        return header
    match = _NAME.fullmatch(first.name)
    if match is None or int(match[3]) != count or not 1 < count <= MAX_FILES:
        raise ModelError(
            f"{first}: is one of {count} files, but is not named NAME-00001-of-0000N.gguf; "
            "give the files their names back"
        )
    tensors: dict[str, StoredTensor] = {}
    for number in range(count):
        part = read_header(_file(first, match[1], number + 1, count)) if number else header
        if part.metadata.get("split.no") != number:
            raise ModelError(
                f"{part.file}: says that it is number {part.metadata.get('split.no')} of its "
                f"files, counted from 0, and not {number}; fetch it again"
            )
        if both := tensors.keys() & part.tensors.keys():
            raise ModelError(f"{part.file}: holds {min(both)}, which another file holds too")
        tensors |= part.tensors
    total = header.metadata.get("split.tensors.count", len(tensors))
    if total != len(tensors):
        raise ModelError(
            f"{first}: the model has {total} tensors, but its files hold {len(tensors)}; "
            "fetch them again"
        )
    return Header(first, header.metadata, tensors)


def _file(beside: Path, stem: str, number: int, count: int) -> Path:
    return beside.with_name(f"{stem}-{number:05}-of-{count:05}.gguf")
