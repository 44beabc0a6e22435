"""The limits that control groups put on this process: version 1, version 2, and both at once.

A limit may sit on any ancestor, so every file is read from the process's own group up to the mount.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from platforms.sysfs import CpuList, Tree

_UNLIMITED_V1 = 1 << 60  # version 1 writes "no limit" as a number of pages close to 2**63 bytes
_CONTROLLERS = ("cpu", "cpuset", "memory")


@dataclass(frozen=True)
class CgroupLimits:
    """The tightest limits on the way up; None where there is none. Sources are file names."""

    version: str  # "v1", "v2", "v1+v2" or "none"
    cpuset: CpuList | None
    cpu_quota: float | None  # cores
    cpu_quota_source: str | None
    memory_limit_bytes: int | None
    memory_limit_source: str | None
    memory_headroom_bytes: int | None  # what the fullest of the limited groups can still take


class _Memory(NamedTuple):
    limit: int
    source: str
    headroom: int


class _Mount(NamedTuple):
    fstype: str
    options: list[str]
    root: str  # the group that the mount shows as its top
    point: str


def read_cgroup_limits(tree: Tree) -> CgroupLimits:
    paths = _own_paths(tree)
    versions: set[str] = set()
    quotas: list[tuple[float, str]] = []
    memories: list[_Memory] = []
    cpusets: list[CpuList] = []
    for mount in _mounts(tree):
        if mount.fstype == "cgroup2" and "" in paths:
            groups = list(_groups_upwards(mount, paths[""]))
            if set(_CONTROLLERS) & set(
                (tree.read(f"{groups[-1]}/cgroup.controllers") or "").split()
            ):
                versions.add("v2")
            quotas += [found for group in groups if (found := _quota_v2(tree, group))]
            memories += [found for group in groups for found in _memory_v2(tree, group)]
            cpusets += _cpuset(tree, groups, ("cpuset.cpus.effective",))
        for controller in _CONTROLLERS if mount.fstype == "cgroup" else ():
            if controller not in mount.options or controller not in paths:
                continue
            versions.add("v1")
            groups = list(_groups_upwards(mount, paths[controller]))
            if controller == "cpu":
                quotas += [found for group in groups if (found := _quota_v1(tree, group))]
            elif controller == "memory":
                memories += [found for group in groups for found in _memory_v1(tree, group)]
            else:
                cpusets += _cpuset(tree, groups, ("cpuset.effective_cpus", "cpuset.cpus"))
    quota = min(quotas, default=(None, None))
    limit = min(memories, default=None)
    return CgroupLimits(
        version="+".join(sorted(versions)) or "none",
        cpuset=tuple(sorted(set.intersection(*map(set, cpusets)))) if cpusets else None,
        cpu_quota=quota[0],
        cpu_quota_source=quota[1],
        memory_limit_bytes=limit.limit if limit else None,
        memory_limit_source=limit.source if limit else None,
        memory_headroom_bytes=min((m.headroom for m in memories), default=None),
    )


def _own_paths(tree: Tree) -> dict[str, str]:
    """Controller -> the process's group in that hierarchy; "" stands for version 2."""
    paths = {}
    for line in (tree.read("proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            paths[controller] = path
    return paths


def _mounts(tree: Tree) -> Iterator[_Mount]:
    for line in (tree.read("proc/self/mountinfo") or "").splitlines():
        where, _, what = line.partition(" - ")
        where_words, what_words = where.split(" "), what.split(" ")
        if what_words[0] in ("cgroup", "cgroup2") and len(where_words) > 4:
            options = what_words[-1].split(",")
            yield _Mount(what_words[0], options, where_words[3], where_words[4])


def _groups_upwards(mount: _Mount, path: str) -> Iterator[str]:
    """Directories of the process's own group, its parent, and so on up to the mount.

    Inside a container the mount may show a part of the hierarchy only (`mount.root`), and the path
    may lie outside of it; then the top of the mount is as near as one can get.
    """
    top = mount.root.rstrip("/")
    below = path.removeprefix(top) if path == top or path.startswith(f"{top}/") else ""
    names = [name for name in below.split("/") if name]
    if ".." in names:
        names = []
    for depth in range(len(names), -1, -1):
        yield "/".join([mount.point, *names[:depth]])


def _quota_v2(tree: Tree, group: str) -> tuple[float, str] | None:
    words = (tree.read(f"{group}/cpu.max") or "").split()
    if len(words) != 2 or not words[0].isdecimal():  # "max 100000" is no limit
        return None
    return int(words[0]) / int(words[1]), f"{group}/cpu.max"


def _quota_v1(tree: Tree, group: str) -> tuple[float, str] | None:
    quota = tree.read_int(f"{group}/cpu.cfs_quota_us")
    period = tree.read_int(f"{group}/cpu.cfs_period_us")
    if quota is None or quota <= 0 or not period:
        return None
    return quota / period, f"{group}/cpu.cfs_quota_us"


def _memory_v2(tree: Tree, group: str) -> Iterator[_Memory]:
    """The hard limit and the one at which the kernel throttles: going over either is fatal here."""
    for name in ("memory.max", "memory.high"):
        limit = tree.read_int(f"{group}/{name}")
        if limit is not None:
            used = tree.read_int(f"{group}/memory.current") or 0
            used -= _memory_stat(tree, group).get("inactive_file", 0)
            yield _Memory(limit, f"{group}/{name}", max(0, limit - used))


def _memory_v1(tree: Tree, group: str) -> Iterator[_Memory]:
    stat = _memory_stat(tree, group)
    used = tree.read_int(f"{group}/memory.usage_in_bytes") or 0
    used -= stat.get("total_inactive_file", 0)
    # The second also counts ancestors that a container cannot see.
    limits = {
        "memory.limit_in_bytes": tree.read_int(f"{group}/memory.limit_in_bytes"),
        "memory.stat": stat.get("hierarchical_memory_limit"),
    }
    for name, limit in limits.items():
        if limit is not None and limit < _UNLIMITED_V1:
            yield _Memory(limit, f"{group}/{name}", max(0, limit - used))


def _memory_stat(tree: Tree, group: str) -> dict[str, int]:
    stat = {}
    for line in (tree.read(f"{group}/memory.stat") or "").splitlines():
        key, _, value = line.partition(" ")
        if value.isdecimal():
            stat[key] = int(value)
    return stat


def _cpuset(tree: Tree, groups: list[str], names: tuple[str, ...]) -> list[CpuList]:
    """The nearest group's set (it already respects the ancestors'), as a list of none or one."""
    for group in groups:
        for name in names:
            if cpus := tree.read_cpu_list(f"{group}/{name}"):
                return [cpus]
    return []
