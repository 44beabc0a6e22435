"""A machine as text for a person: what was found, what limits apply, what will be used and why."""

from collections.abc import Iterator
from textwrap import wrap

from platforms.caches import Cache
from platforms.isa import runnable_isas
from platforms.machine import Machine
from platforms.process_limits import Limits
from platforms.sysfs import format_cpu_list
from platforms.topology import LlcGroup, NumaNode, Topology

_LABEL_WIDTH = 14
_TEXT_WIDTH = 84
_KINDS = {"core": "performance", "atom": "efficiency", "lowpower": "low-power"}


def render(machine: Machine) -> str:
    """Several lines of text, without a newline at the end."""
    lines = [
        *_labelled("CPU", [f"{machine.cpu_model}, {machine.arch}, machine {machine.fingerprint}"]),
        *_labelled("ISA", _isa(machine)),
        *_labelled("Caches", [_cache(cache) for cache in machine.caches] or ["none shown here"]),
        *_labelled("Topology", _topology(machine.topology)),
        *_labelled("Memory", _memory(machine.limits)),
        *_labelled("Huge pages", _huge_pages(machine)),
        *_labelled("Limits", _limits(machine.limits)),
        *_labelled("CPUs", _selection(machine.limits)),
        *_labelled("Used", [_used(machine)]),
    ]
    return "\n".join(lines)


def format_bytes(nbytes: int) -> str:
    """Three digits and a binary unit: "32 KiB", "23.5 GiB"."""
    value, unit = float(nbytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"


def _labelled(label: str, texts: list[str]) -> Iterator[str]:
    for i, text in enumerate(texts):
        yield f"{label if i == 0 else '':{_LABEL_WIDTH}}{text}".rstrip()


def _isa(machine: Machine) -> list[str]:
    row = machine.isa_row
    runnable = [r.name for r in runnable_isas(machine.isa_features, machine.arch)]
    dot = ", bf16 dot products" if row.has_bf16_dot else ""
    features = " ".join(machine.vector_features) or "no vector features"
    return [
        f"{row.name}: {row.lanes} fp32 lanes, {row.num_vector_registers} registers{dot}",
        f"runs {' '.join(runnable)}",
        *wrap(features, _TEXT_WIDTH, break_on_hyphens=False),
    ]


def _cache(cache: Cache) -> str:
    size = "unknown" if cache.nbytes is None else format_bytes(cache.nbytes)
    counts = sorted({len(cpus) for cpus in cache.instances})
    sharing = " or ".join(map(str, counts))
    cpus = "CPU" if counts == [1] else "CPUs"
    return f"{cache.name:4}{size:>8}  x {len(cache.instances):<4}each for {sharing} {cpus}"


def _topology(topology: Topology) -> list[str]:
    cores = list(topology.cores())
    num_nodes = len({node.node_id for node in topology.nodes()})
    counts = [
        _count(len(topology.sockets), "socket"),
        _count(num_nodes, "NUMA node"),
        _count(len(list(topology.groups())), "cache group"),
        _count(len(cores), "core"),
        _count(len(topology.cpus), "CPU"),
    ]
    lines = [", ".join(counts)]
    for socket in topology.sockets:
        lines.append(f"socket {socket.socket_id}")
        for node in socket.nodes:
            lines.append(f"  {_node(node)}")
            lines.extend(f"    {_group(group)}" for group in node.groups)
    lines.extend(f"{_node(node)}, memory only" for node in topology.cpuless_nodes)
    if topology.offline:
        lines.append(f"offline: {format_cpu_list(topology.offline)}")
    return lines


def _node(node: NumaNode) -> str:
    memory = "" if node.memory_bytes is None else f", {format_bytes(node.memory_bytes)}"
    distances = " ".join(map(str, node.distances)) if len(node.distances) > 1 else ""
    return f"node {node.node_id}{memory}{f', distances {distances}' if distances else ''}"


def _group(group: LlcGroup) -> str:
    size = "" if group.cache_bytes is None else f" {format_bytes(group.cache_bytes)}"
    name = "no shared cache known" if group.shared == "node" else f"{group.shared}{size}"
    kinds = [_KINDS[core.kind] for core in group.cores if core.kind in _KINDS]
    mix = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    cores = f"{_count(len(group.cores), 'core')}{f' ({mix})' if mix else ''}"
    return f"{name}: {cores}, CPUs {format_cpu_list(group.cpus)}"


def _memory(limits: Limits) -> list[str]:
    total, available = limits.memory_total_bytes, limits.memory_available_bytes
    return [f"{format_bytes(total)}, of which {format_bytes(available)} can be allocated now"]


def _huge_pages(machine: Machine) -> list[str]:
    state = machine.hugepages
    size = format_bytes(state.thp_bytes)
    lines = [f"transparent ({size}): {state.thp_mode}, defrag {state.thp_defrag}"]
    if state.problem:
        lines.append(state.problem)
    lines.extend(
        f"explicit ({format_bytes(pool.page_bytes)}): {pool.num_free} of {pool.num_pages} free"
        for pool in state.pools
        if pool.num_pages
    )
    return lines


def _limits(limits: Limits) -> list[str]:
    cgroup = limits.cgroup
    quota = "none"
    if cgroup.cpu_quota is not None:
        quota = f"{cgroup.cpu_quota:g} cores  ({cgroup.cpu_quota_source})"
    memory = "none"
    if limits.memory_limit_bytes is not None:
        memory = f"{format_bytes(limits.memory_limit_bytes)}  ({cgroup.memory_limit_source})"
    cpuset = "none" if cgroup.cpuset is None else format_cpu_list(cgroup.cpuset)
    rows = {
        "affinity": format_cpu_list(limits.affinity),
        "cpuset": cpuset,
        "CPU quota": quota,
        "memory": memory,
        "memory nodes": format_cpu_list(limits.memory_nodes),
        "cgroups": cgroup.version,
    }
    return [f"{name:14}{text}" for name, text in rows.items()]


def _selection(limits: Limits) -> list[str]:
    return [
        f"{step.rule:14}{len(step.cpus):>4}  {format_cpu_list(step.cpus)}"
        f"{f'  ({step.remark})' if step.remark else ''}"
        for step in limits.selection
    ]


def _used(machine: Machine) -> str:
    cpus = machine.usable_cpus()
    noun = "CPU" if len(cpus) == 1 else "CPUs"
    return f"{_count(len(cpus), 'core')}, one thread each, on {noun} {format_cpu_list(cpus)}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
