"""Recorded /proc and /sys trees of a few kinds of machines, built small in a temporary folder."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

X86_V2 = "fpu sse2 pni ssse3 sse4_1 sse4_2 popcnt cx16 lahf_lm"
X86_V3 = f"{X86_V2} avx avx2 bmi1 bmi2 f16c fma abm movbe xsave"
X86_V4 = f"{X86_V3} avx512f avx512bw avx512cd avx512dq avx512vl"
ARM_V8 = "fp asimd evtstrm aes crc32 cpuid"

Caches = dict[str, tuple[str, str]]  # "L1d" -> (size, CPUs that share it)


class RecordedTree:
    """Writes the files that the readers look for; everything not written is missing."""

    def __init__(self, root: Path) -> None:
        self.path = root
        self.root = str(root)
        self._folders: set[Path] = set()

    def write(self, path: str, text: str) -> None:
        file = self.path / path.lstrip("/")
        if file.parent not in self._folders:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._folders.add(file.parent)
        file.write_text(text + "\n")

    def cpuinfo_x86(self, num_cpus: int, flags: str, model: str) -> None:
        block = "processor\t: {}\nvendor_id\t: GenuineIntel\nmodel name\t: {}\nflags\t\t: {}\n"
        cpus = range(num_cpus)
        self.write("proc/cpuinfo", "\n".join(block.format(cpu, model, flags) for cpu in cpus))

    def cpuinfo_arm(self, parts: Iterable[tuple[int, int]], flags: str = ARM_V8) -> None:
        block = (
            "processor\t: {}\nFeatures\t: {}\nCPU implementer\t: 0x{:x}\nCPU architecture: 8\n"
            "CPU variant\t: 0x1\nCPU part\t: 0x{:x}\n"
        )
        blocks = [block.format(cpu, flags, *part) for cpu, part in enumerate(parts)]
        self.write("proc/cpuinfo", "\n".join(blocks))

    def memory(self, total_kib: int, available_kib: int) -> None:
        text = f"MemTotal: {total_kib} kB\nMemFree: 1024 kB\nMemAvailable: {available_kib} kB"
        self.write("proc/meminfo", text)

    def status(self, cpus: str, mems: str = "0") -> None:
        text = f"Name:\tpython\nCpus_allowed_list:\t{cpus}\nMems_allowed_list:\t{mems}"
        self.write("proc/self/status", text)

    def cpus(self, online: str, offline: str = "") -> None:
        self.write("sys/devices/system/cpu/online", online)
        self.write("sys/devices/system/cpu/offline", offline)

    def cpu(self, cpu: int, siblings: str, package: int, caches: Caches, **files: object) -> None:
        """`files` are further ones of the CPU's folder, with "__" for "/"."""
        base = f"sys/devices/system/cpu/cpu{cpu}"
        self.write(f"{base}/topology/thread_siblings_list", siblings)
        self.write(f"{base}/topology/physical_package_id", str(package))
        for index, (name, (size, shared)) in enumerate(caches.items()):
            folder = f"{base}/cache/index{index}"
            kind = {"d": "Data", "i": "Instruction"}.get(name[2:], "Unified")
            self.write(f"{folder}/level", name[1])
            self.write(f"{folder}/type", kind)
            self.write(f"{folder}/size", size)
            self.write(f"{folder}/coherency_line_size", "64")
            self.write(f"{folder}/shared_cpu_list", shared)
        for name, value in files.items():
            self.write(f"{base}/{name.replace('__', '/')}", str(value))

    def node(self, node: int, cpus: str, memory_kib: int, distances: str) -> None:
        base = f"sys/devices/system/node/node{node}"
        self.write(f"{base}/cpulist", cpus)
        self.write(f"{base}/distance", distances)
        self.write(f"{base}/meminfo", f"Node {node} MemTotal:       {memory_kib} kB")

    def cgroup_v2(self, own: str, mount_root: str = "/") -> None:
        self.write("proc/self/cgroup", f"0::{own}")
        mount = f"30 23 0:26 {mount_root} /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw"
        self.write("proc/self/mountinfo", f"22 1 8:1 / / rw - ext4 /dev/sda rw\n{mount}")
        self.write("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids")

    def cgroup_v1(self, own: str, mount_root: str = "/") -> None:
        groups = ["5:memory", "4:cpu,cpuacct", "3:cpuset", "1:name=systemd"]
        self.write("proc/self/cgroup", "\n".join(f"{group}:{own}" for group in groups))
        mount = "3{} 31 0:3{} {} /sys/fs/cgroup/{} ro - cgroup cgroup rw,{}"
        controllers = ["cpu,cpuacct", "cpuset", "memory", "systemd"]
        names = ["cpu,cpuacct", "cpuset", "memory", "name=systemd"]
        lines = [
            mount.format(i, i, mount_root, folder, name)
            for i, (folder, name) in enumerate(zip(controllers, names, strict=True))
        ]
        self.write("proc/self/mountinfo", "\n".join(lines))


@pytest.fixture
def tree() -> Iterator[RecordedTree]:
    """An empty tree, in memory where possible: some have a thousand files."""
    shared_memory = "/dev/shm"
    folder = shared_memory if os.access(shared_memory, os.W_OK) else None
    with TemporaryDirectory(prefix="sandwich-tree-", dir=folder) as root:
        yield RecordedTree(Path(root))


@pytest.fixture
def epyc(tree: RecordedTree) -> RecordedTree:
    """Two sockets of one node, two CCXs of 4 cores each; siblings are numbered 16 higher."""
    tree.cpuinfo_x86(32, X86_V3, "AMD  EPYC 7H12 64-Core Processor")
    tree.memory(512 << 20, 500 << 20)
    tree.status("0-31", "0-1")
    tree.cpus("0-31")
    for cpu in range(32):
        core = cpu % 16
        ccx = core // 4 * 4
        own = f"{core},{core + 16}"
        shared = f"{ccx}-{ccx + 3},{ccx + 16}-{ccx + 19}"
        caches = {
            "L1d": ("32K", own),
            "L1i": ("32K", own),
            "L2": ("512K", own),
            "L3": ("16384K", shared),
        }
        tree.cpu(cpu, own, core // 8, caches)
    tree.node(0, "0-7,16-23", 256 << 20, "10 32")
    tree.node(1, "8-15,24-31", 256 << 20, "32 10")
    return tree


@pytest.fixture
def laptop(tree: RecordedTree) -> RecordedTree:
    """Two P-cores with two threads (CPUs 0-3) and four E-cores (CPUs 4-7) under one L3."""
    tree.cpuinfo_x86(8, X86_V3, "12th Gen Intel(R) Core(TM)")
    tree.memory(16 << 20, 8 << 20)
    tree.status("0-7")
    tree.cpus("0-7")
    for cpu in range(8):
        is_big = cpu < 4
        pair = "0-1" if cpu < 2 else "2-3"
        own = pair if is_big else str(cpu)
        caches = {
            "L1d": ("48K" if is_big else "32K", own),
            "L1i": ("32K" if is_big else "64K", own),
            "L2": ("1280K", own) if is_big else ("2048K", "4-7"),
            "L3": ("12288K", "0-7"),
        }
        # The second P-core has a favoured turbo bin: faster, but not of another kind.
        max_khz = (4_700_000 if cpu < 2 else 4_800_000) if is_big else 3_500_000
        tree.cpu(cpu, own, 0, caches, cpufreq__cpuinfo_max_freq=max_khz)
    tree.node(0, "0-7", 16 << 20, "10")
    return tree


@pytest.fixture
def kunpeng(tree: RecordedTree) -> RecordedTree:
    """One socket, two nodes of 8 cores, L3 per node, clusters of four cores."""
    tree.cpuinfo_arm([(0x48, 0xD01)] * 16)
    tree.memory(64 << 20, 60 << 20)
    tree.status("0-15", "0-1")
    tree.cpus("0-15")
    for cpu in range(16):
        cluster, node = cpu // 4 * 4, cpu // 8 * 8
        caches = {
            "L1d": ("64K", str(cpu)),
            "L1i": ("64K", str(cpu)),
            "L2": ("512K", str(cpu)),
            "L3": ("32768K", f"{node}-{node + 7}"),
        }
        clusters = f"{cluster}-{cluster + 3}"
        tree.cpu(cpu, str(cpu), 0, caches, topology__cluster_cpus_list=clusters, cpu_capacity=1024)
    tree.node(0, "0-7", 32 << 20, "10 12")
    tree.node(1, "8-15", 32 << 20, "12 10")
    return tree


@pytest.fixture
def box(tree: RecordedTree) -> RecordedTree:
    """A plain virtual machine of four cores: no node folder, no cache folders, no cgroups."""
    tree.cpuinfo_x86(4, X86_V4, "Virtual CPU")
    tree.memory(8 << 20, 4 << 20)
    tree.status("0-3")
    tree.cpus("0-3")
    for cpu in range(4):
        tree.cpu(cpu, str(cpu), 0, {})
    return tree
