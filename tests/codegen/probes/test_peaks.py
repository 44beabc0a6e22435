"""The probes do what they claim: every word is read, every multiply-add happens, in registers."""

import re

import numpy as np
import pytest

from codegen.probes.peaks import CLOCK_CYCLES, PEAK_UNROLL, ClockProbe, PeakProbe, ReadProbe
from platforms.cpuinfo import read_cpu_info
from platforms.isa import ISA_TABLE, IsaRow, isa_row, runnable_isas
from platforms.memory import Arena
from platforms.sysfs import Tree

INFO = read_cpu_info(Tree())
ISAS = [isa.name for isa in runnable_isas(INFO.flags, INFO.arch)]
NUM_CORES = 2
# Where a multiply-add of these operands is one instruction, it is this one.
FUSED = {
    ("avx2", "float32"): r"vfmadd\w+\s+%ymm",
    ("avx2_vnni", "int8"): r"vpdpbusd\s+%ymm",
    ("avx512", "float32"): r"vfmadd\w+\s+%zmm",
    ("avx512_vnni", "int8"): r"vpdpbusd\s+%zmm",
    ("avx512_bf16", "bfloat16"): r"vdpbf16ps\s+%zmm",
    ("neon", "float32"): r"fmla\s+v",
    ("neon_dotprod", "int8"): r"sdot\s+v",
    ("neon_i8mm", "int8"): r"usdot\s+v",
    ("neon_bf16", "bfloat16"): r"bfdot\s+v",
}
# Else its multiplications, how many of them, and the other instructions on vectors.
SPLIT = {
    ("generic", "float32"): (r"mulps\s", 1, [r"addps\s"]),
    ("generic", "int8"): (r"pmaddwd\s", 1, [r"paddd\s"]),
    ("avx2", "int8"): (r"vpmaddwd\s", 1, [r"vpaddd\s"]),
    ("avx512", "int8"): (r"vpmaddwd\s", 1, [r"vpaddd\s"]),
    ("neon", "int8"): (r"smull2?\s", 2, [r"\taddp\s", r"sadalp\s"]),
}


@pytest.mark.parametrize("isa", ISAS)
def test_every_word_is_filled_and_read_once(isa: str) -> None:
    row = isa_row(isa)
    num_words = 3 * ReadProbe.words_per_turn(row, NUM_CORES)
    probe = ReadProbe(row, NUM_CORES, num_words)
    arena = Arena(1 << 20, "test")
    words = arena.array((num_words,), np.int32)
    beyond = arena.array((64,), np.int32)
    sums = arena.array(probe.sums_shape, np.int32)
    probe.fill(words)
    assert words.sum() == num_words
    assert not beyond.any()
    words[:] = np.arange(num_words)
    probe.read(words, sums)
    assert sums.sum() == num_words * (num_words - 1) // 2
    assert np.all(sums.sum(axis=1) > 0)  # both cores took part


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("isa", ISAS)
def test_every_multiply_add_is_done(isa: str, dtype: str) -> None:
    probe = PeakProbe(isa_row(isa), dtype, NUM_CORES)
    num_turns = 5
    arena = Arena(1 << 20, "test")
    operands = arena.array(probe.operand_shape, np.int32)
    turns = arena.array((1,), np.int32)
    sums = arena.array(probe.sums_shape, probe.sums_dtype)
    probe.write_operands(operands)
    turns[0] = num_turns
    probe.multiply(operands, turns, sums)
    # Both operands are one, so a multiply-add of one value adds one, and counts for two operations.
    starts = operands[: probe.tile.num_sums].view(probe.sums_dtype).sum(axis=0)
    gained = (sums - starts).sum(axis=1)
    assert gained == pytest.approx(num_turns * probe.flops_per_turn / 2 / NUM_CORES, rel=1e-5)


def loop_of(probe: PeakProbe, multiply: str) -> str:
    """The one loop with the probe's multiplications, without what its end jumps to."""
    blocks = re.split(r"^\.?L\w+:", probe.assembly(), flags=re.MULTILINE)
    loops = [b for b in blocks if len(re.findall(multiply, b)) >= probe.tile.num_sums]
    assert len(loops) == 1
    return re.split(r"\n\s+(?:j\w+|b\.\w+|cbn?z)\s", loops[0])[0]


@pytest.mark.parametrize(("isa", "dtype"), FUSED, ids="-".join)
def test_the_loop_multiplies_in_registers_only(isa: str, dtype: str) -> None:
    probe = PeakProbe(isa_row(isa), dtype, NUM_CORES)
    assert not probe.tile.is_split
    body = loop_of(probe, FUSED[isa, dtype])
    assert len(re.findall(FUSED[isa, dtype], body)) == probe.tile.num_sums * PEAK_UNROLL
    assert "(%r" not in body
    assert "[sp" not in body


@pytest.mark.parametrize(("isa", "dtype"), SPLIT, ids="-".join)
def test_no_product_is_taken_out_of_the_loop(isa: str, dtype: str) -> None:
    probe = PeakProbe(isa_row(isa), dtype, NUM_CORES)
    assert probe.tile.is_split
    multiply, count, others = SPLIT[isa, dtype]
    body = loop_of(probe, multiply)
    num_dots = probe.tile.num_sums * PEAK_UNROLL
    assert len(re.findall(multiply, body)) == num_dots * count
    for other in others:
        assert len(re.findall(other, body)) >= num_dots, other
    assert not re.search(r"(?:%zmm\d+|%ymm\d+|%xmm\d+), -?\d*\(%rsp\)", body)  # no sum is spilled
    assert "[sp" not in body


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("isa", ISA_TABLE, ids=lambda isa: isa.name)
def test_a_bound_is_that_of_the_widest_core(isa: IsaRow, dtype: str) -> None:
    probe = PeakProbe(isa, dtype, NUM_CORES)
    flops_of_one = probe.flops_per_turn / (probe.tile.num_sums * PEAK_UNROLL)
    units = 2 if isa.arch == "x86_64" else 6
    assert flops_of_one <= probe.most_flops_per_cycle <= flops_of_one * units


def test_a_clock_counts_all_of_its_cycles() -> None:
    arena = Arena(1 << 12, "test")
    turns, result = (arena.array((1,), np.int32) for _ in range(2))
    turns[0] = num_turns = 3
    ClockProbe(isa_row("generic")).wait(turns, result)
    expected = 1
    for _ in range(num_turns * CLOCK_CYCLES // 2):
        expected = (expected ^ (num_turns | 5)) + (num_turns | 3)
    assert result[0] == expected


def test_a_buffer_that_does_not_divide_among_the_cores_is_refused() -> None:
    row = isa_row("generic")
    with pytest.raises(ValueError, match="multiple of"):
        ReadProbe(row, NUM_CORES, ReadProbe.words_per_turn(row, NUM_CORES) + 1)
