"""The probes do what they claim: every word is read, every multiply-add happens, in registers."""

import re

import numpy as np
import pytest

from codegen.probes.peaks import PEAK_UNROLL, PeakProbe, ReadProbe
from platforms.cpuinfo import read_cpu_info
from platforms.isa import isa_row, runnable_isas
from platforms.memory import Arena
from platforms.sysfs import Tree

INFO = read_cpu_info(Tree())
ISAS = [isa.name for isa in runnable_isas(INFO.flags, INFO.arch)]
NUM_CORES = 2
MULTIPLY = {
    ("avx512_bf16", "bfloat16"): r"vdpbf16ps\s+%zmm",
    ("avx512_bf16", "int8"): r"vpdpbusd\s+%zmm",
    ("avx512_bf16", "float32"): r"vfmadd\w+\s+%zmm",
    ("avx512", "float32"): r"vfmadd\w+\s+%zmm",
    ("avx2", "float32"): r"vfmadd\w+\s+%ymm",
    ("neon", "float32"): r"fmla\s+v",
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
    starts = operands[: probe.chains].view(probe.sums_dtype).sum(axis=0)
    gained = (sums - starts).sum(axis=1)
    assert gained == pytest.approx(num_turns * probe.flops_per_turn / 2 / NUM_CORES, rel=1e-5)


@pytest.mark.parametrize(("isa", "dtype"), MULTIPLY, ids="-".join)
def test_the_loop_multiplies_in_registers_only(isa: str, dtype: str) -> None:
    probe = PeakProbe(isa_row(isa), dtype, NUM_CORES)
    blocks = re.split(r"^\.?L\w+:", probe.assembly(), flags=re.MULTILINE)
    loops = [b for b in blocks if len(re.findall(MULTIPLY[isa, dtype], b)) >= probe.chains]
    assert len(loops) == 1
    body = re.split(r"\n\s+(?:j\w+|b\.\w+|cbn?z)\s", loops[0])[0]
    assert len(re.findall(MULTIPLY[isa, dtype], body)) == probe.chains * PEAK_UNROLL
    assert "(%r" not in body
    assert "[sp" not in body


def test_a_buffer_that_does_not_divide_among_the_cores_is_refused() -> None:
    row = isa_row("generic")
    with pytest.raises(ValueError, match="multiple of"):
        ReadProbe(row, NUM_CORES, ReadProbe.words_per_turn(row, NUM_CORES) + 1)
