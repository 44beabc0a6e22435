"""An ARM CPU to run object files on: a small driver in C, cross-compiled, under QEMU's user mode.

It needs the packages gcc-aarch64-linux-gnu and qemu-user.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tvm_ffi.libinfo

from tests.codegen.conftest import NUM_WORKERS

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
CPU = "max"  # it has dot products, I8MM and BF16

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


def missing_tools() -> list[str]:
    """Those of the emulator's programs that are not installed."""
    return [tool for tool in (COMPILER, EMULATOR) if not shutil.which(tool)]


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
            self._run(EMULATOR, "-cpu", CPU, f"./{program}", "arguments")
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
