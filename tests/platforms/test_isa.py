"""The ISA table and the choice of a row."""

import pytest

from platforms.cpuinfo import host_arch
from platforms.isa import ISA_TABLE, ISA_VARIABLE, IsaError, isa_row, runnable_isas, select_isa

AVX2 = isa_row("avx2").required_flags
AVX512 = isa_row("avx512").required_flags
BF16 = isa_row("avx512_bf16").required_flags
X86_NAMES = ["generic", "avx2", "avx512", "avx512_vnni", "avx512_bf16"]
ARM_NAMES = ["generic", "neon", "neon_dotprod", "neon_i8mm", "neon_bf16"]


@pytest.mark.parametrize(
    ("arch", "flags", "names"),
    [
        ("x86_64", frozenset(), ["generic"]),
        ("x86_64", AVX2, ["generic", "avx2"]),
        ("x86_64", AVX2 - {"fma"}, ["generic"]),
        ("x86_64", AVX512, ["generic", "avx2", "avx512"]),
        ("x86_64", AVX2 | {"avx_vnni"}, ["generic", "avx2", "avx2_vnni"]),
        ("x86_64", AVX512 | {"avx512_vnni"}, X86_NAMES[:4]),
        ("x86_64", BF16, X86_NAMES),
        ("x86_64", BF16 | {"amx_tile", "amx_int8"}, X86_NAMES),
        ("x86_64", BF16 | {"amx_tile", "amx_int8", "amx_bf16"}, [*X86_NAMES, "amx"]),
        ("x86_64", AVX2 | {"avx512_bf16", "avx512f"}, ["generic", "avx2"]),
        ("aarch64", {"fp", "asimd"}, ARM_NAMES[:2]),
        ("aarch64", {"fp", "asimd", "asimddp"}, ARM_NAMES[:3]),
        ("aarch64", {"fp", "asimd", "asimddp", "i8mm"}, ARM_NAMES[:4]),
        ("aarch64", {"fp", "asimd", "asimddp", "i8mm", "bf16", "sve"}, ARM_NAMES),
        ("aarch64", BF16, ["generic"]),
        ("riscv64", {"fp", "asimd"}, ["generic"]),
    ],
)
def test_a_cpu_runs_the_rows_whose_flags_it_has(
    arch: str, flags: frozenset[str], names: list[str]
) -> None:
    assert [row.name for row in runnable_isas(flags, arch)] == names
    assert select_isa(flags, "auto", arch).name == names[-1]


def test_a_lower_row_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    assert select_isa(BF16, "avx2", "x86_64").name == "avx2"
    monkeypatch.setenv(ISA_VARIABLE, "avx512")
    assert select_isa(BF16, arch="x86_64").name == "avx512"
    assert select_isa(BF16, "generic", "x86_64").name == "generic"


@pytest.mark.parametrize("nothing", ["", "auto"])
def test_an_empty_variable_forces_nothing(monkeypatch: pytest.MonkeyPatch, nothing: str) -> None:
    monkeypatch.setenv(ISA_VARIABLE, nothing)
    assert select_isa(AVX2, arch="x86_64").name == "avx2"


def test_an_unknown_row_is_refused_with_the_known_names() -> None:
    with pytest.raises(IsaError, match=r"'avx3'.*generic, avx2, avx2_vnni, avx512"):
        select_isa(AVX2, "avx3", "x86_64")


def test_a_row_the_cpu_lacks_is_refused_with_what_is_missing() -> None:
    with pytest.raises(
        IsaError, match=r"needs avx512bw avx512cd .*; this x86_64 CPU runs generic, avx2"
    ):
        select_isa(AVX2, "avx512", "x86_64")
    with pytest.raises(IsaError, match="'neon' needs aarch64; this x86_64 CPU runs generic, avx2"):
        select_isa(AVX2, "neon", "x86_64")


def test_this_machine_runs_what_it_selects() -> None:
    row = select_isa(forced="auto")
    assert row.arch in ("any", host_arch())
    assert row.llvm_target()["mtriple"] == f"{host_arch()}-unknown-linux-gnu"


def test_the_generic_row_goes_anywhere_and_the_others_stay_at_home() -> None:
    generic, avx2 = isa_row("generic"), isa_row("avx2")
    assert generic.llvm_target("aarch64")["mtriple"] == "aarch64-unknown-linux-gnu"
    assert avx2.llvm_target("aarch64")["mtriple"] == "x86_64-unknown-linux-gnu"


@pytest.mark.parametrize("row", ISA_TABLE, ids=lambda row: row.name)
@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_llvm_knows_every_row(row: object, arch: str) -> None:
    tvm = pytest.importorskip("tvm")
    assert isinstance(row, type(ISA_TABLE[0]))
    description = row.llvm_target(arch)
    is_valid = tvm.get_global_func("target.llvm_is_valid_cpu")
    assert is_valid(row.mcpu, description["mtriple"])
    features = tvm.get_global_func("target.llvm_get_cpu_features")
    names = {str(name) for name in features(tvm.target.Target(description))}
    assert "prefer-256-bit" not in names
    assert bool(names & {"avx512bf16", "bf16"}) == row.has_bf16_dot
    assert ("amx-tile" in names) == row.has_amx
    assert bool(names & {"avxvnni", "avx512vnni", "i8mm"}) == row.has_u8_dot
    assert names & {"sse2", "neon"}
