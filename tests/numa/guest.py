"""The work of the guest: places memory with the project's own code and prints, as one line of JSON,
what the kernel says of it.

What the kernel says is read here with plain code, not with the readers that are on trial.
"""

import ctypes
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from codegen.layout.model import DEFAULT_BLOCK_SIZE, KvLayout, ModelLayout
from platforms.isa import IsaRow
from platforms.machine import Machine
from platforms.memory import Arena
from platforms.placement import NodeRange, nodes_of_pages
from platforms.probe import probe
from sandwich.executor.numa_placement import place
from sandwich.models.presets import preset
from schedules.tiles.default_plans import panel_width
from schedules.topotree import TopoTree, candidates

SYSTEM = Path("/sys/devices/system")
CGROUP = Path("/sys/fs/cgroup")
HUGE, SMALL = 2 << 20, 4096
SHAPE = replace(preset("llama-3.2-1b"), num_layers=2, vocab_size=8192).shape(2048)
NUM_BLOCKS = 512  # of 64 KiB, in the KV cache

_libc = ctypes.CDLL(None, use_errno=True)
Report = dict[str, Any]


def main() -> None:
    for kind, where in (
        (b"proc", b"/proc"),
        (b"sysfs", b"/sys"),
        (b"devtmpfs", b"/dev"),
        (b"cgroup2", bytes(CGROUP)),
    ):
        if _libc.mount(kind, where, kind, 0, None):
            raise OSError(ctypes.get_errno(), f"mount {where.decode()}")
    machine = probe()
    cpus = candidates(TopoTree.of(machine))[0].cpus
    isa = machine.isa_row
    layout = ModelLayout.build(SHAPE, "bfloat16", isa.lanes, panel_width(isa))
    kv = cache_layout(isa, NUM_BLOCKS)
    os.sched_setaffinity(0, {0})  # whatever is not placed is now first touched from node 0
    report = {"topology": topology(machine), "cpus": cpus}
    placed, unplaced = place(machine, cpus, layout, kv), place(machine, cpus, layout, kv, False)
    report["weights"] = weights(layout, cpus, placed.nodes, placed.weights)
    report["interleaved"] = weights(layout, cpus, unplaced.nodes, unplaced.weights)
    report["cache"] = cache(kv, cpus, placed.nodes, placed.cache)
    # Pages without a policy it unmaps for moments, to see who uses them; move_pages misses those.
    Path("/proc/sys/kernel/numa_balancing").write_text("0")
    report["untold"] = weights(layout, cpus, (), ())
    report["pool"] = fill_pool(num_pages=256)
    report["explicit"] = weights(layout, cpus, placed.nodes, placed.weights)
    report["group"] = in_a_group(layout, kv)
    print("REPORT " + json.dumps(report), flush=True)


def topology(machine: Machine) -> Report:
    """Nodes and their LLC groups: as probed, and as the kernel lists them."""
    online = range(os.cpu_count() or 0)
    caches = {c: text(SYSTEM / f"cpu/cpu{c}/cache/index3/shared_cpu_list") for c in online}
    return {
        "nodes": [[group.cpus for group in node.groups] for node in machine.topology.nodes()],
        "usable": machine.usable_cpus(),
        "candidates": [candidate.name for candidate in candidates(TopoTree.of(machine))],
        "kernel_nodes": [text(path / "cpulist") for path in sorted(SYSTEM.glob("node/node*"))],
        "kernel_caches": list(dict.fromkeys(caches.values())),
    }


def weights(
    layout: ModelLayout, cpus: Sequence[int], nodes: Sequence[int], ranges: Sequence[NodeRange]
) -> Report:
    """Places, fills and checks the arena of a model's weights; who reads what is computed anew."""
    before = free_bytes()
    arena = Arena(layout.weight_bytes, "weights", nodes, ranges)
    arrays = {n: arena.array(s.shape, s.dtype) for n, s in layout.tensor_specs().items()}
    fill(arena, arrays.values())
    num_read = num_local = 0
    for role, matrix_layout in layout.matrices.items():
        panels = matrix_layout.panels
        for matrix in np.atleast_2d(arrays[role]):
            for core, cpu in enumerate(cpus):
                first = core * panels.num_panels // len(cpus) * panels.panel
                last = (core + 1) * panels.num_panels // len(cpus) * panels.panel
                mine = matrix[first * panels.k_words : last * panels.k_words]
                found = nodes_of_pages(pages_of(mine))
                num_read += len(found)
                num_local += int((found == node_of(cpu)).sum())
    return checked(arena, ranges, before) | {"percent_local": 100 * num_local / num_read}


def cache(
    kv: KvLayout, cpus: Sequence[int], nodes: Sequence[int], ranges: Sequence[NodeRange]
) -> Report:
    """The same for the KV cache, where core c reads its share of the heads."""
    before = free_bytes()
    arena = Arena(kv.keys.arena_nbytes + kv.values.arena_nbytes, "KV cache", nodes, ranges)
    arrays = [arena.array(spec.shape, spec.dtype) for spec in (kv.keys, kv.values)]
    fill(arena, arrays)
    num_read = num_local = 0
    for array in arrays:
        for layer in array:
            for core, cpu in enumerate(cpus):
                first, last = (c * kv.num_kv_heads // len(cpus) for c in (core, core + 1))
                found = nodes_of_pages(pages_of(layer[first:last]))
                num_read += len(found)
                num_local += int((found == node_of(cpu)).sum())
    return checked(arena, ranges, before) | {"percent_local": 100 * num_local / num_read}


def fill(arena: Arena, arrays: Any) -> None:
    for array in arrays:
        array.view(np.uint8)[...] = 1
    assert arena.nbytes_used == arena.nbytes


def checked(arena: Arena, ranges: Sequence[NodeRange], before: Sequence[int]) -> Report:
    """The project's own count, and three of the kernel's: numa_maps, free memory, huge pages."""
    start = arena._start
    taken = [old - new for old, new in zip(before, free_bytes(), strict=True)]
    count = arena.count_pages(ranges) if ranges else None
    return {
        "nbytes": arena.nbytes,
        "percent_counted": count and count.percent_at_home,
        "numa_maps_bytes": numa_maps(start, start + arena.nbytes),
        "taken_bytes": taken,
        "huge_page_bytes": arena.huge_page_bytes(),
        "is_explicit": arena.has_explicit_pages,
    }


def in_a_group(layout: ModelLayout, kv: KvLayout) -> Report:
    """What is left in a control group with CPUs and memory of node 1, half of a quota, and fewer
    explicit huge pages than the pool has.
    """
    (CGROUP / "cgroup.subtree_control").write_text("+cpu +cpuset +hugetlb")
    pod = CGROUP / "pod"
    pod.mkdir()
    limits = {
        "cpuset.cpus": "8-15",
        "cpuset.mems": "1",
        "cpu.max": "350000 100000",
        "hugetlb.2MB.max": str(8 * HUGE),
    }
    for name, value in limits.items():
        (pod / name).write_text(value)
    (pod / "cgroup.procs").write_text(str(os.getpid()))
    with warnings() as said:
        machine = probe()
        arena = Arena(32 * HUGE, "weights")
        arena.array((arena.nbytes,), np.uint8)[:] = 1
    return {
        "usable": machine.usable_cpus(),
        "memory_nodes": machine.limits.memory_nodes,
        "placement_nodes": place(machine, machine.usable_cpus(), layout, kv).nodes,
        "is_explicit": arena.has_explicit_pages,
        "numa_maps_bytes": numa_maps(arena._start, arena._start + arena.nbytes),
        "warnings": said,
    }


def cache_layout(isa: IsaRow, num_blocks: int) -> KvLayout:
    sizes = (SHAPE.num_layers, SHAPE.num_kv_heads, SHAPE.head_dim)
    return KvLayout(*sizes, DEFAULT_BLOCK_SIZE, isa.lanes, "bfloat16", num_blocks)


def fill_pool(num_pages: int) -> list[int]:
    """Asks for explicit huge pages as an administrator does; how many of them each node has."""
    Path("/proc/sys/vm/nr_hugepages").write_text(str(num_pages))
    pools = sorted(SYSTEM.glob("node/node*/hugepages/hugepages-2048kB/nr_hugepages"))
    return [int(text(pool)) for pool in pools]


@contextmanager
def warnings() -> Iterator[list[str]]:
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    yield messages
    logging.getLogger().removeHandler(handler)


def text(path: Path) -> str:
    return path.read_text().strip()


def node_of(cpu: int) -> int:
    """From the link that the kernel puts into the folder of a CPU."""
    (link,) = (SYSTEM / f"cpu/cpu{cpu}").glob("node*")
    return int(link.name.removeprefix("node"))


def free_bytes() -> list[int]:
    """Free memory of each node."""
    found = []
    for path in sorted(SYSTEM.glob("node/node*/meminfo")):
        (line,) = (line for line in path.read_text().splitlines() if "MemFree:" in line)
        found.append(int(line.split()[3]) << 10)
    return found


def pages_of(array: Any) -> Any:
    """An address in every small page whose first byte the array holds."""
    start = array.ctypes.data
    return np.arange(-(-start // SMALL) * SMALL, start + array.nbytes, SMALL)


def numa_maps(start: int, stop: int) -> dict[str, int]:
    """Bytes on each node of the mappings that begin in [start, stop)."""
    found: Counter[str] = Counter()
    for line in Path("/proc/self/numa_maps").read_text().splitlines():
        words = line.split()
        if start <= int(words[0], 16) < stop:
            pairs = dict(word.split("=") for word in words[2:] if "=" in word)
            page_bytes = int(pairs.get("kernelpagesize_kB", "4")) << 10
            for name, value in pairs.items():
                if name[0] == "N" and name[1:].isdecimal():
                    found[name[1:]] += int(value) * page_bytes
    return dict(found)


if __name__ == "__main__":
    main()
