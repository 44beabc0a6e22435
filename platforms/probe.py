"""Probing a machine: every reader once, over the live system or a recorded tree."""

from platforms.amx import granted_flags
from platforms.caches import read_caches
from platforms.cpuinfo import read_cpu_info
from platforms.hugepages import read_huge_pages
from platforms.isa import select_isa
from platforms.machine import Machine
from platforms.process_limits import read_limits
from platforms.sysfs import Tree
from platforms.topology import read_online, read_topology


def probe(root: str = "/", isa: str | None = None) -> Machine:
    """The machine whose /proc and /sys lie below `root`.

    `isa` forces a row of the ISA table; by default SANDWICH_ISA does on the live system, and
    nothing does on a recorded one. Raises IsaError for a row that is unknown or does not run here.
    """
    tree = Tree(root)
    info = read_cpu_info(tree)
    flags = granted_flags(info.flags) if root == "/" else info.flags
    forced = isa if isa is not None or root == "/" else "auto"
    online = read_online(tree, info.processors)
    caches = read_caches(tree, online)
    topology = read_topology(tree, online, info.arch, caches)
    return Machine(
        arch=info.arch,
        cpu_model=info.model,
        isa=select_isa(flags, forced, info.arch).name,
        isa_features=flags,
        caches=caches,
        topology=topology,
        hugepages=read_huge_pages(tree),
        limits=read_limits(tree, topology),
    )
