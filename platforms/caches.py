"""The data and unified caches of a machine: how large, how many, and which CPUs share one."""

from dataclasses import dataclass

from platforms.sysfs import CpuList, Tree

_CPU = "sys/devices/system/cpu"
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_DEFAULT_LINE_BYTES = 64


@dataclass(frozen=True)
class Cache:
    """All caches of one level and shape. Hybrid machines have more than one entry per level."""

    level: int
    kind: str  # "data" or "unified"
    nbytes: int | None  # of one instance; None where the firmware does not tell
    line_bytes: int
    instances: tuple[CpuList, ...]  # the online CPUs that share each instance

    @property
    def name(self) -> str:
        return f"L{self.level}d" if self.kind == "data" else f"L{self.level}"


def read_caches(tree: Tree, online: CpuList) -> tuple[Cache, ...]:
    """The caches from sysfs, L1 first; empty where the kernel or the hypervisor shows none."""
    found: dict[tuple[int, str, int | None, int], list[CpuList]] = {}
    seen: set[tuple[int, int]] = set()  # (cpu, index): known already from a CPU that shares it
    for cpu in online:
        for index in tree.numbered(f"{_CPU}/cpu{cpu}/cache", "index"):
            if (cpu, index) in seen:
                continue
            base = f"{_CPU}/cpu{cpu}/cache/index{index}"
            level, kind = tree.read_int(f"{base}/level"), (tree.read(f"{base}/type") or "").lower()
            if level is None or kind not in ("data", "unified"):
                continue
            shared = set(tree.read_cpu_list(f"{base}/shared_cpu_list") or ()) | {cpu}
            instance = tuple(c for c in online if c in shared)
            seen.update((c, index) for c in instance)
            line_bytes = tree.read_int(f"{base}/coherency_line_size") or _DEFAULT_LINE_BYTES
            shape = (level, kind, _parse_size(tree.read(f"{base}/size")), line_bytes)
            found.setdefault(shape, []).append(instance)
    caches = [Cache(*shape, tuple(instances)) for shape, instances in found.items()]
    return tuple(sorted(caches, key=lambda cache: (cache.level, cache.instances)))


def _parse_size(text: str | None) -> int | None:
    """Bytes of "512K" or "32M"; None if there is no such number."""
    number = (text or "").rstrip("KMG")
    if not number.isdecimal() or int(number) == 0:
        return None
    return int(number) * _UNITS.get((text or "")[-1], 1)
