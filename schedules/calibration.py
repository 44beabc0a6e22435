"""What was measured of a machine, kept in a file, and the rates of the cost model that follow.

A calibration belongs to a fingerprint and an ISA. It also finds the groups of cores that sysfs
hides, as virtual machines without L3 ids do: cores of one group pass a cache line faster than
others.
"""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from codegen.spec import Phase, WeightFormat
from platforms.machine import Machine
from platforms.record import RecordError, from_record, to_record
from platforms.sysfs import CpuList
from schedules.cost import Seats
from schedules.rates import Curve, KernelRates, MachineRates, estimated_rates
from schedules.records import current_generator

VERSION: Final = 2  # of the file; another one is measured again
MIN_GAP: Final = 1.4  # between the line times within a group and those beyond it
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CoreSet:
    """The shape of a set of cores that was measured; each group and each node has equally many."""

    cores_per_group: int
    groups_per_node: int
    num_nodes: int

    @property
    def num_cores(self) -> int:
        return self.cores_per_group * self.groups_per_node * self.num_nodes

    @property
    def seats(self) -> Seats:
        """The same as the cost model knows it."""
        nodes = range(self.num_nodes)
        sizes = (self.cores_per_group,) * (self.groups_per_node * self.num_nodes)
        return Seats(sizes, tuple(n for n in nodes for _ in range(self.groups_per_node)))


@dataclass(frozen=True)
class ReadRate:
    """Read bandwidth of a set of cores, of memory on their own nodes or on another one."""

    cores: CoreSet
    is_remote: bool
    gbps: float


@dataclass(frozen=True)
class BarrierTime:
    """What a barrier of a set of cores takes."""

    cores: CoreSet
    us: float


@dataclass(frozen=True)
class PeakRate:
    """Multiply-adds out of registers on so many cores together, as kernels for `dtype` do them."""

    dtype: str
    num_cores: int
    gflops: float


@dataclass(frozen=True)
class LineTime:
    """Time until a core reads what another has written; CPUs in ascending order."""

    first: int
    second: int
    ns: float


@dataclass(frozen=True)
class ProgramRates:
    """What the kernels of a phase's program reach on one core. weights: as `kernel_kind` says."""

    weights: str
    phase: str
    kernels: KernelRates
    launch_us: float


@dataclass(frozen=True)
class Calibration:
    """All that was measured of a machine. cpus: one of each core that was measured, ascending.
    generator: digest of the sources that the measured kernels were generated from.
    """

    fingerprint: str
    isa: str
    generator: str
    cpus: CpuList
    reads: tuple[ReadRate, ...]
    barriers: tuple[BarrierTime, ...]
    peaks: tuple[PeakRate, ...]
    lines: tuple[LineTime, ...]
    programs: tuple[ProgramRates, ...]

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The CPUs by the groups that their cache lines show; one group if there is no such gap."""
        return line_groups(self.cpus, self.lines)

    def groups_of(self, machine: Machine) -> tuple[tuple[int, ...], ...]:
        """The groups, if all CPUs that `machine` may use were measured; else none."""
        return self.groups if set(machine.usable_cpus()) <= set(self.cpus) else ()

    def rates(self, machine: Machine, weights: WeightFormat) -> MachineRates:
        """The rates of the cost model; what was not measured stays an estimate."""
        return _Fit(self, machine, weights).rates()

    def render(self) -> list[str]:
        """Lines for people."""
        reads = [
            f"{read.cores.num_cores} cores{' from another node' if read.is_remote else ''} "
            f"{read.gbps:.3g}"
            for read in self.reads
        ]
        peaks = [f"{p.num_cores} cores {p.dtype} {p.gflops:.4g}" for p in self.peaks]
        barriers = [f"{b.cores.num_cores} cores {b.us:.2g}" for b in self.barriers]
        times = [line.ns for line in self.lines]
        lines = [f"{min(times):.0f} to {max(times):.0f} in {len(times)} pairs"] if times else []
        shown = {
            "read GB/s": reads,
            "GFLOP/s": peaks,
            "barrier us": barriers,
            "line ns": lines,
            "groups": [f"{len(self.groups)} by cache line times"] if times else [],
        }
        return [f"{name:<14}{', '.join(texts)}" for name, texts in shown.items() if texts]


def kernel_kind(weights: WeightFormat) -> str:
    """The formats whose kernels are taken to be equally fast: they differ in their groups alone."""
    return replace(weights, group=0).name


def line_groups(cpus: Sequence[int], lines: Sequence[LineTime]) -> tuple[tuple[int, ...], ...]:
    """The CPUs in groups whose members are linked by short line times, in the order of `cpus`.

    Short is what lies below the first gap of MIN_GAP in the sorted times. Not every pair has to be
    measured: a chain of short ones makes a group. A pair that was disturbed is long, which does no
    harm as long as another way leads to each of its CPUs.
    """
    times = sorted(line.ns for line in lines)
    gaps = (below for below, above in pairwise(times) if above >= MIN_GAP * below)
    longest = next(gaps, times[-1] if times else 0.0)
    group_of = {cpu: [cpu] for cpu in cpus}
    for line in lines:
        one, other = group_of.get(line.first), group_of.get(line.second)
        if line.ns <= longest and one is not None and other is not None and one is not other:
            one += other
            group_of.update(dict.fromkeys(other, one))
    found = {id(group): group for group in group_of.values()}
    order = {cpu: i for i, cpu in enumerate(cpus)}
    return tuple(tuple(sorted(group, key=order.__getitem__)) for group in found.values())


@dataclass(frozen=True)
class _Fit:
    """From measurements to the parameters of the cost model."""

    calibration: Calibration
    machine: Machine
    weights: WeightFormat

    def rates(self) -> MachineRates:
        found, estimate = self.calibration, estimated_rates(self.machine, self.weights)
        local = [read for read in found.reads if not read.is_remote]
        in_group = {
            float(r.cores.cores_per_group): r.gbps for r in local if r.cores.groups_per_node == 1
        }
        in_node = [read.gbps for read in local if read.cores.num_nodes == 1]
        remote = [read.gbps for read in found.reads if read.is_remote]
        rates = replace(
            estimate,
            group_gbps=Curve(tuple(sorted(in_group.items()))) if in_group else estimate.group_gbps,
            node_gbps=max(in_node, default=estimate.node_gbps),
            link_gbps=max(remote, default=estimate.link_gbps),
            busy_speed=self._busy_speed(estimate.busy_speed),
            is_measured=True,
            **self._line_times(),
            **self._kernels(estimate),
        )
        return self._with_barriers(rates)

    def _busy_speed(self, estimate: Curve) -> Curve:
        by_core = {p.num_cores: p.gflops / p.num_cores for p in self._peaks()}
        if 1 not in by_core:
            return estimate
        return Curve(tuple((float(n), by_core[n] / by_core[1]) for n in sorted(by_core)))

    def _peaks(self) -> list[PeakRate]:
        """Of the type of the weights, or else of the first type that was measured."""
        peaks = self.calibration.peaks
        types = [p.dtype for p in peaks]
        wanted = self.weights.dtype if self.weights.dtype in types else next(iter(types), "")
        return [p for p in peaks if p.dtype == wanted]

    def _line_times(self) -> dict[str, Any]:
        topology = self.machine.topology
        group_of = {cpu: i for i, g in enumerate(self.calibration.groups) for cpu in g}
        node_of = {cpu: node.node_id for node in topology.nodes() for cpu in node.cpus}
        times: dict[str, list[float]] = {}
        for line in self.calibration.lines:
            if group_of[line.first] == group_of[line.second]:
                name = "group_line_ns"
            elif node_of.get(line.first) == node_of.get(line.second):
                name = "node_line_ns"
            else:
                name = "far_line_ns"
            times.setdefault(name, []).append(line.ns)
        return {name: statistics.median(values) for name, values in times.items()}

    def _kernels(self, estimate: MachineRates) -> dict[str, Any]:
        measured = self.calibration.programs
        kind = kernel_kind(self.weights)
        programs = {p.phase: p for p in measured if p.weights == kind}
        if set(programs) != set(Phase):
            return {}
        return {
            "prefill": programs[Phase.PREFILL].kernels,
            "decode": programs[Phase.DECODE].kernels,
            "launch_us": statistics.mean(p.launch_us for p in programs.values()),
        }

    def _with_barriers(self, rates: MachineRates) -> MachineRates:
        """The estimate times one factor, by least squares."""
        pairs = [(b.us, b.cores.seats.barrier_us(rates)) for b in self.calibration.barriers]
        weight = sum(model * model for _, model in pairs)
        if not weight:
            return rates
        factor = sum(measured * model for measured, model in pairs) / weight
        return replace(
            rates,
            barrier_base_us=factor * rates.barrier_base_us,
            barrier_lines=factor * rates.barrier_lines,
        )


def calibration_file(folder: Path, machine: Machine) -> Path:
    """Where the calibration of a machine is kept below the cache folder."""
    return folder / "calibration" / f"{machine.fingerprint}-{machine.isa}.json"


def save_calibration(folder: Path, machine: Machine, calibration: Calibration) -> Path:
    """Write the file whole or not at all; OSError if that cannot be done."""
    path = calibration_file(folder, machine)
    path.parent.mkdir(parents=True, exist_ok=True)
    record: Mapping[str, Any] = {"version": VERSION, **to_record(calibration, Calibration)}
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
    return path


def load_calibration(folder: Path, machine: Machine) -> Calibration | None:
    """The calibration of a machine; None, with a warning if it is damaged, if there is none."""
    path = calibration_file(folder, machine)
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        version = fields.pop("version")
        if version != VERSION:
            raise RecordError(f"version {version!r}, not {VERSION}")
        calibration = from_record(fields, Calibration, "calibration")
        assert isinstance(calibration, Calibration)
        if (calibration.fingerprint, calibration.isa) != (machine.fingerprint, machine.isa):
            raise RecordError("calibration.fingerprint: is of another machine")
        num_measured, num_usable = len(calibration.cpus), len(machine.usable_cpus())
        if num_measured < num_usable:
            raise RecordError(f"{num_measured} cores were measured, {num_usable} may be used now")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        _log.warning(
            "the calibration %s cannot be used (%s); `sandwich probe --measure` makes a new one",
            path,
            error,
        )
        return None
    if calibration.generator != current_generator():
        _log.warning(
            "the calibration %s is of the kernels of another version; `sandwich probe --measure` "
            "renews it",
            path,
        )
    return calibration
