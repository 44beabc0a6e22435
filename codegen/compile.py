"""From an IRModule to an object file's bytes, and from those to a function: TVM and its ORC JIT
loader.

Loading needs no C compiler and no linker on the machine.
"""

from __future__ import annotations

import functools
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

# Yields of an idle worker before it sleeps: it stays awake from one decode step to the next (less
# than a millisecond), but leaves its core to the other phase and an idle server uses no CPU.
os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "2000")

import codegen.tvm_alone  # noqa: F401  # isort: skip
import tvm
import tvm_ffi_orcjit
from tvm import s_tir, tirx

from platforms.isa import IsaRow

_log = logging.getLogger(__name__)

# Modes of runtime.config_threadpool: a CPU for each worker, or all of them for every worker. The
# modes that take a count alone use no more than half of the CPUs and pin the caller to the first.
_ONE_CPU_EACH, _ALL_CPUS_EACH = -2, -3

_CPU = 1  # DLPack's number of the device


@tirx.transform.prim_func_pass(opt_level=0)
def _on_the_cpu(function: Any, _module: Any, _context: Any) -> Any:
    """Say where memory comes from that is asked for: TVM knows it of matched buffers alone."""
    body = function.body
    for key, value in (("device_type", _CPU), ("device_id", 0)):
        body = tirx.AttrStmt(tirx.const(0, "int32"), key, tirx.const(value, "int32"), body)
    return function.with_body(body)


# What a kernel written with codegen.kit needs of TVM's fifty passes, in their order. The others are
# for devices, bf16 arithmetic, blocks, annotated loops and subexpressions without a name, of which
# there are none here: they change nothing, and take most of the time to find that out.
_PASSES = (
    s_tir.transform.CanonicalizeLoop(),
    s_tir.transform.StmtSimplify(),
    s_tir.transform.LowerOpaqueBlock(),
    tirx.transform.FlattenBuffer(),
    tirx.transform.NarrowDataType(32),
    tirx.transform.StorageRewrite(),
    tirx.transform.StmtSimplify(),
    s_tir.transform.RewriteUnsafeSelect(),
    tirx.transform.AnnotateEntryFunc(),
    _on_the_cpu,
    tirx.transform.MakePackedAPI(),
    tirx.transform.LowerTVMBuiltin(),
    tirx.transform.LowerIntrin(),
)


def lower(module: Any, isa: IsaRow) -> Any:
    """The runtime module of an IRModule for `isa`; its inspect_source("ll" | "asm") shows the
    code.
    """
    target = tvm.target.Target(isa.llvm_target())
    target = target.with_host(target)
    passes = [tirx.transform.BindTarget(target), *_PASSES]
    module = tvm.transform.Sequential(passes)(module)
    return tvm.get_global_func("target.build.llvm")(module, target)


def object_code(module: Any) -> bytes:
    """The relocatable object file of a module."""
    with tempfile.TemporaryDirectory(prefix="sandwich-") as folder:
        path = Path(folder) / "program.o"
        module.write_to_file(str(path))
        return path.read_bytes()


@functools.cache
def _session() -> tvm_ffi_orcjit.ExecutionSession:
    return tvm_ffi_orcjit.ExecutionSession(orc_rt=None)


def load(code: bytes, name: str) -> Any:
    """The function `name` of an object file; it takes ints and DLPack tensors, and runs without the
    GIL.
    """
    return _session().load_module(code)[name]


def tensor(array: Any) -> Any:
    """A NumPy array as a TVM tensor over the same memory, which must be 64-byte aligned."""
    return tvm.runtime.from_dlpack(array)


def pin_pool(cpus: list[int], is_pinned: bool = True) -> None:
    """Give the calling thread a pool of one worker per CPU (the caller is worker 0), each on its
    own or, if not `is_pinned`, wherever among them the kernel puts it.
    """
    configure = tvm.get_global_func("runtime.config_threadpool")
    mode = _ONE_CPU_EACH if is_pinned else _ALL_CPUS_EACH
    configure(mode, len(cpus), [str(cpu) for cpu in cpus])
    if is_pinned:  # TVM has just freed its caller to go anywhere
        try:
            os.sched_setaffinity(0, {cpus[0]})
        except OSError as error:
            _warn_of_wandering(error.strerror)


@functools.cache
def _warn_of_wandering(reason: str) -> None:
    """Once for all pools. TVM itself goes on without a word where its workers cannot be pinned."""
    _log.warning(
        "sched_setaffinity is refused (%s): threads wander between the cores, which is slower; "
        "allow the call (docker: --security-opt seccomp=PROFILE)",
        reason,
    )
