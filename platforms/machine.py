"""A machine as one frozen value: what `probe` found, printed as JSON and read back without loss."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from platforms.caches import Cache
from platforms.hugepages import HugePages
from platforms.isa import IsaRow, isa_row
from platforms.process_limits import Limits
from platforms.record import RecordError, from_record, to_record
from platforms.sysfs import CpuList
from platforms.topology import Topology

# Flags that name vector instructions; the others come and go with the kernel.
_VECTOR_PREFIXES = {
    "x86_64": ("sse", "ssse", "avx", "fma", "f16c", "amx"),
    "aarch64": ("asimd", "sve", "sme", "bf16", "i8mm"),
}
# Written for readers of the JSON; computed or measured again, so not part of a machine.
_DERIVED = ("fingerprint", "usable_cpus", "calibration")


@dataclass(frozen=True)
class Machine:
    """Facts about a machine and about what this process may use of it."""

    arch: str  # "x86_64", "aarch64", ...
    cpu_model: str
    isa: str  # name of the row in ISA_TABLE to generate code for
    isa_features: frozenset[str]  # all flags that every CPU has, as /proc/cpuinfo spells them
    caches: tuple[Cache, ...]
    topology: Topology
    hugepages: HugePages
    limits: Limits

    @property
    def isa_row(self) -> IsaRow:
        return isa_row(self.isa)

    @property
    def vector_features(self) -> tuple[str, ...]:
        """The flags that name vector instructions, sorted."""
        prefixes = _VECTOR_PREFIXES.get(self.arch, ())
        return tuple(sorted(flag for flag in self.isa_features if flag.startswith(prefixes)))

    def usable_cpus(self) -> CpuList:
        """One logical CPU for each physical core this process should work on; at least one."""
        return self.limits.usable_cpus()

    def cache_bytes(self, level: int, cpu: int | None = None) -> int | None:
        """Size of the data or unified cache of that level that a CPU reads through.

        `cpu` is by default the first usable one. None if the machine has no such cache or hides it.
        """
        wanted = self.usable_cpus()[0] if cpu is None else cpu
        for cache in self.caches:
            if cache.level == level and any(wanted in instance for instance in cache.instances):
                return cache.nbytes
        return None

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits that name this hardware, whatever the process is allowed to use of it.

        Covers model, vector features, caches and the shape of the topology; neither limits, memory,
        numbering of CPUs nor a forced ISA. Tuned records are kept under it.
        """
        shape = [
            [[[len(core.cpus) for core in g.cores] for g in node.groups] for node in socket.nodes]
            for socket in self.topology.sockets
        ]
        caches = [
            (c.level, c.kind, c.nbytes, c.line_bytes, [len(cpus) for cpus in c.instances])
            for c in self.caches
        ]
        facts = (self.arch, self.cpu_model, self.vector_features, caches, shape)
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]

    def to_json(self) -> str:
        """The machine as a JSON object; CPU sets are written as the kernel does, "0-3,8"."""
        record = to_record(self, Machine)
        record["fingerprint"] = self.fingerprint
        record["usable_cpus"] = list(self.usable_cpus())
        return json.dumps(record, indent=2)

    @staticmethod
    def from_json(text: str) -> "Machine":
        """The inverse of `to_json`. Raises RecordError, naming the place, for anything else."""
        try:
            data: Any = json.loads(text)
        except ValueError as error:
            raise RecordError(f"a machine record is a JSON object: {error}") from error
        if isinstance(data, dict):
            data = {key: value for key, value in data.items() if key not in _DERIVED}
        machine = from_record(data, Machine, "machine")
        assert isinstance(machine, Machine)
        if not machine.limits.selection:
            raise RecordError("machine.limits.selection: is empty; its last step is what is used")
        isa_row(machine.isa)
        return machine
