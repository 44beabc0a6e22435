"""Modules of TVM: a function that Python calls, and those that its operators share.

A body that several operators run, such as a register tile of one shape, is compiled once if it is a
function of its own; so is what runs seldom, however often it is called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import codegen.tvm_alone  # noqa: F401  # isort: skip
import tvm
import tvm_ffi
from tvm.script.ir_builder import IRBuilder

from codegen.kit import Expr, T
from codegen.layout.arrays import TensorSpec

_DATA = 1  # field of a DLTensor in tvm_struct_get: the address of its first element

# Of the module under construction: its inner functions and their names, by what they do.
_Inner = dict[tvm_ffi.StructuralKey, tuple[Any, Any]]
_inner: ContextVar[_Inner] = ContextVar("inner functions")


def ir_module(name: str, build: Callable[[], None]) -> Any:
    """The IRModule of the function `name`, whose arguments and body `build` adds, and of those that
    it shares.
    """
    found: _Inner = {}
    token = _inner.set(found)
    try:
        outer = _function(name, build, is_private=False)
    finally:
        _inner.reset(token)
    return tvm.IRModule({tvm.ir.GlobalVar(name): outer, **dict(found.values())})


def _function(name: str, build: Callable[[], None], is_private: bool) -> Any:
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True, is_private=is_private):
            T.func_name(name)
            T.func_attr({"tirx.noalias": True})
            build()
    return builder.get()


def declare(specs: Mapping[str, TensorSpec]) -> dict[str, Expr]:
    """Add an argument for each array of `specs`, a tensor, behind all others; the buffers over
    their memory.

    Callers answer for sizes and types: TVM's checks of each of them, at every call, would be half
    of the code of a program with many arguments.
    """
    tensors = {name: T.arg(name, T.handle()) for name in specs}
    buffers = {}
    for name, spec in specs.items():
        data = T.handle(str(spec.dtype))
        T.bind(T.tvm_struct_get(tensors[name], 0, _DATA, data.ty), var=data)
        # 64-bit sizes make 64-bit addresses: weights and caches exceed 2**31 elements
        shape = [T.int64(size) for size in spec.shape]
        buffers[name] = T.decl_buffer(shape, str(spec.dtype), data=data)
    return buffers


@dataclass(frozen=True)
class View:
    """Memory from the element `at` of a buffer on, which an inner function sees in `shape`."""

    buffer: Expr
    at: tuple[Expr, ...]
    shape: tuple[int, ...]


Arguments = Mapping[str, View | Expr]
Body = Callable[[Mapping[str, Expr]], None]


def call_inner(name: str, arguments: Arguments, body: Body) -> None:
    """Run `body` as a function of `arguments`, which are views and int32 values; it gets buffers
    and variables of the same names, and must use no others.

    Bodies that come out alike are one function. Views are of different memory.
    """
    inner = _inner.get()
    made = _inner_function(name, arguments, body)
    key = tvm_ffi.StructuralKey(made)
    if key not in inner:
        inner[key] = tvm.ir.GlobalVar(f"{name}_{len(inner)}"), made
    given = [_passed(argument) for argument in arguments.values()]
    T.evaluate(tvm.ir.Call(inner[key][0], given, ret_ty="int32"))


def _inner_function(name: str, arguments: Arguments, body: Body) -> Any:
    def build() -> None:
        given = {
            key: T.arg(
                key, T.handle(argument.buffer.dtype) if isinstance(argument, View) else T.int32()
            )
            for key, argument in arguments.items()
        }
        T.func_ret(tvm.ir.PrimType("int32"))  # what a scope expects of its function
        # Once inlined, it would be wrong: to LLVM no two buffers are the same memory, by their
        # names (tvm-tbaa). A scope of this kind is a function that is never inlined.
        with T.attr(T.int32(0), "compute_scope", name):
            views = {
                key: T.decl_buffer(
                    [T.int64(size) for size in argument.shape],
                    argument.buffer.dtype,
                    data=given[key],
                )
                for key, argument in arguments.items()
                if isinstance(argument, View)
            }
            body(given | views)

    return _function(name, build, is_private=True)


def _passed(argument: View | Expr) -> Expr:
    if isinstance(argument, View):
        return T.address_of(argument.buffer[argument.at])
    return T.int32(argument) if isinstance(argument, int) else T.cast(argument, "int32")


__all__ = ["View", "call_inner", "declare", "ir_module"]
