"""Compiling and loading: what object files need, what the hot loops are made of, shared memory."""

from __future__ import annotations

import errno
import os
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import codegen.compile
from codegen.compile import load, lower, object_code, pin_pool, tensor
from codegen.functions import ir_module
from codegen.kit import T
from codegen.spec import GemmTile
from codegen.step.epilogues import store
from codegen.step.program import linear, phase_program, run, step_program
from codegen.step.step import Step
from platforms.isa import isa_row
from platforms.memory import Arena
from tests.codegen.conftest import (
    BEST,
    GIVEN_SYMBOLS,
    ISAS,
    make_spec,
    panel_of,
    undefined_symbols,
)

# The instruction of a multiply-add by ISA and type of the weights.
MULTIPLY = {
    ("avx2", "float32"): r"vfmadd\w+\s.*%ymm",
    ("avx2", "bfloat16"): r"vfmadd\w+\s.*%ymm",
    ("avx512", "float32"): r"vfmadd\w+\s.*%zmm",
    ("avx512", "bfloat16"): r"vfmadd\w+\s.*%zmm",
    ("avx512_bf16", "bfloat16"): r"vdpbf16ps\s.*%zmm",
    ("neon", "float32"): r"fmla\s+v\d+\.4s",
    ("neon", "bfloat16"): r"fmla\s+v\d+\.4s",
}
TILE = GemmTile(mr=6, k_unroll=2)
K = 256


def constant_func(value: float) -> object:
    def build() -> None:
        buffer = T.match_buffer(T.arg("a", T.handle()), [16], "float32")
        with T.serial(0, 16) as i:
            T.buffer_store(buffer, T.float32(value), [i])

    return ir_module("fill", build)


def code_of(value: float) -> bytes:
    return object_code(lower(constant_func(value), isa_row("generic")))


def loops(assembly: str) -> list[str]:
    """Blocks that a branch at their end repeats."""
    blocks = re.split(r"^(\.LBB\w+):", assembly, flags=re.MULTILINE)
    bodies = zip(blocks[1::2], blocks[2::2], strict=True)
    jump = r"^\s+(?:j\w+|b\.\w+|cbn?z\s+\w+,|tbn?z\s+\w+,\s*#\d+,)\s+"
    return [
        body[: match.end()]
        for label, body in bodies
        if (match := re.search(jump + re.escape(label) + r"\b", body, flags=re.MULTILINE))
    ]


@pytest.mark.parametrize(("isa", "dtype"), MULTIPLY, ids=map("-".join, MULTIPLY))
def test_the_hot_loop_multiplies_in_registers_and_calls_nobody(isa: str, dtype: str) -> None:
    panel, lanes = panel_of(isa), isa_row(isa).lanes
    spec = make_spec(isa, dtype, tile=TILE, vocab_size=panel, hidden_size=K)

    def body(step: Step) -> None:
        gemm = linear(step, "lm_head", "final", store(step, "lm_head", "logits"))
        run(step, "lm_head", lambda core: gemm.emit(core, step.spec.cut, step.num_logits))

    assembly = lower(step_program(spec, body), isa_row(isa)).inspect_source("asm")
    is_split = dtype == "bfloat16" and not isa_row(isa).has_bf16_dot  # a pair is two multiplies
    per_turn = TILE.mr * (panel // lanes) * TILE.k_unroll * (1 + is_split)
    counts = {len(re.findall(MULTIPLY[isa, dtype], loop)): loop for loop in loops(assembly)}
    assert max(counts) >= per_turn
    hottest = counts[max(counts)]
    assert not re.search(r"^\s+(call\w*|bl|blr)\s", hottest, flags=re.MULTILINE)
    if not is_split:  # both halves of four vectors of pairs are too much beside 24 sums
        assert not re.search(r"\(%rsp|\[sp", hottest)  # nothing is kept on the stack


def test_a_whole_program_needs_nothing_but_tvm_and_libc() -> None:
    spec = make_spec(BEST, "bfloat16", num_cores=2, query_tile=2)
    code = object_code(lower(phase_program(spec), isa_row(BEST)))
    assert undefined_symbols(code) <= GIVEN_SYMBOLS


@pytest.mark.parametrize("isa", ISAS)
def test_the_object_file_of_an_isa_runs_here(isa: str) -> None:
    array = Arena(64, "a").array((16,), np.float32)
    load(object_code(lower(constant_func(3.0), isa_row(isa))), "fill")(tensor(array))
    assert (array == 3.0).all()


def test_functions_of_one_name_in_two_object_files_are_two_functions() -> None:
    first, second = (load(code_of(value), "fill") for value in (1.0, 2.0))
    array = Arena(64, "a").array((16,), np.float32)
    for fill, value in ((first, 1.0), (second, 2.0), (first, 1.0)):
        fill(tensor(array))
        assert (array == value).all()


def test_one_function_compiles_to_one_code() -> None:
    assert code_of(1.0) == code_of(1.0)


def test_an_argument_of_another_shape_or_type_is_refused() -> None:
    fill, arena = load(code_of(1.0), "fill"), Arena(256, "a")
    for shape, dtype in (((15,), np.float32), ((16,), np.int32), ((4, 4), np.float32)):
        with pytest.raises(Exception, match="fill"):
            fill(tensor(arena.array(shape, dtype)))


def test_a_tensor_is_the_memory_of_its_array() -> None:
    array = Arena(64, "a").array((16,), np.float32)
    view = tensor(array)
    array[3] = 7.0
    assert view.numpy()[3] == 7.0


def test_memory_that_is_not_aligned_is_refused() -> None:
    array = Arena(128, "a").array((32,), np.float32)
    with pytest.raises(Exception, match=r"(?i)align"):
        tensor(array[1:17])


def test_a_container_that_refuses_pinning_is_warned_about_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(pid: int, cpus: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    codegen.compile._warn_of_wandering.cache_clear()
    cpus = sorted(os.sched_getaffinity(0))[:1]
    for _ in range(2):  # each in a thread, because the pool belongs to the thread that makes it
        with ThreadPoolExecutor(1) as thread:
            thread.submit(pin_pool, cpus).result()
    assert caplog.text.count("sched_setaffinity is refused (Operation not permitted)") == 1
