"""The instruction sets Sandwich has kernels for, as a table, and the choice of one at run time.

A new ISA is one row here and one file of intrinsics in codegen.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from platforms.amx import granted_flags
from platforms.cpuinfo import host_arch, read_cpu_info
from platforms.sysfs import Tree

ISA_VARIABLE = "SANDWICH_ISA"  # a row's name, or "auto"


class IsaError(ValueError):
    """An ISA was asked for that is not in the table, or that this CPU cannot run."""


@dataclass(frozen=True)
class IsaRow:
    """One instruction set: what a kernel generator and LLVM need to know of it."""

    name: str
    arch: str  # "x86_64", "aarch64", or "any"
    lanes: int  # fp32 values in a vector
    num_vector_registers: int
    # as /proc/cpuinfo spells them: all that LLVM may emit for mcpu; in no order, so not in the repr
    required_flags: frozenset[str] = field(repr=False)
    mcpu: str
    mattr: tuple[str, ...] = ()
    has_bf16_dot: bool = False  # multiplies pairs of bf16 and accumulates in fp32
    has_u8_dot: bool = False  # multiplies quads of signed by unsigned bytes, accumulates in int32
    has_s8_dot: bool = False  # the same of signed bytes, in one instruction or a few
    has_short_sums: bool = False  # multiplies nibbles by signed bytes, accumulates in int16
    has_amx: bool = False  # multiplies tiles, once the kernel has granted them
    fma_instructions: int = 1  # of a multiply-add of float32
    int8_instructions: int = 1  # of a product of int8 by int8, with its addition
    extends: IsaRow | None = None  # the row whose intrinsics it has unless it has its own

    @property
    def multiplies_pairs(self) -> bool:
        """Whether int8 weights are multiplied as pairs of 16 bits, for want of a dot product."""
        return not (self.has_u8_dot or self.has_s8_dot)

    def plus(
        self,
        name: str,
        flags: set[str],
        *features: str,
        has_bf16_dot: bool = False,
        has_u8_dot: bool = False,
        has_amx: bool = False,
        int8_instructions: int | None = None,
    ) -> IsaRow:
        """The row `name`: this one and what the LLVM `features` add, which CPUs show by `flags`."""
        return replace(
            self,
            name=name,
            required_flags=self.required_flags | flags,
            mattr=(*features, *self.mattr),
            has_bf16_dot=self.has_bf16_dot or has_bf16_dot,
            has_u8_dot=self.has_u8_dot or has_u8_dot,
            has_short_sums=self.has_short_sums and not has_u8_dot,
            has_amx=self.has_amx or has_amx,
            int8_instructions=int8_instructions or self.int8_instructions,
            extends=self,
        )

    def multiply_adds_per_cycle(self, num_instructions: int) -> float:
        """How many of so many vector instructions each, one of them a multiplication or more, no
        core of this architecture can beat.
        """
        most, most_multiplies = _VECTOR_ISSUE[self.arch]
        return min(most / num_instructions, most_multiplies)

    def llvm_target(self, arch: str | None = None) -> dict[str, object]:
        """What tvm.target.Target takes. `arch` places an "any" row; its default is this host's."""
        place = (arch or host_arch()) if self.arch == "any" else self.arch
        return {
            "kind": "llvm",
            "mtriple": f"{place}-unknown-linux-gnu",
            "mcpu": self.mcpu,
            "mattr": list(self.mattr),
        }


# Vector instructions that a core starts in a cycle at most, and multiplications among them: x86 has
# two units for these from Haswell to Zen 5, ARM's widest cores (Cortex-X925) have six.
_VECTOR_ISSUE = {"x86_64": (4, 2), "aarch64": (6, 6), "any": (8, 4)}

# The psABI levels x86-64-v2 to -v4, in the kernel's spelling (abm is lzcnt, pni is sse3).
_X86_V2 = frozenset({"pni", "ssse3", "sse4_1", "sse4_2", "popcnt", "cx16", "lahf_lm"})
_X86_V3 = _X86_V2 | {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"}
_X86_V4 = _X86_V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}

_GENERIC = IsaRow(
    *("generic", "any", 4, 16, frozenset(), "generic"), fma_instructions=2, int8_instructions=2
)

_AVX2 = IsaRow(
    *("avx2", "x86_64", 8, 16, _X86_V3, "x86-64-v3"), has_short_sums=True, int8_instructions=2
)
_AVX2_VNNI = _AVX2.plus("avx2_vnni", {"avx_vnni"}, "+avxvnni", has_u8_dot=True, int8_instructions=1)

# LLVM tunes x86-64-v4 for the first Skylakes and would cut loops to 256-bit vectors.
_AVX512 = IsaRow(
    *("avx512", "x86_64", 16, 32, _X86_V4, "x86-64-v4", ("-prefer-256-bit",)),
    has_short_sums=True,
    int8_instructions=2,
)
_AVX512_VNNI = _AVX512.plus(
    "avx512_vnni", {"avx512_vnni"}, "+avx512vnni", has_u8_dot=True, int8_instructions=1
)
_AVX512_BF16 = _AVX512_VNNI.plus("avx512_bf16", {"avx512_bf16"}, "+avx512bf16", has_bf16_dot=True)
_AMX = _AVX512_BF16.plus(
    "amx",
    {"amx_tile", "amx_int8", "amx_bf16"},
    *("+amx-tile", "+amx-int8", "+amx-bf16"),
    has_amx=True,
)

# cortex-a72 is plain ARMv8.0 with the schedule of an out-of-order core.
_NEON = IsaRow(
    *("neon", "aarch64", 4, 32, frozenset({"fp", "asimd"}), "cortex-a72", ("+neon",)),
    has_s8_dot=True,
    int8_instructions=4,
)
_NEON_DOTPROD = _NEON.plus("neon_dotprod", {"asimddp"}, "+dotprod", int8_instructions=1)
_NEON_I8MM = _NEON_DOTPROD.plus("neon_i8mm", {"i8mm"}, "+i8mm", has_u8_dot=True)
_NEON_BF16 = _NEON_I8MM.plus("neon_bf16", {"bf16"}, "+bf16", has_bf16_dot=True)

# Best last among those of one architecture.
ISA_TABLE: tuple[IsaRow, ...] = (
    _GENERIC,
    *(_AVX2, _AVX2_VNNI, _AVX512, _AVX512_VNNI, _AVX512_BF16, _AMX),
    *(_NEON, _NEON_DOTPROD, _NEON_I8MM, _NEON_BF16),
)


def isa_row(name: str) -> IsaRow:
    """The row of that name; IsaError if the table has none."""
    for row in ISA_TABLE:
        if row.name == name:
            return row
    known = ", ".join(row.name for row in ISA_TABLE)
    raise IsaError(f"unknown ISA {name!r}; --isa or {ISA_VARIABLE} is one of auto, {known}")


def runnable_isas(flags: Iterable[str], arch: str) -> tuple[IsaRow, ...]:
    """The rows a CPU of this architecture with these features can run, best last, never empty."""
    have = frozenset(flags)
    return tuple(
        row for row in ISA_TABLE if row.arch in ("any", arch) and row.required_flags <= have
    )


def select_isa(
    flags: Iterable[str] | None = None, forced: str | None = None, arch: str | None = None
) -> IsaRow:
    """The best row this CPU runs, or the one that is forced.

    `flags` and `arch` default to this machine's, `forced` to the environment's SANDWICH_ISA; "auto"
    and "" force nothing. Raises IsaError for a name that is unknown or that the CPU cannot run.
    """
    if flags is None:
        info = read_cpu_info(Tree())
        flags, arch = granted_flags(info.flags), arch or info.arch
    have, arch = frozenset(flags), arch or host_arch()
    runnable = runnable_isas(have, arch)
    name = os.environ.get(ISA_VARIABLE, "") if forced is None else forced
    if name in ("", "auto"):
        return runnable[-1]
    row = isa_row(name)
    if row not in runnable:
        is_foreign = row.arch not in ("any", arch)
        missing = row.arch if is_foreign else " ".join(sorted(row.required_flags - have))
        names = ", ".join(r.name for r in runnable)
        raise IsaError(f"ISA {name!r} needs {missing}; this {arch} CPU runs {names}")
    return row
