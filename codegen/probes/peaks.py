"""Probes of what a machine can do at most: reading memory, and multiplying with nothing in the way;
and of its clock, which bounds the latter.

They are compiled for the same ISA row by the same compiler as the kernels they are compared with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from codegen.compile import lower, tensor
from codegen.functions import ir_module
from codegen.kit import Kit, T
from platforms.isa import IsaRow

# A core reads its share as this many streams, of each so many vectors in a turn. On Zen 4, two
# streams read 4 % more than one, and four read less.
READ_STREAMS = 2
READ_VECTORS = 4
# Multiply-adds of one accumulator in a turn of the loop.
PEAK_UNROLL = 2
CLOCK_CYCLES = 64  # of a turn of the clock's loop

Words = npt.NDArray[np.int32]


class ReadProbe:
    """Reads `num_words` int32 words (a multiple of `words_per_turn`), an equal share on each core.

    The cores are those of the calling thread's pool (codegen.compile.pin_pool). Arrays come from an
    Arena (64-byte aligned). A call returns when every core is done. Not thread-safe.
    """

    def __init__(self, isa: IsaRow, num_cores: int, num_words: int) -> None:
        step = self.words_per_turn(isa, num_cores)
        if num_words % step:
            raise ValueError(f"num_words is {num_words}, it must be a multiple of {step}")
        kit = Kit(isa, "float32")
        self.sums_shape = (num_cores, isa.lanes)
        self._fill = compiled(fill_function(kit, num_cores, num_words), isa)
        self._read = compiled(read_function(kit, num_cores, num_words), isa)

    @staticmethod
    def words_per_turn(isa: IsaRow, num_cores: int) -> int:
        """Words that all cores read in one turn of the loop."""
        return READ_STREAMS * READ_VECTORS * isa.lanes * num_cores

    def fill(self, words: Words) -> None:
        """Set every word to one; a core touches first, and so places, what it will read."""
        self._fill(tensor(words))

    def read(self, words: Words, sums: Words) -> None:
        """Read every word once; `sums` (sums_shape) receives the sums of each core."""
        self._read(tensor(words), tensor(sums))


class PeakProbe:
    """Multiplies as kernels for operands of `dtype` do on `isa`, and does nothing else.

    dtype: "float32"; "bfloat16", which is pairs where the ISA has a dot product of them, else
    float32; "int8", a dot product of four. Cores, arrays and threads as for ReadProbe.
    """

    def __init__(self, isa: IsaRow, dtype: str, num_cores: int) -> None:
        self._is_int8 = dtype == "int8"
        kit = Kit(isa, dtype if isa.has_bf16_dot and not self._is_int8 else "float32")
        self._kr = (2 if isa.multiplies_pairs else 4) if self._is_int8 else kit.kr
        self.tile = _tile_of(isa, kit.has_dot, self._is_int8)
        self.operand_shape = (self.tile.num_rows, isa.lanes)
        self.sums_shape = (num_cores, isa.lanes)
        flops_of_one = 2 * isa.lanes * self._kr * num_cores
        self.flops_per_turn = flops_of_one * self.tile.num_sums * PEAK_UNROLL
        per_cycle = isa.multiply_adds_per_cycle(self.tile.instructions)
        self.most_flops_per_cycle = flops_of_one * per_cycle
        dot = _integer_dot(isa) if self._is_int8 else None
        self._module = lower(peak_function(kit, num_cores, self.tile, dot), isa)

    def write_operands(self, out: Words) -> None:
        """What `multiply` starts from (operand_shape): no zeros, no subnormals, no overflow."""
        sums = out[: self.tile.num_sums]
        if self._is_int8:
            sums[:] = np.arange(sums.size).reshape(sums.shape)
            out[len(sums) :] = 0x01010101 if self._kr == 4 else 0x00010001
            return
        starts = np.linspace(1.0, 2.0, sums.size, dtype=np.float32)
        sums[:] = starts.view(np.int32).reshape(sums.shape)
        one = np.float32(1.0).view(np.int32)
        out[len(sums) :] = one | one >> 16 if self._kr == 2 else one

    @property
    def sums_dtype(self) -> np.dtype[np.generic]:
        """int32 or float32, of `sums`."""
        return np.dtype(np.int32 if self._is_int8 else np.float32)

    def multiply(self, operands: Words, turns: Words, sums: npt.NDArray[Any]) -> None:
        """`turns[0]` turns of `flops_per_turn`; `sums` (sums_shape, sums_dtype) gets each core's
        sums, those of integers modulo 2**32.
        """
        self._module["limit_peak"](tensor(operands), tensor(turns), tensor(sums))

    def assembly(self) -> str:
        """The machine code, for its test."""
        return str(self._module.inspect_source("asm"))


@dataclass(frozen=True)
class PeakTile:
    """The sums of a peak probe, rows x vectors, each of `instructions` per multiply-add.

    Where that is one, all sums meet the same two operands, which stay in registers. Where it is
    several, LLVM would compute such a product once and leave the additions: each row and each
    vector has an operand of its own then, `depth` of them that take turns and come from L1.
    """

    rows: int
    vectors: int
    instructions: int

    @property
    def is_split(self) -> bool:
        """Whether a product is an instruction apart from its addition."""
        return self.instructions > 1

    @property
    def num_sums(self) -> int:
        return self.rows * self.vectors

    @property
    def depth(self) -> int:
        """Operands that take turns; a power of two, and more than a turn of the loop meets."""
        return 2 * PEAK_UNROLL if self.is_split else 1

    @property
    def operands_of_a_turn(self) -> tuple[int, int]:
        """Of rows and of vectors."""
        return (self.rows, self.vectors) if self.is_split else (1, 1)

    @property
    def num_rows(self) -> int:
        """Of the array that holds what sums start from, and all operands."""
        return self.num_sums + self.depth * sum(self.operands_of_a_turn)


def _tile_of(isa: IsaRow, has_bf16_dot: bool, is_int8: bool) -> PeakTile:
    """More sums than any known core's latency times throughput, and never a spill: those of several
    instructions need registers for what lies between these, and do not wait for one another.
    """
    floats = 1 if has_bf16_dot else isa.fma_instructions
    instructions = isa.int8_instructions if is_int8 else floats
    has_32 = isa.num_vector_registers >= 32
    if instructions > 1:
        # without operands of its own for a result (SSE), an instruction needs a copy of one first
        return PeakTile(*((2, 3) if isa.fma_instructions > 1 else (6, 2)), instructions)
    return PeakTile(6, 4 if has_32 else 2, instructions)


def _integer_dot(isa: IsaRow) -> str:
    """The intrinsic that multiplies int8 by int8."""
    return (
        "sw_dot_pairs" if isa.multiplies_pairs else "sw_dot_u8" if isa.has_u8_dot else "sw_dot_s8"
    )


class ClockProbe:
    """Counts cycles: additions and exclusive ors that each wait for the one before, which take a
    cycle each on every core of these architectures. Threads as for ReadProbe, on one core.
    """

    def __init__(self, isa: IsaRow) -> None:
        self._count = compiled(clock_function(), isa)

    def wait(self, turns: Words, result: Words) -> None:
        """`turns[0]` turns of CLOCK_CYCLES; both arrays have one word."""
        self._count(tensor(turns), tensor(result))


def compiled(module: Any, isa: IsaRow) -> Any:
    """The one function of a module, to call with tensors."""
    (function,) = module.get_global_vars()
    return lower(module, isa)[function.name_hint]


def over_share(
    kit: Kit, core: Any, num_cores: int, num_words: int, step: Callable[[Any, int], None]
) -> None:
    """The loop of `core` over its share of the words: step(index, i) for each vector.

    `i` counts the vectors of one turn, which come from READ_STREAMS places of the share.
    """
    per_turn = READ_VECTORS * kit.lanes
    num_turns = num_words // num_cores // READ_STREAMS // per_turn
    begin = T.bind(T.cast(core, "int64") * (READ_STREAMS * num_turns * per_turn))
    with T.serial(0, num_turns) as turn:
        for stream in range(READ_STREAMS):
            offset = stream * num_turns * per_turn
            at = T.bind(begin + offset + T.cast(turn, "int64") * per_turn)
            for i in range(READ_VECTORS):
                step(at + i * kit.lanes, stream * READ_VECTORS + i)


def fill_function(kit: Kit, num_cores: int, num_words: int) -> Any:
    """(words): ones everywhere."""

    def build() -> None:
        words = T.arg("words", T.buffer((num_words,), "int32"))
        ones = T.broadcast(T.int32(1), kit.lanes)
        with T.parallel(0, num_cores) as core:
            over_share(kit, core, num_cores, num_words, lambda at, i: kit.store(words, (at,), ones))

    return ir_module("limit_fill", build)


def read_function(kit: Kit, num_cores: int, num_words: int) -> Any:
    """(words, sums): every word is added to a register, which is what keeps the loads alive."""
    chains = range(0, READ_STREAMS * READ_VECTORS * kit.lanes, kit.lanes)

    def build() -> None:
        words = T.arg("words", T.buffer((num_words,), "int32"))
        sums = T.arg("sums", T.buffer((num_cores, kit.lanes), "int32"))
        with T.parallel(0, num_cores) as core:
            acc = T.alloc_buffer((len(chains) * kit.lanes,), "int32", scope="local")
            for i in chains:
                kit.store(acc, (i,), T.broadcast(T.int32(0), kit.lanes))

            def add(at: Any, i: int) -> None:
                kit.store(acc, (chains[i],), kit.load(acc, chains[i]) + kit.load(words, at))

            over_share(kit, core, num_cores, num_words, add)
            kit.store(sums, (core, 0), sum_of([kit.load(acc, i) for i in chains]))

    return ir_module("limit_read", build)


def peak_function(kit: Kit, num_cores: int, tile: PeakTile, dot: str | None = None) -> Any:
    """(operands, turns, sums): independent multiply-adds and nothing else; those of the intrinsic
    `dot` in integers, else those of `kit`.

    The starts differ, or LLVM would see that the sums are one; they and the operands come from
    memory, or it would compute the result itself.
    """
    num_a, num_w = tile.operands_of_a_turn

    def build() -> None:
        operands = T.arg("operands", T.buffer((tile.num_rows, kit.lanes), "int32"))
        turns = T.arg("turns", T.buffer((1,), "int32"))
        dtype = "int32" if dot else "float32"
        sums = T.arg("sums", T.buffer((num_cores, kit.lanes), dtype))

        def as_word(value: Any, lanes: int) -> Any:
            suffix = f"x{lanes}" if lanes > 1 else ""
            return T.bind(value if dot or kit.kr == 2 else T.reinterpret(f"float32{suffix}", value))

        def multiply(acc: Any, first: Any) -> None:
            """One multiply-add of every sum, with the operands from row `first` on."""
            w = [as_word(kit.load(operands, first + num_a + j, 0), kit.lanes) for j in range(num_w)]
            scalars: dict[int, Any] = {}
            for i in range(tile.num_sums):
                row = i // tile.vectors % num_a
                if row not in scalars:
                    scalars[row] = as_word(operands[first + row, 0], 1)
                scalar, vector = scalars[row], w[i % num_w]
                before = kit.load(acc, i * kit.lanes)
                if dot:
                    after = kit.call(dot, before, scalar, vector)
                else:
                    after = kit.mac(before, (scalar,), vector)
                kit.store(acc, (i * kit.lanes,), after)

        with kit.imports(), T.parallel(0, num_cores) as core:
            acc = T.alloc_buffer((tile.num_sums * kit.lanes,), dtype, scope="local")
            for i in range(tile.num_sums):
                start = T.reinterpret(f"{dtype}x{kit.lanes}", kit.load(operands, i, 0))
                kit.store(acc, (i * kit.lanes,), start)
            with T.serial(0, turns[0]) as turn:
                for u in range(PEAK_UNROLL):
                    set_of = (turn * PEAK_UNROLL + u) & (tile.depth - 1) if tile.is_split else 0
                    multiply(acc, T.bind(tile.num_sums + set_of * (num_a + num_w)))
            total = sum_of([kit.load(acc, i * kit.lanes) for i in range(tile.num_sums)])
            kit.store(sums, (core, 0), total)

    return ir_module("limit_peak", build)


def clock_function() -> Any:
    """(turns, result): a chain of CLOCK_CYCLES dependent operations in a turn."""

    def build() -> None:
        turns = T.arg("turns", T.buffer((1,), "int32"))
        result = T.arg("result", T.buffer((1,), "int32"))
        link = T.alloc_buffer((1,), "int32", scope="local")
        mask, step = T.bind(turns[0] | 5), T.bind(turns[0] | 3)
        T.buffer_store(link, T.int32(1), [0])
        with T.serial(0, turns[0]):
            for _ in range(CLOCK_CYCLES // 2):
                T.buffer_store(link, (link[0] ^ mask) + step, [0])
        T.buffer_store(result, link[0], [0])

    return ir_module("limit_clock", build)


def sum_of(vectors: list[Any]) -> Any:
    """The lane-wise sum of vectors."""
    total = vectors[0]
    for vector in vectors[1:]:
        total = total + vector
    return total
