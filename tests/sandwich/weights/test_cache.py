"""Packed weights on disk: what is read is what was written, and no failure stops a start."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codegen.layout.model import ModelLayout
from codegen.spec import WeightFormat
from platforms.memory import Arena
from sandwich.checkpoint.safetensors import SafetensorsCheckpoint
from sandwich.models.config import ModelConfig
from sandwich.weights import cache as cache_module
from sandwich.weights import load as load_module
from sandwich.weights.cache import WeightCache
from sandwich.weights.key import packed_nbytes, weights_key
from sandwich.weights.load import ModelWeights, load_weights
from tests.sandwich.weights.test_load import (
    make_config,
    make_layout,
    make_tensors,
    write_checkpoint,
)

LIMIT = 64 << 20
KEY = "ab" * 32


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models are cached too, in several pieces each."""
    monkeypatch.setattr(load_module, "CACHED_FROM_NBYTES", 0)
    monkeypatch.setattr(cache_module, "_PIECE_NBYTES", 4096)


@pytest.fixture
def cache(tmp_path: Path) -> WeightCache:
    return WeightCache(tmp_path / "cache", LIMIT)


@pytest.fixture
def config() -> ModelConfig:
    return make_config()


@pytest.fixture
def folder(tmp_path: Path, config: ModelConfig) -> Path:
    return write_checkpoint(tmp_path / "m", make_tensors(config))


def load(
    folder: Path, config: ModelConfig, cache: WeightCache | None, **how: Any
) -> tuple[ModelWeights, list[str]]:
    """The weights, and how they came."""
    heard: list[float] = []
    was_read = False
    layout = make_layout(config, **how)
    arena = Arena(layout.weight_bytes, "weights")
    checkpoint = SafetensorsCheckpoint(folder)
    with pytest.MonkeyPatch.context() as patch:
        read = SafetensorsCheckpoint.read_rows

        def watched(*args: Any) -> Any:
            nonlocal was_read
            was_read = True
            return read(*args)

        patch.setattr(SafetensorsCheckpoint, "read_rows", watched)
        weights = load_weights(checkpoint, config, layout, arena, heard.append, cache)
    assert heard[-1] == 1.0
    return weights, ["loading" if was_read else "reading packed"]


def assert_equal(one: ModelWeights, other: ModelWeights) -> None:
    assert one.tensors.keys() == other.tensors.keys()
    for name, array in one.tensors.items():
        np.testing.assert_array_equal(array, other.tensors[name])


def keep(cache: WeightCache, key: str = KEY, nbytes: int = 10_000, model: str = "m") -> np.ndarray:
    data = np.random.default_rng(len(key) + nbytes).integers(0, 255, nbytes).astype(np.uint8)
    cache.write(key, data, model, "bfloat16")
    return data


def read(cache: WeightCache, key: str = KEY, nbytes: int = 10_000) -> np.ndarray | None:
    into = np.zeros(nbytes, np.uint8)
    if cache.read(key, into, lambda _: None):
        return into
    assert not into.any()
    return None


# ---- loading ----


@pytest.mark.parametrize(
    "weights", [None, WeightFormat("int4", group=32, scale_dtype="float16", has_minima=True)]
)
def test_the_second_load_reads_what_the_first_packed(
    folder: Path, config: ModelConfig, cache: WeightCache, weights: WeightFormat | None
) -> None:
    first, stages = load(folder, config, cache, weights=weights)
    assert stages == ["loading"]
    second, stages = load(folder, config, cache, weights=weights)
    assert stages == ["reading packed"]
    assert_equal(first, second)
    [entry] = cache.entries()
    assert (entry.model, entry.weights) == ("made-up", first.layout.weights.name)


def test_models_that_are_packed_in_no_time_are_not_kept(
    folder: Path, config: ModelConfig, cache: WeightCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_module, "CACHED_FROM_NBYTES", 1 << 20)
    load(folder, config, cache)
    assert cache.entries() == []


def test_a_file_that_changed_is_packed_again(
    folder: Path, config: ModelConfig, cache: WeightCache
) -> None:
    load(folder, config, cache)
    file = folder / "model.safetensors"
    status, content = file.stat(), bytearray(file.read_bytes())
    content[-4:] = np.float32(7).tobytes()  # the last weight, and nothing else to see from outside
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    again, stages = load(folder, config, cache)
    assert stages == ["loading"]
    assert_equal(again, load(folder, config, None)[0])


def key_of(folder: Path, layout: ModelLayout, config: ModelConfig) -> str:
    return weights_key(SafetensorsCheckpoint(folder), layout, config.names)


def test_a_key_is_of_all_that_decides_over_the_bytes(folder: Path, config: ModelConfig) -> None:
    layout = make_layout(config)
    key = key_of(folder, layout, config)
    longer = layout.of_shape(replace(layout.shape, max_model_len=99))
    assert key_of(folder, longer, config) == key
    assert packed_nbytes(longer) == packed_nbytes(layout) < layout.weight_bytes
    int8 = WeightFormat("int8", group=32, scale_dtype="float16")
    others = [
        key_of(folder, make_layout(config, "bfloat16"), config),
        key_of(folder, make_layout(config, weights=int8), config),
        key_of(folder, make_layout(config, lm_head=int8), config),
        key_of(folder, replace(layout, panel=32), config),
        key_of(folder, layout, replace(config, names=replace(config.names, norm_offset=1.0))),
    ]
    os.utime(folder / "model.safetensors", (1, 1))
    others.append(key_of(folder, layout, config))
    assert len({key, *others}) == len(others) + 1


# ---- damage ----


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[:-1], "is cut short"),
        (lambda raw: raw[:100], "has no sound header"),
        (lambda raw: b"", "has no sound header"),
        (lambda raw: raw[:30] + b"x" + raw[31:], "has no sound header"),
        (lambda raw: raw[:-5000] + bytes([raw[-5000] ^ 1]) + raw[-4999:], "is damaged at byte"),
        (lambda raw: raw[: 1 << 20] + bytes(len(raw) - (1 << 20)), "is damaged at byte"),
    ],
)
def test_a_damaged_file_is_packed_again_and_replaced(
    folder: Path,
    config: ModelConfig,
    cache: WeightCache,
    caplog: pytest.LogCaptureFixture,
    damage: Any,
    message: str,
) -> None:
    first, _ = load(folder, config, cache)
    path = cache.entries()[0].path
    path.write_bytes(damage(path.read_bytes()))
    second, stages = load(folder, config, cache)
    assert stages[-1] == "loading"
    assert message in caplog.text
    assert_equal(first, second)
    assert load(folder, config, cache)[1] == ["reading packed"]


def test_another_models_file_under_the_name_is_refused(
    cache: WeightCache, caplog: pytest.LogCaptureFixture
) -> None:
    keep(cache)
    cache.entries()[0].path.rename(cache.folder / f"{'cd' * 32}.packed")
    assert read(cache, "cd" * 32) is None
    assert "is of other weights" in caplog.text


# ---- disks ----


@pytest.mark.parametrize("refused", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_costs_a_warning(
    folder: Path,
    config: ModelConfig,
    cache: WeightCache,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    refused: int,
) -> None:
    def fallocate(*_: int) -> None:
        raise OSError(refused, os.strerror(refused))

    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    load(folder, config, cache)
    assert f"cannot be kept in {cache.folder}: {os.strerror(refused)}" in caplog.text
    assert list(cache.folder.iterdir()) == []


def test_the_disk_is_never_filled(
    cache: WeightCache, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(cache.folder.parent.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 30))
    keep(cache)
    assert "less than 1 GiB to spare" in caplog.text
    assert cache.entries() == []


def test_a_folder_that_cannot_be_made_costs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    cache = WeightCache(tmp_path / "file", LIMIT)
    keep(cache)
    assert read(cache) is None
    assert "cannot be kept" in caplog.text


def test_the_least_recently_used_go_first(cache: WeightCache) -> None:
    cache.limit_nbytes = 4 * (1 << 20) + 40_000  # room for four
    for index in range(4):
        keep(cache, f"{index:02}" * 32, model=f"m{index}")
        os.utime(cache.folder / f"{index:02}{f'{index:02}' * 31}.packed", (index, index))
    assert read(cache, "00" * 32) is not None  # so it is the latest
    keep(cache, "44" * 32, model="m4")
    assert {entry.model for entry in cache.entries()} == {"m0", "m2", "m3", "m4"}
    keep(cache, "55" * 32, nbytes=8 << 20)  # more than the limit
    assert len(cache.entries()) == 4


def test_a_limit_of_nothing_keeps_and_finds_nothing(
    cache: WeightCache, caplog: pytest.LogCaptureFixture
) -> None:
    keep(cache)
    off = WeightCache(cache.folder.parent, 0)
    assert read(off) is None
    keep(off, "cd" * 32)
    assert [entry.key for entry in cache.entries()] == [KEY]
    assert caplog.text == ""


# ---- two at once ----


def test_who_finds_another_at_work_leaves_it_to_him(
    cache: WeightCache, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    cache.folder.mkdir(parents=True)
    partial = cache.folder / f"{KEY}.partial"
    with partial.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        keep(cache)
        assert cache.entries() == []
        assert partial.exists()
        assert caplog.text == ""
    data = keep(cache)  # he has died; what he has left is taken over
    np.testing.assert_array_equal(read(cache), data)
    assert not partial.exists()


def test_what_the_dead_have_left_is_removed(cache: WeightCache) -> None:
    cache.folder.mkdir(parents=True)
    (cache.folder / f"{'cd' * 32}.partial").write_bytes(b"x" * 100)
    keep(cache)
    assert [path.suffix for path in cache.folder.iterdir()] == [".packed"]


def test_a_file_that_is_removed_can_be_read_to_the_end(cache: WeightCache) -> None:
    data = keep(cache)
    into = np.zeros_like(data)

    def remove(_: int) -> None:
        for entry in cache.entries():
            entry.remove()

    assert cache.read(KEY, into, remove)
    np.testing.assert_array_equal(into, data)
    assert read(cache) is None
