"""The NEON row, from any host: whole programs lower to object files; kernels run under QEMU.

The slow tests run the tests of the other kernel files on an emulated CPU. They need the packages
gcc-aarch64-linux-gnu and qemu-user.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm_ffi.libinfo

from codegen.compile import lower, object_code
from codegen.program import phase_program
from codegen.spec import Phase
from platforms.isa import isa_row
from platforms.memory import Arena
from sandwich.executor.compiled import CompiledExecutor
from sandwich.executor.launcher import Launcher
from sandwich.executor.programs import PhaseProgram
from sandwich.executor.specs import program_specs, step_bytes
from tests.codegen import test_attention, test_gemm, test_operators, test_program
from tests.codegen.conftest import (
    DTYPES,
    GIVEN_SYMBOLS,
    NUM_WORKERS,
    Compile,
    make_kernel,
    undefined_symbols,
)
from tests.sandwich.executor.conftest import LIMITS, TinyModel

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
AARCH64 = 183  # e_machine of its ELF files
NEON = isa_row("neon")

# Calls the function `program` of an object file as TVM does. Arguments are read from a file and
# written back there: a header of HEADER 64-bit numbers (ndim or -1; the value, or type code and
# bits; the shape), and a tensor's data.
DRIVER = r"""
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <dlpack/dlpack.h>
#include <tvm/ffi/c_api.h>

enum { MOST = 64, DIMS = 5, WORKERS = @WORKERS };
typedef struct { int64_t ndim, value, bits, shape[DIMS]; } Header;
typedef struct { void *sync; int32_t num_task; } Env;
typedef int (*Task)(int, Env *, void *);

int program(void *, const TVMFFIAny *, int32_t, TVMFFIAny *);

typedef struct { Task task; void *data; int worker; } Job;
static Env env = {0, WORKERS};
static void *work(void *data) {
  Job *job = data;
  return job->task(job->worker, &env, job->data) ? job : 0;
}
static int launch(Task task, void *data, int num_task) {
  pthread_t threads[WORKERS];
  Job jobs[WORKERS];
  int failures = num_task;
  for (int i = 0; i < WORKERS; ++i) {
    jobs[i] = (Job){task, data, i};
    failures += !!pthread_create(&threads[i], 0, work, &jobs[i]);
  }
  for (int i = 0; i < WORKERS; ++i) {
    void *failed;
    failures += pthread_join(threads[i], &failed) || failed;
  }
  return failures;
}
static void *allocate(int type, int device, uint64_t size, int code, int bits) {
  (void)type; (void)device; (void)code; (void)bits;
  return aligned_alloc(64, (size + 63) / 64 * 64);
}
static int release(int type, int device, void *data) {
  (void)type; (void)device;
  free(data);
  return 0;
}
int (*__TVMBackendParallelLaunch)(Task, void *, int) = launch;
void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int) = allocate;
int (*__TVMBackendFreeWorkspace)(int, int, void *) = release;

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
  fprintf(stderr, "%s: ", kind);
  for (int i = 0; i < count; ++i) if (parts[i]) fputs(parts[i], stderr);
}

int main(int argc, char **argv) {
  static Header headers[MOST];
  static DLTensor tensors[MOST];
  static int64_t strides[MOST][DIMS];
  static size_t sizes[MOST];
  TVMFFIAny arguments[MOST], result;
  FILE *file = argc == 2 ? fopen(argv[1], "r+b") : 0;
  int count = 0;
  if (!file) return 2;
  memset(arguments, 0, sizeof arguments);
  memset(&result, 0, sizeof result);
  for (; fread(&headers[count], sizeof(Header), 1, file) == 1; ++count) {
    Header *h = &headers[count];
    DLTensor *t = &tensors[count];
    arguments[count].type_index = h->ndim < 0 ? kTVMFFIInt : kTVMFFIDLTensorPtr;
    if (h->ndim < 0) { arguments[count].v_int64 = h->value; continue; }
    size_t size = h->bits / 8;
    for (int d = h->ndim - 1; d >= 0; --d) {
      strides[count][d] = size * 8 / h->bits;
      size *= h->shape[d];
    }
    t->data = aligned_alloc(64, (size + 63) / 64 * 64 + 64);
    t->device.device_type = kDLCPU;
    t->ndim = h->ndim;
    t->dtype = (DLDataType){h->value, h->bits, 1};
    t->shape = h->shape;
    t->strides = strides[count];
    sizes[count] = size;
    if (fread(t->data, 1, size, file) != size) return 3;
    arguments[count].v_ptr = t;
  }
  if (program(0, arguments, count, &result)) return 4;
  rewind(file);
  for (int i = 0; i < count; ++i) {
    fseek(file, sizeof(Header), SEEK_CUR);
    if (sizes[i] && fwrite(tensors[i].data, 1, sizes[i], file) != sizes[i]) return 5;
  }
  return fclose(file);
}
"""
MOST_DIMS = 5
TYPE_CODES = {"i": 0, "u": 1, "f": 2}  # of DLPack


def header(argument: Any) -> np.ndarray:
    """The Header of an argument: an int or an array."""
    fields = np.zeros(3 + MOST_DIMS, np.int64)
    if isinstance(argument, int):
        fields[:2] = -1, argument
    else:
        code = TYPE_CODES[argument.dtype.kind]
        fields[:3] = argument.ndim, code, 8 * argument.dtype.itemsize
        fields[3 : 3 + argument.ndim] = argument.shape
    return fields


def memory_of(argument: Any) -> Any:
    """The array behind a tensor, to read and write; ints as they are."""
    if isinstance(argument, int):
        return argument
    seen = np.from_dlpack(argument)
    memory = (ctypes.c_char * seen.nbytes).from_address(seen.ctypes.data)
    return np.frombuffer(memoryview(memory), seen.dtype).reshape(seen.shape)


class Emulator:
    """Links object files for aarch64 into programs and runs them under QEMU."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._num_linked = folder, 0
        (folder / "driver.c").write_text(DRIVER.replace("@WORKERS", str(NUM_WORKERS)))
        paths = {tvm_ffi.libinfo.find_include_path(), tvm_ffi.libinfo.find_dlpack_include_path()}
        self._run(COMPILER, "-O1", "-c", "driver.c", *(f"-I{path}" for path in paths))

    def link(self, code: bytes, name: str) -> Callable[..., None]:
        """The function `name`; called, it runs in a process of its own."""
        self._num_linked += 1
        program = f"program{self._num_linked}"
        (self._folder / f"{program}.o").write_bytes(code)
        alias = f"-Wl,--defsym=program=__tvm_ffi_{name}"
        self._run(COMPILER, "-static", "driver.o", f"{program}.o", alias, "-o", program)

        def function(*arguments: Any) -> None:
            arrays = [memory_of(argument) for argument in arguments]
            file = self._folder / "arguments"
            with file.open("wb") as stream:
                for array in arrays:
                    stream.write(header(array).tobytes())
                    stream.write(b"" if isinstance(array, int) else array.tobytes())
            self._run(EMULATOR, f"./{program}", "arguments")
            content, at = file.read_bytes(), 0
            for array in arrays:
                at += header(array).nbytes
                if not isinstance(array, int):
                    array[...] = np.frombuffer(content, array.dtype, array.size, at).reshape(
                        array.shape
                    )
                    at += array.nbytes

        return function

    def _run(self, *command: str) -> None:
        done = subprocess.run(
            command, cwd=self._folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stderr}"


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    missing = [tool for tool in (COMPILER, EMULATOR) if not shutil.which(tool)]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: apt-get install gcc-aarch64-linux-gnu qemu-user")
    return Emulator(tmp_path_factory.mktemp("aarch64"))


@pytest.fixture(scope="module")
def compile_for_emulator(emulator: Emulator, launcher: Launcher) -> Compile:
    return lambda spec, body: make_kernel(spec, body, emulator.link, launcher)


def test_a_whole_program_lowers_to_an_object_file() -> None:
    model = TinyModel.make("neon", "bfloat16")
    layout, kv = model.weights.layout, model.kv
    specs = program_specs(model.plans, layout, kv.dtype, LIMITS)
    spec = specs[Phase.DECODE]
    code = object_code(lower(phase_program(spec), NEON))
    assert code.startswith(b"\x7fELF")
    assert int.from_bytes(code[18:20], "little") == AARCH64
    assert undefined_symbols(code) <= GIVEN_SYMBOLS


@pytest.mark.slow
@pytest.mark.parametrize("size", test_gemm.SIZES.values(), ids=test_gemm.SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gemm_is_right_under_emulation(
    compile_for_emulator: Compile, dtype: str, size: test_gemm.Size
) -> None:
    test_gemm.test_any_number_of_rows_by_any_matrix(compile_for_emulator, "neon", dtype, size)


SAME_ON_EMULATOR = [
    test_gemm.test_a_row_is_the_same_to_the_last_bit_for_every_tile_and_number_of_cores,
    test_operators.test_a_token_becomes_its_row_of_the_table,
    test_operators.test_a_token_becomes_its_row_of_the_lm_head,
    test_operators.test_queries_leave_rotated_scaled_and_padded,
    test_operators.test_a_rotation_does_not_depend_on_the_tokens_beside_it,
    test_operators.test_keys_and_values_go_to_their_slots_and_nowhere_else,
]


@pytest.mark.slow
@pytest.mark.parametrize("test", SAME_ON_EMULATOR, ids=lambda test: test.__name__[5:])
@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels_are_right_under_emulation(
    compile_for_emulator: Compile, dtype: str, test: Callable[[Compile, str, str], None]
) -> None:
    test(compile_for_emulator, "neon", dtype)


@pytest.mark.slow
@pytest.mark.parametrize("heads", [test_attention.PAIRS, test_attention.FOURS], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_is_right_under_emulation(
    compile_for_emulator: Compile, dtype: str, heads: test_attention.Heads
) -> None:
    for test in (
        test_attention.test_prefill_attends_to_all_that_came_before,
        test_attention.test_decode_attends_like_prefill_to_the_last_bit,
    ):
        test(compile_for_emulator, "neon", dtype, heads)


@pytest.fixture(scope="module", params=DTYPES)
def emulated_pair(
    request: pytest.FixtureRequest, emulator: Emulator, launcher: Launcher
) -> test_program.Pair:
    model = TinyModel.make("neon", request.param)
    layout, kv = model.weights.layout, model.kv
    specs = program_specs(model.plans, layout, kv.dtype, LIMITS)
    programs = {
        phase: PhaseProgram(
            spec,
            emulator.link(object_code(lower(phase_program(spec), NEON)), phase.value),
            launcher,
        )
        for phase, spec in specs.items()
    }
    arena = Arena(kv.keys.arena_nbytes + kv.values.arena_nbytes, "cache")
    cache = {
        "keys": arena.array(kv.keys.shape, kv.keys.dtype),
        "values": arena.array(kv.values.shape, kv.values.dtype),
    }
    workspace = Arena(step_bytes(specs), "workspace")
    executor = CompiledExecutor(programs, LIMITS, model.weights.tensors, cache, workspace)
    return test_program.Pair(request.param, executor, model.reference())


@pytest.mark.slow
@pytest.mark.parametrize(
    "test",
    [
        test_program.test_both_phases_compute_what_the_reference_computes_in_one_cache,
        test_program.test_logits_are_the_same_to_the_last_bit_in_any_chunk_phase_and_batch,
    ],
    ids=lambda test: test.__name__[5:],
)
def test_whole_programs_are_right_under_emulation(
    emulated_pair: test_program.Pair, test: Callable[[test_program.Pair], None]
) -> None:
    test(emulated_pair)
