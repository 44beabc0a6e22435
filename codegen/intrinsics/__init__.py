"""The table of intrinsics: for each ISA row, the portable ones with that ISA's own spellings in
their place.
"""

from __future__ import annotations

from codegen.intrinsics import (
    amx,
    avx2,
    avx2_vnni,
    avx512,
    avx512_bf16,
    avx512_vnni,
    base,
    elementary,
    integers,
    neon,
    neon_bf16,
    neon_dotprod,
    neon_i8mm,
    widening,
)
from codegen.intrinsics.base import Intrinsic
from platforms.isa import IsaRow

PORTABLE = (*base.PORTABLE, *elementary.PORTABLE, *integers.PORTABLE, *widening.PORTABLE)
SPELLINGS: dict[str, tuple[Intrinsic, ...]] = {
    "avx2": avx2.SPELLINGS,
    "avx2_vnni": avx2_vnni.SPELLINGS,
    "avx512": avx512.SPELLINGS,
    "avx512_vnni": avx512_vnni.SPELLINGS,
    "avx512_bf16": avx512_bf16.SPELLINGS,
    "amx": amx.SPELLINGS,
    "neon": neon.SPELLINGS,
    "neon_dotprod": neon_dotprod.SPELLINGS,
    "neon_i8mm": neon_i8mm.SPELLINGS,
    "neon_bf16": neon_bf16.SPELLINGS,
}


def intrinsics_for(isa: IsaRow) -> dict[str, Intrinsic]:
    """Intrinsics by name for `isa`: its own, else those of the row it extends, else portable ones.

    Names missing from the result have no spelling on it.
    """
    inherited = intrinsics_for(isa.extends) if isa.extends else {row.name: row for row in PORTABLE}
    return inherited | {row.name: row for row in SPELLINGS.get(isa.name, ())}


def module_text(isa: IsaRow) -> str:
    """One LLVM IR module with every intrinsic of `isa`, each line once (declarations may be
    shared).
    """
    seen: set[str] = set()
    lines: list[str] = []
    for row in intrinsics_for(isa).values():
        for line in row.text(isa.lanes).splitlines():
            if line.startswith("declare") and line in seen:
                continue
            seen.add(line)
            lines.append(line)
    return "\n".join(lines) + "\n"
