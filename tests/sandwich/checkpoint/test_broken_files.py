"""Files that are cut, changed or made up: an error that names the file, and nothing else."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandwich.checkpoint.formats import open_source
from sandwich.checkpoint.gguf.header import MAX_METADATA_NBYTES, read_header
from sandwich.checkpoint.gguf.source import GgufModel
from sandwich.checkpoint.safetensors import SafetensorsCheckpoint
from sandwich.checkpoint.source import Checkpoint
from sandwich.errors import ModelError
from sandwich.models.config import ModelConfig
from tests.sandwich.checkpoint.conftest import llama_metadata, random_tensors, write_gguf

U32, U64 = struct.Struct("<I"), struct.Struct("<Q")
UINT32, STRING, ARRAY = 4, 8, 9
CASES = settings(max_examples=700)


def text(value: str) -> bytes:
    return U64.pack(len(value.encode())) + value.encode()


def header_bytes(
    values: bytes = b"", num_values: int = 0, tensors: bytes = b"", num_tensors: int = 0
) -> bytes:
    return b"GGUF" + U32.pack(3) + U64.pack(num_tensors) + U64.pack(num_values) + values + tensors


def tensor(name: str, dims: tuple[int, ...], dtype: int = 0, offset: int = 0) -> bytes:
    shape = b"".join(map(U64.pack, dims))
    return text(name) + U32.pack(len(dims)) + shape + U32.pack(dtype) + U64.pack(offset)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, vocab_size: int) -> bytes:
    """A sound GGUF file."""
    folder = tmp_path_factory.mktemp("whole")
    return write_gguf(folder / "m.gguf", llama_metadata(), random_tensors(vocab_size)).read_bytes()


@pytest.fixture(scope="module")
def header_size(tmp_path_factory: pytest.TempPathFactory, whole: bytes) -> int:
    """Bytes in front of the first tensor."""
    file = tmp_path_factory.mktemp("header") / "m.gguf"
    file.write_bytes(whole)
    return min(stored.offset for stored in read_header(file).tensors.values())


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


def read_all(checkpoint: Checkpoint) -> None:
    """The first and the last row of every tensor that can be read."""
    with checkpoint:
        for name, stored in checkpoint.tensors.items():
            if stored.dtype in checkpoint.dtypes and 0 not in stored.shape and stored.shape:
                for start in (0, stored.shape[0] - 1):
                    num_values = int(np.prod(stored.shape[1:]))
                    rows = checkpoint.read_rows(
                        name, start, start + 1, np.empty(4 * num_values, np.uint8)
                    )
                    assert rows.shape == (1, *stored.shape[1:])


def read_model(path: Path) -> None:
    """All that is read of a model before it is packed."""
    source = open_source(path)
    ModelConfig.from_source(source)
    source.tokenizer()
    read_all(source.checkpoint())


def fails_well(read: Callable[[Path], Any], path: Path) -> None:
    """Either it is read, or there is an error that names the file, in a few words."""
    said = f"{path}: "
    try:
        read(path)
    except ModelError as error:
        said = str(error)
    assert path.name in said
    assert len(said) < 2000


# ---- GGUF ----


@CASES
@given(data=st.data())
def test_a_gguf_file_with_changed_bytes_is_read_or_refused(
    scratch: Path, whole: bytes, header_size: int, data: st.DataObject
) -> None:
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, header_size - 1))
        piece = data.draw(st.binary(min_size=1, max_size=9))
        changed[at : at + len(piece)] = piece
    file = scratch / "m.gguf"
    file.write_bytes(changed)
    fails_well(read_model, file)


@CASES
@given(content=st.binary(max_size=200), num_values=st.integers(0, 5), num_tensors=st.integers(0, 5))
def test_a_made_up_gguf_header_is_read_or_refused(
    scratch: Path, content: bytes, num_values: int, num_tensors: int
) -> None:
    file = scratch / "m.gguf"
    file.write_bytes(header_bytes(content, num_values, b"", num_tensors))
    fails_well(read_header, file)


@settings(max_examples=300)
@given(data=st.data())
def test_a_gguf_file_that_is_cut_is_refused(
    scratch: Path, whole: bytes, data: st.DataObject
) -> None:
    file = scratch / "cut.gguf"
    file.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(ModelError, match=r"cut\.gguf: (its header is|is cut short|is not a GGUF)"):
        read_model(file)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "its header is damaged or cut short"),
        (b"GGML" + bytes(40), "is not a GGUF file"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version 50331648; supported: little-endian"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "is GGUF of version 1"),
        (header_bytes(num_values=1 << 60), "damaged or cut short"),
        (header_bytes(num_tensors=1 << 60), "damaged or cut short"),
        (header_bytes(U64.pack(1 << 62), 1), "damaged or cut short"),
        (header_bytes(text("a") + U32.pack(77), 1), "a value has the type 77"),
        (header_bytes(text("a") + U32.pack(ARRAY) + U32.pack(ARRAY) + U64.pack(0), 1), "type 9"),
        (
            header_bytes(text("a") + U32.pack(ARRAY) + U32.pack(STRING) + U64.pack(1 << 40), 1),
            "damaged or cut short",
        ),
        (
            header_bytes((text("a") + U32.pack(UINT32) + U32.pack(1)) * 2, 2),
            "key 'a' stands twice",
        ),
        (header_bytes(U64.pack(1) + b"\xff" + U32.pack(UINT32) + U32.pack(1), 1), "not UTF-8"),
        (
            header_bytes(text("general.alignment") + U32.pack(UINT32) + U32.pack(3), 1),
            "general.alignment is 3, not a power of two",
        ),
        (header_bytes(tensors=tensor("t", ()), num_tensors=1), "'t' has 0 dimensions"),
        (header_bytes(tensors=tensor("t", (1,) * 5), num_tensors=1), "'t' has 5 dimensions"),
        (header_bytes(tensors=tensor("t", (0, 4)), num_tensors=1), r"has the shape \[0, 4\]"),
        (header_bytes(tensors=tensor("t", (1 << 40,) * 2), num_tensors=1), "has the shape"),
        (header_bytes(tensors=tensor("t", (4,), 4242), num_tensors=1), "of type 4242"),
        (header_bytes(tensors=tensor("t", (33,), 2), num_tensors=1), "Q4_0 are blocks of 32"),
        (header_bytes(tensors=tensor("t", (4,)), num_tensors=1), "is cut short: tensor t ends"),
        (header_bytes(tensors=tensor("t", (4,), 0, 1 << 63), num_tensors=1), "is cut short"),
        (header_bytes(tensors=tensor("t", (4,)) * 2, num_tensors=2) + bytes(99), "stands twice"),
    ],
)
def test_a_gguf_header_that_is_wrong_says_why(tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=reason):
        read_header(file)


def test_metadata_have_a_limit(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(header_bytes(text("a") + U32.pack(STRING) + U64.pack(MAX_METADATA_NBYTES), 1))
    with file.open("r+b") as stream:
        stream.truncate(2 * MAX_METADATA_NBYTES)  # a hole, which takes no space
    with pytest.raises(ModelError, match="its metadata exceed 256 MiB"):
        read_header(file)


@pytest.mark.parametrize("name", ["../m-00001-of-00002.gguf", "m-00001-of-00002.gguf"])
def test_files_of_a_split_model_are_looked_for_beside_it(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    two = text("split.count") + U32.pack(UINT32) + U32.pack(2)
    number = text("split.no") + U32.pack(UINT32) + U32.pack(0)
    (folder / name).write_bytes(header_bytes(two + number, 2))
    with pytest.raises(ModelError, match=r"m-00002-of-00002\.gguf: cannot be read"):
        GgufModel(folder / name).config()


# ---- safetensors ----


def write_safetensors(file: Path, header: Any, data: bytes) -> Path:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(U64.pack(len(content)) + content + data)
    return file.parent


ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I64", "F8_E4M3", "F33", 3, None]),
        "shape": st.lists(st.integers(-1, 9) | st.just(1 << 62), max_size=3) | st.none(),
        "data_offsets": st.lists(st.integers(-1, 80) | st.just(1 << 63), min_size=1, max_size=3),
    }
)


@CASES
@given(
    header=st.dictionaries(st.text(max_size=3), ENTRIES, max_size=3), data=st.binary(max_size=80)
)
def test_a_made_up_safetensors_header_is_read_or_refused(
    scratch: Path, header: Any, data: bytes
) -> None:
    folder = write_safetensors(scratch / "model.safetensors", header, data)
    fails_well(lambda path: read_all(SafetensorsCheckpoint(folder)), folder / "model.safetensors")


@CASES
@given(data=st.data())
def test_a_safetensors_file_with_changed_bytes_is_read_or_refused(
    scratch: Path, data: st.DataObject
) -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]},
        "b": {"dtype": "BF16", "shape": [5], "data_offsets": [48, 58]},
    }
    file = scratch / "model.safetensors"
    write_safetensors(file, header, bytes(58))
    changed = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(changed) - 59))
        piece = data.draw(st.binary(min_size=1, max_size=6))
        changed[at : at + len(piece)] = piece
    file.write_bytes(changed[: data.draw(st.integers(0, len(changed)) | st.just(len(changed)))])
    fails_well(lambda path: read_all(SafetensorsCheckpoint(path.parent)), file)
