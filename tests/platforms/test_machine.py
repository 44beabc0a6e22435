"""The machine as a value: JSON, fingerprint, text, and the probe of the live system."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from platforms.isa import ISA_VARIABLE, IsaError
from platforms.machine import Machine
from platforms.probe import probe
from platforms.record import RecordError
from platforms.render import format_bytes, render

if TYPE_CHECKING:
    from tests.platforms.conftest import RecordedTree

KINDS = ["epyc", "laptop", "kunpeng", "box", "tree"]


@pytest.fixture(params=KINDS)
def machine(request: pytest.FixtureRequest) -> Machine:
    recorded: RecordedTree = request.getfixturevalue(request.param)
    return probe(recorded.root)


def test_a_machine_survives_json(machine: Machine) -> None:
    again = Machine.from_json(machine.to_json())
    assert again == machine
    assert again.fingerprint == machine.fingerprint


def test_a_machine_in_a_container_survives_json(epyc: RecordedTree) -> None:
    epyc.cgroup_v2("/")
    epyc.write("sys/fs/cgroup/cpu.max", "200000 100000")
    machine = probe(epyc.root)
    again = Machine.from_json(machine.to_json())
    assert again == machine
    assert isinstance(again.limits.cpu_quota, float)


def test_json_tells_what_is_used(epyc: RecordedTree) -> None:
    machine = probe(epyc.root)
    data = json.loads(machine.to_json())
    assert data["usable_cpus"] == list(range(16))
    assert data["fingerprint"] == machine.fingerprint
    assert data["caches"][2]["instances"][0] == "0-3,16-19"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["isa"], 3, r"machine\.isa: 3 is not of type str"),
        (["caches", 0, "level"], "1", r"machine\.caches\[0\]\.level: '1' is not of type int"),
        (["caches", 0, "level"], True, "True is not of type int"),
        (["topology", "offline"], "9-", "machine.topology.offline: "),
        (["topology", "sockets"], {}, "is not of type list"),
        (["limits", "cgroup"], None, "None is not of type dict"),
        (["limits", "color"], "red", "machine.limits: 'color' is not known"),
        (["limits", "selection"], [], "selection: is empty"),
    ],
)
def test_a_record_that_does_not_fit_is_refused_with_the_place(
    epyc: RecordedTree, path: list[str | int], value: object, message: str
) -> None:
    data: Any = json.loads(probe(epyc.root).to_json())
    inner = data
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    with pytest.raises(RecordError, match=message):
        Machine.from_json(json.dumps(data))


def test_a_record_with_a_missing_field_is_refused(box: RecordedTree) -> None:
    data = json.loads(probe(box.root).to_json())
    del data["limits"]["affinity"]
    with pytest.raises(RecordError, match=r"machine\.limits: 'affinity' is missing"):
        Machine.from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["", "[1]", "{", "null"])
def test_what_is_no_record_at_all_is_refused(text: str) -> None:
    with pytest.raises(RecordError):
        Machine.from_json(text)


def test_the_fingerprint_names_the_hardware_and_not_its_use(epyc: RecordedTree) -> None:
    before = probe(epyc.root)
    epyc.status("0-3", "0")
    epyc.memory(512 << 20, 1 << 20)
    epyc.write("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]")
    after = probe(epyc.root, isa="generic")
    assert after != before
    assert after.fingerprint == before.fingerprint
    assert len(before.fingerprint) == 12


def test_other_hardware_has_another_fingerprint(epyc: RecordedTree) -> None:
    machine = probe(epyc.root)
    others = [
        replace(machine, cpu_model="AMD EPYC 7763"),
        replace(machine, caches=machine.caches[:2]),
        replace(machine, isa_features=machine.isa_features | {"avx512f"}),
        replace(machine, topology=replace(machine.topology, sockets=machine.topology.sockets[:1])),
    ]
    assert len({m.fingerprint for m in (machine, *others)}) == 5


def test_flags_that_a_kernel_adds_do_not_change_the_fingerprint(epyc: RecordedTree) -> None:
    machine = probe(epyc.root)
    newer = replace(machine, isa_features=machine.isa_features | {"smep", "sme", "ibrs"})
    assert newer.fingerprint == machine.fingerprint


def test_every_machine_can_be_shown(machine: Machine) -> None:
    lines = render(machine).splitlines()
    assert lines[0].startswith("CPU ")
    assert lines[-1].startswith("Used ")
    assert all(line == line.rstrip() and len(line) <= 100 for line in lines)


def test_the_text_says_what_is_used_and_why(epyc: RecordedTree) -> None:
    epyc.cgroup_v2("/")
    epyc.status("0-7,16-23", "0")
    epyc.write("sys/fs/cgroup/cpu.max", "350000 100000")
    epyc.write("sys/fs/cgroup/memory.max", str(8 << 30))
    text = render(probe(epyc.root))
    for part in (
        "avx2: 8 fp32 lanes, 16 registers",
        "L3    16 MiB  x 4   each for 8 CPUs",
        "2 sockets, 2 NUMA nodes, 4 cache groups, 16 cores, 32 CPUs",
        "node 1, 256 GiB, distances 32 10",
        "L3 16 MiB: 4 cores, CPUs 0-3,16-19",
        "CPU quota     3.5 cores  (/sys/fs/cgroup/cpu.max)",
        "memory        8 GiB  (/sys/fs/cgroup/memory.max)",
        "affinity        16  0-7,16-23  (16 not allowed)",
        "quota            3  0-2  (the quota is 3.5 cores; more threads would be throttled)",
        "Used          3 cores, one thread each, on CPUs 0-2",
    ):
        assert part in text


def test_the_text_tells_kinds_of_cores_offline_cpus_and_huge_pages(laptop: RecordedTree) -> None:
    laptop.write("sys/devices/cpu_core/cpus", "0-3")
    laptop.write("sys/devices/cpu_atom/cpus", "4-7")
    laptop.cpus("0-6", "7")
    laptop.write("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]")
    laptop.write("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "8")
    laptop.write("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "5")
    text = render(probe(laptop.root))
    assert "5 cores (2 performance, 3 efficiency), CPUs 0-6" in text
    assert "offline: 7" in text
    assert "echo madvise >" in text
    assert "explicit (2 MiB): 5 of 8 free" in text


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1023 << 10, "1023 KiB"), (12 << 40, "12 TiB")],
)
def test_bytes_are_shown_with_a_binary_unit(nbytes: int, text: str) -> None:
    assert format_bytes(nbytes) == text


def test_a_forced_isa_is_for_this_machine_only(
    kunpeng: RecordedTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ISA_VARIABLE, "generic")
    assert probe().isa == "generic"
    assert probe(kunpeng.root).isa == "neon"
    assert probe(kunpeng.root, isa="generic").isa == "generic"
    with pytest.raises(IsaError):
        probe(kunpeng.root, isa="avx2")


def test_the_live_machine_lets_this_process_run_where_it_says() -> None:
    machine = probe()
    assert set(machine.usable_cpus()) <= os.sched_getaffinity(0)
    assert machine.limits.memory_available_bytes > 0
    assert Machine.from_json(machine.to_json()) == machine
