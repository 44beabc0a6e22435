"""What /proc/cpuinfo says: the architecture, the model's name and the instruction set features."""

import platform
from dataclasses import dataclass

from platforms.sysfs import Tree

_ARCH_NAMES = {"amd64": "x86_64", "arm64": "aarch64"}

# ARM prints numbers for its cores; the names are from Linux's arch/arm64/include/asm/cputype.h.
_ARM_PARTS = {
    (0x41, 0xD03): "Cortex-A53",
    (0x41, 0xD05): "Cortex-A55",
    (0x41, 0xD07): "Cortex-A57",
    (0x41, 0xD08): "Cortex-A72",
    (0x41, 0xD0B): "Cortex-A76",
    (0x41, 0xD0C): "Neoverse-N1",
    (0x41, 0xD40): "Neoverse-V1",
    (0x41, 0xD49): "Neoverse-N2",
    (0x41, 0xD4F): "Neoverse-V2",
    (0x41, 0xD84): "Neoverse-V3",
    (0x41, 0xD8E): "Neoverse-N3",
    (0x46, 0x001): "A64FX",
    (0x48, 0xD01): "Kunpeng-920",
    (0x48, 0xD02): "Kunpeng-930",
    (0xC0, 0xAC3): "Ampere-1",
    (0xC0, 0xAC4): "Ampere-1a",
}


@dataclass(frozen=True)
class CpuInfo:
    """Facts common to all CPUs of the machine."""

    arch: str  # "x86_64", "aarch64", or what the kernel calls anything else
    model: str
    flags: frozenset[str]  # as /proc/cpuinfo spells them; only those that every CPU has
    processors: tuple[int, ...]


def host_arch() -> str:
    """The architecture this interpreter runs on, under its LLVM name."""
    machine = platform.machine().lower()
    return _ARCH_NAMES.get(machine, machine)


def read_cpu_info(tree: Tree) -> CpuInfo:
    """Reads proc/cpuinfo; without it the flags are empty, so that only the generic ISA row runs."""
    text = tree.read("proc/cpuinfo") or ""
    values: dict[str, dict[str, None]] = {}  # key -> distinct values, in order of appearance
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            values.setdefault(key.strip(), {})[value.strip()] = None
    feature_lines = values.get("flags") or values.get("Features") or {}
    flags = [frozenset(line.split()) for line in feature_lines]
    return CpuInfo(
        arch=_arch(values),
        model=_model_name(values),
        flags=frozenset.intersection(*flags) if flags else frozenset(),
        processors=tuple(sorted(int(p) for p in values.get("processor", {}) if p.isdecimal())),
    )


def _arch(values: dict[str, dict[str, None]]) -> str:
    if "CPU implementer" in values:
        return "aarch64"
    return "x86_64" if "vendor_id" in values and "flags" in values else host_arch()


def _model_name(values: dict[str, dict[str, None]]) -> str:
    if "CPU implementer" in values and "CPU part" in values:
        implementers, parts = values["CPU implementer"], values["CPU part"]
        implementer = int(next(iter(implementers)), 16)
        return " + ".join(_arm_part_name(implementer, int(part, 16)) for part in parts)
    for key in ("model name", "Model", "cpu model", "cpu"):
        for value in values.get(key, {}):
            return " ".join(value.split())
    return "unknown"


def _arm_part_name(implementer: int, part: int) -> str:
    return _ARM_PARTS.get((implementer, part), f"ARM 0x{implementer:02x}:0x{part:03x}")
