"""The recorded machines: readable, consistent, as described, and with the parts' own figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from platforms.machines import load_machine, machine_file, recorded_machines
from platforms.machines.make import DESCRIPTIONS, Description
from platforms.process_limits import select_cpus
from platforms.record import RecordError
from platforms.render import render

# name: (ISA, sockets, nodes, LLC groups, cores, CPUs, cores used, bytes of L3 in all)
FIGURES = {
    "xeon-gold-6151-2s": ("avx512", 2, 2, 2, 36, 72, 36, 2 * 25_344 << 10),
    "xeon-platinum-8272cl-2s": ("avx512_vnni", 2, 2, 2, 52, 104, 52, 2 * 36_608 << 10),
    "epyc-7h12-2s": ("avx2", 2, 2, 32, 128, 256, 128, 512 << 20),
    "kunpeng-920-4826-2s": ("neon_dotprod", 2, 4, 24, 96, 96, 95, 96 << 20),
    "graviton3": ("neon_bf16", 1, 1, 1, 64, 64, 63, 32 << 20),
    "epyc-9655": ("avx512_bf16", 1, 1, 12, 96, 192, 96, 384 << 20),
    "core-i7-1260p": ("avx2_vnni", 1, 1, 1, 12, 16, 4, 18 << 20),
    "kubernetes-pod": ("avx512_vnni", 1, 1, 1, 8, 16, 5, 54 << 20),
    "epyc-guest": ("avx512_bf16", 1, 1, 1, 2, 2, 2, 32 << 20),
}


def test_every_recorded_machine_has_its_figures_here() -> None:
    assert set(recorded_machines()) == set(FIGURES)


@pytest.mark.parametrize("name", FIGURES)
def test_a_recorded_machine_has_the_figures_of_its_parts(name: str) -> None:
    machine = load_machine(name)
    topology = machine.topology
    l3_bytes = sum((c.nbytes or 0) * len(c.instances) for c in machine.caches if c.level == 3)
    assert FIGURES[name] == (
        machine.isa,
        len(topology.sockets),
        len(list(topology.nodes())),
        len(list(topology.groups())),
        len(list(topology.cores())),
        len(topology.cpus),
        len(machine.usable_cpus()),
        l3_bytes,
    )


@pytest.mark.parametrize("name", FIGURES)
def test_a_recorded_machine_agrees_with_itself(name: str) -> None:
    machine = load_machine(name)
    topology, limits = machine.topology, machine.limits
    all_cpus = [cpu for core in topology.cores() for cpu in core.cpus]
    assert sorted(all_cpus) == list(range(len(all_cpus)))
    for level in (1, 2, 3):
        instances = [i for cache in machine.caches if cache.level == level for i in cache.instances]
        assert sorted(cpu for instance in instances for cpu in instance) == sorted(all_cpus)
    assert all(len(node.distances) == len(list(topology.nodes())) for node in topology.nodes())
    selection = select_cpus(topology, limits.affinity, limits.cpuset, limits.cpu_quota)
    assert limits.selection == selection
    assert render(machine).splitlines()[-1].startswith("Used ")


@pytest.mark.parametrize("description", DESCRIPTIONS, ids=lambda description: description.name)
def test_the_record_of_a_description_is_up_to_date(description: Description) -> None:
    remedy = "run `python -m platforms.machines.make`"
    text = description.machine().to_json() + "\n"
    assert machine_file(description.name).read_text() == text, remedy


def test_cpus_are_numbered_as_linux_does() -> None:
    cores = list(load_machine("epyc-7h12-2s").topology.cores())
    assert (cores[0].cpus, cores[64].cpus) == ((0, 128), (64, 192))
    cores = list(load_machine("core-i7-1260p").topology.cores())
    assert [core.cpus for core in cores[3:6]] == [(6, 7), (8,), (9,)]


def test_a_machine_is_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(load_machine("graviton3").to_json())
    assert load_machine(str(file)) == load_machine("graviton3")


def test_an_unknown_machine_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(RecordError, match=r"'pdp-11'.*sandwich probe --json.*graviton3"):
        load_machine("pdp-11")


def test_a_file_without_a_machine_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "empty.json"
    file.write_text("{}")
    with pytest.raises(RecordError, match="missing"):
        load_machine(str(file))
