"""What this process may use of the machine, and the choice of CPUs that follows from it.

Limits come from affinity, control groups and memory; the choice is made step by step, and every
step is kept, so that it can be shown.
"""

import math
from dataclasses import dataclass

from platforms.cgroup import CgroupLimits, read_cgroup_limits
from platforms.sysfs import CpuList, Tree, parse_cpu_list
from platforms.topology import Core, Topology

# Cores slower than this part of the fastest are left out: with a static split all wait for them.
# Cores that differ by turbo bins only are within a few percent; E-cores are near 0.6 to 0.8.
_EQUAL_SPEED = 0.82


# From so many cores on, one is left to the server's own threads: event loop, tokeniser, metrics. It
# costs a few percent at most, while a worker that is interrupted stops all others at a barrier.
_SERVER_CORE_FROM = 16


@dataclass(frozen=True)
class SelectionStep:
    """One narrowing of the set of CPUs: the rule, what it leaves, and a remark on what it did."""

    rule: str
    cpus: CpuList
    remark: str


@dataclass(frozen=True)
class Limits:
    """The limits that apply to this process."""

    affinity: CpuList
    cgroup: CgroupLimits
    memory_nodes: CpuList  # NUMA nodes that memory may come from
    memory_total_bytes: int  # of the machine
    memory_limit_bytes: int | None  # None: nothing tighter than the machine itself
    memory_available_bytes: int  # what can still be allocated: by the machine, and within the limit
    selection: tuple[SelectionStep, ...]  # from all online CPUs to those that are used, never empty

    @property
    def cpuset(self) -> CpuList | None:
        return self.cgroup.cpuset

    @property
    def cpu_quota(self) -> float | None:
        """Cores' worth of time; None without a limit."""
        return self.cgroup.cpu_quota

    def usable_cpus(self) -> CpuList:
        """One logical CPU for each physical core this process should work on; at least one."""
        return self.selection[-1].cpus


def read_limits(tree: Tree, topology: Topology) -> Limits:
    status = tree.read_fields("proc/self/status")
    memory = tree.read_fields("proc/meminfo")
    cgroup = read_cgroup_limits(tree)
    total = _kib(memory.get("MemTotal"))
    available = _kib(memory.get("MemAvailable") or memory.get("MemFree"))
    limit = cgroup.memory_limit_bytes
    headroom = cgroup.memory_headroom_bytes
    affinity = parse_cpu_list(status.get("Cpus_allowed_list", "")) or topology.cpus
    return Limits(
        affinity=affinity,
        cgroup=cgroup,
        memory_nodes=parse_cpu_list(status.get("Mems_allowed_list", "")) or (0,),
        memory_total_bytes=total,
        memory_limit_bytes=None if limit is not None and 0 < total <= limit else limit,
        memory_available_bytes=available if headroom is None else min(available, headroom),
        selection=select_cpus(topology, affinity, cgroup.cpuset, cgroup.cpu_quota),
    )


def select_cpus(
    topology: Topology, affinity: CpuList, cpuset: CpuList | None, cpu_quota: float | None
) -> tuple[SelectionStep, ...]:
    """Narrows all online CPUs down to those to be used, one step per rule.

    A set that would leave nothing (a recorded or faked tree) is ignored, and says so. Cores are cut
    to the quota in the order of the tree, so that those kept are near each other.
    """
    steps = [SelectionStep("online", topology.cpus, "")]
    _intersect(steps, "affinity", affinity)
    if cpuset is not None:
        _intersect(steps, "cpuset", cpuset)
    allowed = set(steps[-1].cpus)
    cores = [core for core in topology.cores() if allowed & set(core.cpus)]
    _keep(steps, "one per core", cores, "SMT siblings share one core's vector units")
    cores = _equal_cores(cores)
    _keep(steps, "equal cores", cores, "every step would wait for the slower cores")
    if cpu_quota is not None:
        count = max(1, math.floor(cpu_quota))
        remark = f"the quota is {cpu_quota:g} cores; more threads would be throttled"
        cores = cores[:count]
        _keep(steps, "quota", cores, remark)
    has_siblings = any(len(allowed & set(core.cpus)) > 1 for core in cores)
    has_time = cpu_quota is None or cpu_quota - len(cores) >= 1
    if len(cores) >= _SERVER_CORE_FROM and not (has_siblings and has_time):
        # SMT siblings of the workers' CPUs would do, if the quota has time for them; else a core
        # has to.
        _keep(steps, "server", cores[:-1], "a core is left for the server's own threads")
    return tuple(steps)


def _intersect(steps: list[SelectionStep], rule: str, cpus: CpuList) -> None:
    before = steps[-1].cpus
    left = tuple(sorted(set(before) & set(cpus)))
    remark = "" if left == before else f"{len(before) - len(left)} not allowed"
    if not left:
        left, remark = before, "ignored: it names no CPU that is left"
    steps.append(SelectionStep(rule, left, remark))


def _keep(steps: list[SelectionStep], rule: str, cores: list[Core], remark: str) -> None:
    """Keeps the first allowed CPU of each of these cores; the remark stands only if others go."""
    before = steps[-1].cpus
    allowed = set(before)
    left = tuple(sorted(next(cpu for cpu in core.cpus if cpu in allowed) for core in cores))
    steps.append(SelectionStep(rule, left, remark if left != before else ""))


def _equal_cores(cores: list[Core]) -> list[Core]:
    """The fastest cores and those nearly as fast, by kind, scheduler capacity or top frequency."""
    if any(core.kind == "core" for core in cores):
        cores = [core for core in cores if core.kind == "core"]
    for speeds in ([core.capacity for core in cores], [core.max_khz for core in cores]):
        known = [speed for speed in speeds if speed]
        if len(known) == len(cores):
            least = _EQUAL_SPEED * max(known)
            return [core for core, speed in zip(cores, known, strict=True) if speed >= least]
    return cores


def _kib(text: str | None) -> int:
    """Bytes of "24684096 kB"; 0 if there is no such thing."""
    number = (text or "").partition(" ")[0]
    return int(number) << 10 if number.isdecimal() else 0
