"""Operators compiled alone: a step's program with one of them as its body, and the arrays it reads.

Sizes, tiles and cores are a ProgramSpec, as for a whole program. A kernel keeps only the parameters
that its body uses, which makes it quick to compile, and takes any number of rows.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from codegen.compile import load, lower, object_code, tensor
from codegen.kit import Kit
from codegen.layout.arrays import bf16_from_float32, float32_from_bf16
from codegen.layout.model import ModelLayout
from codegen.model.tables import matrices
from codegen.spec import GemmTile, ModelShape, Phase, ProgramSpec, StepLimits
from codegen.step.arguments import SCALARS, Layouts, argument_specs
from codegen.step.program import Body, step_program
from platforms.cpuinfo import read_cpu_info
from platforms.isa import isa_row, runnable_isas
from platforms.memory import Arena
from platforms.sysfs import Tree
from sandwich.executor.launcher import Launcher

Array = np.ndarray

INFO = read_cpu_info(Tree())
ROWS = runnable_isas(INFO.flags, INFO.arch)
# What kernels of floats are tested on: not what adds integers only.
ISAS = [row.name for row in ROWS if not row.extends or row.has_bf16_dot > row.extends.has_bf16_dot]
DTYPES = ["float32", "bfloat16"]
# What kernels are tested on: a row that differs from a lesser one in bf16 only is slow in float32.
TARGETS = [
    pytest.param(isa, dtype, id=f"{isa}-{dtype}", marks=[pytest.mark.slow] * is_twin)
    for isa in ISAS
    for dtype in DTYPES
    for is_twin in [isa == "avx512_bf16" and dtype == "float32"]
]
BEST = ISAS[-1]
each_target = pytest.mark.parametrize(("isa", "dtype"), TARGETS)
NUM_WORKERS = 5  # threads behind the cores of a kernel: as many as any kernel has cores
NAN_WORD = 0x7FC07FC0  # not a number as float32, nor as either bf16 of the pair
GIVEN_SYMBOLS = {
    *("TVMFFIErrorSetRaisedFromCStrParts", "memset", "memcpy", "clock_gettime", "gettid"),
    *("sched_yield", "sched_getaffinity", "sched_setaffinity"),
}
ELF_SYMBOL_TABLE = 2
BLOCK_SIZE = 32
SHAPE = ModelShape(
    num_layers=2,
    hidden_size=60,
    num_heads=3,
    num_kv_heads=1,
    head_dim=20,
    intermediate_size=52,
    vocab_size=101,
    rms_norm_eps=1e-5,
    qkv_bias=False,
    o_bias=False,
    mlp_bias=False,
    tied_embeddings=False,
    max_model_len=128,
)
LIMITS = StepLimits(
    max_num_tokens=130,
    max_num_seqs=8,
    max_num_logits=130,
    max_blocks_per_seq=4,
    num_blocks=12,
    block_size=BLOCK_SIZE,
)


def make_shape(**changes: Any) -> ModelShape:
    return ModelShape(**(vars(SHAPE) | changes))


def make_limits(**changes: int) -> StepLimits:
    return StepLimits(**(vars(LIMITS) | changes))


def panel_of(isa: str) -> int:
    """Columns of a panel: four vectors where there are registers for them, else two."""
    row = isa_row(isa)
    return row.lanes * (4 if row.num_vector_registers >= 32 else 2)


def make_spec(
    isa: str,
    dtype: str,
    *,
    kv_dtype: str | None = None,
    phase: Phase = Phase.PREFILL,
    tile: GemmTile | None = None,
    num_cores: int = 1,
    query_tile: int = 4,
    limits: StepLimits = LIMITS,
    **shape: Any,
) -> ProgramSpec:
    tile, sizes = tile or GemmTile(mr=2), make_shape(**shape)
    return ProgramSpec(
        phase=phase,
        shape=sizes,
        isa=isa,
        dtype=dtype,
        kv_dtype=kv_dtype or dtype,
        panel=panel_of(isa),
        limits=limits,
        groups=((num_cores,),),
        tiles=tuple((matrix.role, ((1, tile),)) for matrix in matrices(sizes)),
        query_tile=query_tile,
    )


@dataclass
class Kernel:
    """A compiled body; `arrays` holds every argument of the step by name.

    Weights and metadata start as zeros, cache and workspace as NaN.
    """

    spec: ProgramSpec
    arrays: dict[str, Array]
    _function: Callable[..., None]
    _names: list[str]
    _launcher: Launcher

    def __getitem__(self, name: str) -> Array:
        return self.arrays[name]

    def __call__(
        self, num_tokens: int = 0, num_tiles: int = 0, num_logits: int = 0, num_scored: int = 0
    ) -> None:
        scalars = dict(zip(SCALARS, (num_tokens, num_tiles, num_logits, num_scored), strict=True))
        arguments = [
            scalars[name] if name in scalars else tensor(self.arrays[name]) for name in self._names
        ]
        self._launcher.run(lambda: self._function(*arguments))

    @property
    def kit(self) -> Kit:
        return Kit(isa_row(self.spec.isa), self.spec.dtype)

    @property
    def kv_kit(self) -> Kit:
        return Kit(isa_row(self.spec.isa), Layouts.of(self.spec).kv.format.product_dtype)

    @property
    def model(self) -> ModelLayout:
        return Layouts.of(self.spec).model

    def poison(self, *names: str) -> None:
        """Fill arrays with NaN."""
        for name in names:
            self.arrays[name].view(np.int32)[:] = NAN_WORD

    def set_acts(self, name: str, values: Array) -> None:
        """Write float32 rows as activations, zeros after them in each row."""
        write_acts(self.kit, self.arrays[name], values)

    def acts(self, name: str) -> Array:
        """All rows of an array of activations, as float32."""
        return read_acts(self.kit, self.arrays[name])

    def set_weight(self, role: str, rows: Array, layer: int | None = None) -> Array:
        """Pack float32 rows (n, k); what they are after rounding to the weights' type."""
        layout = self.model.panels(role)
        packed = self.model.matrix(self.arrays, role, layer)
        layout.pack_rows(as_dtype(rows, layout.format.dtype), 0, packed)
        return layout.unpack(packed)


def as_dtype(values: Array, dtype: str) -> Array:
    """float32 values as they are, or as bf16 bit patterns."""
    return bf16_from_float32(values) if dtype == "bfloat16" else values.astype(np.float32)


def write_acts(kit: Kit, words: Array, values: Array) -> None:
    rows = np.zeros((len(values), words.shape[1] * kit.act_kr), np.float32)
    rows[:, : values.shape[1]] = values
    words[: len(values)] = bf16_from_float32(rows).view(np.int32) if kit.act_kr == 2 else rows


def read_acts(kit: Kit, words: Array) -> Array:
    return float32_from_bf16(words.view(np.uint16)) if kit.act_kr == 2 else words.copy()


def is_poison(array: Array) -> bool:
    """Whether nobody has written there."""
    return bool((array.view(np.int32) == NAN_WORD).all())


def same_bits(a: Array, b: Array) -> bool:
    return a.tobytes() == b.tobytes()


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def undefined_symbols(code: bytes) -> set[str]:
    """Names that an ELF object file leaves to the loader."""
    (sections_at,) = struct.unpack_from("<Q", code, 0x28)
    size, count = struct.unpack_from("<HH", code, 0x3A)
    # name, type, flags, address, offset, size, link, info, alignment, entry size
    sections = [
        struct.unpack_from("<IIQQQQIIQQ", code, sections_at + i * size) for i in range(count)
    ]
    names = set()
    for section in (s for s in sections if s[1] == ELF_SYMBOL_TABLE):
        strings_at = sections[section[6]][4]
        table = code[section[4] : section[4] + section[5]]
        for name_at, _, _, index, _, _ in struct.iter_unpack("<IBBHQQ", table):
            if index == 0 and name_at:
                start = strings_at + name_at
                names.add(code[start : code.index(b"\0", start)].decode())
    return names


Compile = Callable[[ProgramSpec, Body], Kernel]
Link = Callable[[bytes, str], Callable[..., None]]  # object code, the function's name


def make_kernel(spec: ProgramSpec, body: Body, link: Link, launcher: Launcher) -> Kernel:
    """Compile `body`; the arrays of each kernel are its own."""
    code = object_code(lower(step_program(spec, body), isa_row(spec.isa)))
    assert undefined_symbols(code) <= GIVEN_SYMBOLS
    groups = argument_specs(spec)
    specs = {name: item for group in groups.values() for name, item in group.items()}
    names = [*SCALARS, *specs]
    arena = Arena(sum(item.arena_nbytes for item in specs.values()), "kernel")
    arrays = {name: arena.array(item.shape, item.dtype) for name, item in specs.items()}
    kernel = Kernel(spec, arrays, link(code, spec.phase.value), names, launcher)
    kernel.poison(*groups["cache"], *groups["workspace"])
    return kernel


@pytest.fixture(scope="session")
def launcher() -> Iterator[Launcher]:
    cpus = sorted(os.sched_getaffinity(0))[:2] * NUM_WORKERS
    with closing(Launcher("kernels", cpus[:NUM_WORKERS], is_pinned=False)) as made:
        yield made


@pytest.fixture(scope="session")
def compile_body(launcher: Launcher) -> Compile:
    """Compiles a body for a spec, to run on this machine."""
    return lambda spec, body: make_kernel(spec, body, load, launcher)
