"""The disk cache: keys of all that shapes the code, damage noticed, many users at once."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest

from codegen import cache as cache_module
from codegen.cache import ProgramCache, generator_hash
from codegen.compile import load, lower, object_code, tensor
from codegen.functions import ir_module
from codegen.kit import T
from codegen.spec import GemmTile, Phase, WeightFormat
from platforms.isa import ISA_TABLE, isa_row
from platforms.memory import Arena
from tests.codegen.conftest import make_limits, make_shape, make_spec

CODE = bytes(range(256)) * 40
OTHER_CODE = b"compiled again"
SPEC = make_spec("generic", "float32")
GENERIC = isa_row("generic")
CHANGED_SPEC: dict[str, Any] = {
    "phase": Phase.DECODE,
    "shape": make_shape(num_layers=3),
    "isa": "avx2",
    "dtype": "bfloat16",
    "kv_dtype": "bfloat16",
    "panel": 2 * SPEC.panel,
    "limits": make_limits(max_num_seqs=9),
    "groups": ((2,),),
    "tiles": tuple((role, ((1, GemmTile(mr=2, prefetch_bytes=64)),)) for role, _ in SPEC.tiles),
    "query_tile": 5,
    "has_timers": True,
    "weights": WeightFormat("int8"),
    "lm_head": WeightFormat("int4", "int8", 32),
}
CHANGED_ISA: dict[str, Any] = {
    "name": "new",
    "arch": "aarch64",
    "lanes": 8,
    "num_vector_registers": 32,
    "has_bf16_dot": True,
    "has_u8_dot": True,
    "has_s8_dot": True,
    "has_short_sums": True,
    "has_amx": True,
    "fma_instructions": 1,
    "int8_instructions": 3,
    "extends": isa_row("avx2"),
    "mcpu": "generic-rv64",
    "mattr": ("+fast",),
}


@pytest.fixture
def cache(tmp_path: Path) -> ProgramCache:
    return ProgramCache(tmp_path / "programs")


def must_not_build() -> bytes:
    raise AssertionError("it is in the cache")


def file_of(cache: ProgramCache, key: str) -> Path:
    return cache.folder / f"{key}.o"


def test_the_same_program_has_the_same_key() -> None:
    again = replace(SPEC, shape=replace(SPEC.shape))
    assert ProgramCache.key(again, GENERIC) == ProgramCache.key(SPEC, GENERIC)


@pytest.mark.parametrize("name", [field.name for field in fields(SPEC)])
def test_every_part_of_a_spec_changes_the_key(name: str) -> None:
    changed = replace(SPEC, **{name: CHANGED_SPEC[name]})
    assert ProgramCache.key(changed, GENERIC) != ProgramCache.key(SPEC, GENERIC)


@pytest.mark.parametrize("name", [f.name for f in fields(GENERIC) if f.name != "required_flags"])
def test_every_part_of_an_isa_that_kernels_read_changes_the_key(name: str) -> None:
    changed = replace(GENERIC, **{name: CHANGED_ISA[name]})
    assert ProgramCache.key(SPEC, changed) != ProgramCache.key(SPEC, GENERIC)


def test_every_isa_has_a_key_of_its_own() -> None:
    assert len({ProgramCache.key(SPEC, row) for row in ISA_TABLE}) == len(ISA_TABLE)


def test_the_version_of_tvm_changes_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = ProgramCache.key(SPEC, GENERIC)
    monkeypatch.setattr(cache_module, "TVM_VERSION", "0.99")
    assert ProgramCache.key(SPEC, GENERIC) != before


def test_every_source_file_of_the_generator_changes_the_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    below = tmp_path / "intrinsics"
    below.mkdir()
    for path in (tmp_path / "cache.py", tmp_path / "gemm.py", below / "base.py"):
        path.write_text("x = 1\n")
    monkeypatch.setattr(cache_module, "__file__", str(tmp_path / "cache.py"))
    hashes = [generator_hash.__wrapped__()]
    for path in (tmp_path / "gemm.py", below / "base.py"):
        path.write_text("x = 2\n")
        hashes.append(generator_hash.__wrapped__())
    (tmp_path / "notes.txt").write_text("no source")
    assert generator_hash.__wrapped__() == hashes[-1]
    assert len(set(hashes)) == 3
    keys = set()
    for value in hashes:
        monkeypatch.setattr(cache_module, "generator_hash", lambda value=value: value)
        keys.add(ProgramCache.key(SPEC, GENERIC))
    assert len(keys) == 3


def test_a_program_is_built_once(cache: ProgramCache, caplog: pytest.LogCaptureFixture) -> None:
    assert cache.get("a", lambda: CODE) == CODE
    assert cache.get("a", must_not_build) == CODE
    assert ProgramCache(cache.folder).get("a", must_not_build) == CODE
    assert cache.get("b", lambda: OTHER_CODE) == OTHER_CODE
    assert caplog.records == []


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "a-part-of-the-digest": lambda content: content[:9],
    "the-digest-alone": lambda content: content[:32],
    "without-its-last-byte": lambda content: content[:-1],
    "with-a-byte-more": lambda content: content + b"\0",
    "a-bit-of-the-digest": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "a-bit-of-the-code": lambda content: content[:-9] + bytes([content[-9] ^ 64]) + content[-8:],
    "zeros": lambda content: bytes(len(content)),
    "the-code-alone": lambda content: content[32:],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_built_again_with_a_warning(
    cache: ProgramCache, caplog: pytest.LogCaptureFixture, damage: Callable[[bytes], bytes]
) -> None:
    cache.get("a", lambda: CODE)
    file = file_of(cache, "a")
    file.write_bytes(damage(file.read_bytes()))
    assert cache.get("a", lambda: OTHER_CODE) == OTHER_CODE
    (warning,) = caplog.records
    assert warning.levelno == logging.WARNING
    assert f"{file} is damaged" in warning.getMessage()
    assert cache.get("a", must_not_build) == OTHER_CODE


def test_a_folder_that_cannot_be_made_costs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    cache = ProgramCache(tmp_path / "file" / "programs")
    assert [cache.get("a", lambda: CODE) for _ in range(2)] == [CODE, CODE]
    assert "cannot be kept in" in caplog.records[0].getMessage()


def test_a_build_that_fails_leaves_nothing_behind(cache: ProgramCache) -> None:
    def fail() -> bytes:
        raise MemoryError("no room to compile")

    with pytest.raises(MemoryError, match="no room"):
        cache.get("a", fail)
    assert not cache.folder.exists()
    assert cache.get("a", lambda: CODE) == CODE


def test_a_write_that_fails_leaves_nothing_behind(
    cache: ProgramCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    assert cache.get("a", lambda: CODE) == CODE
    assert "No space left" in caplog.text
    assert list(cache.folder.iterdir()) == []


def test_threads_that_want_one_program_all_get_it(cache: ProgramCache) -> None:
    num_threads = 8
    together = Barrier(num_threads)

    def build() -> bytes:
        together.wait()  # all have found it missing
        return CODE

    with ThreadPoolExecutor(num_threads) as pool:
        codes = list(pool.map(lambda _: cache.get("a", build), range(num_threads)))
    assert codes == [CODE] * num_threads
    assert list(cache.folder.iterdir()) == [file_of(cache, "a")]
    assert cache.get("a", must_not_build) == CODE


def test_processes_that_want_one_program_all_get_it(cache: ProgramCache) -> None:
    context = multiprocessing.get_context("fork")
    together, results = context.Barrier(3), context.SimpleQueue()

    def build() -> bytes:
        together.wait()
        return CODE

    processes = [
        context.Process(target=lambda: results.put(cache.get("a", build))) for _ in range(3)
    ]
    for process in processes:
        process.start()
    assert [results.get() for _ in processes] == [CODE] * 3
    for process in processes:
        process.join()
    assert list(cache.folder.iterdir()) == [file_of(cache, "a")]
    assert cache.get("a", must_not_build) == CODE


def test_a_cached_program_computes_what_the_fresh_one_did(cache: ProgramCache) -> None:
    def build() -> None:
        a = T.match_buffer(T.arg("a", T.handle()), [16], "float32")
        with T.serial(0, 16) as i:
            T.buffer_store(a, a[i] * T.float32(2), [i])

    def compile_it() -> bytes:
        return object_code(lower(ir_module("twice", build), GENERIC))

    array = Arena(64, "a").array((16,), np.float32)
    array[:] = np.arange(16)
    for expected, source in ((2, compile_it), (4, must_not_build)):
        load(cache.get("twice", source), "twice")(tensor(array))
        assert array.tolist() == [expected * i for i in range(16)]
