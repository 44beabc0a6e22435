"""Placement: which bytes belong where, over recorded machines with several nodes."""

from __future__ import annotations

import logging
from bisect import bisect_right
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from codegen.layout.model import KvLayout, ModelLayout
from codegen.spec import WeightFormat
from platforms import memory
from platforms.machine import Machine
from platforms.machines import load_machine
from platforms.memory import Arena, arena_nbytes
from platforms.placement import NodeRange, PageCount, PlacementError, whole_pages
from platforms.probe import probe
from platforms.topology import LlcGroup, NumaNode, Socket, Topology
from sandwich.config import EngineConfig
from sandwich.executor.numa_placement import NOT_PLACED, Placement, home_nodes, place, report
from sandwich.models.presets import preset
from sandwich.startup import build

SEVERAL_NODES = ("xeon-gold-6151-2s", "epyc-7h12-2s", "kunpeng-920-4826-2s")
HUGE = 2 << 20
INT4 = WeightFormat("int4", "int8", group=32, scale_dtype="float16")


def layout_of(model: str, weights: WeightFormat | None = None, panel: int = 64) -> ModelLayout:
    return ModelLayout.build(preset(model).shape(2048), "bfloat16", 16, panel, weights)


def cache_of(layout: ModelLayout, num_blocks: int = 9) -> KvLayout:
    shape = layout.shape
    sizes = (shape.num_layers, shape.num_kv_heads, shape.head_dim)
    return KvLayout(*sizes, block_size=32, lanes=16, dtype="bfloat16", num_blocks=num_blocks)


def nodes_at(ranges: tuple[NodeRange, ...], at: int) -> tuple[int, ...]:
    """The nodes that a byte belongs on; none if no range holds it."""
    found = ranges[bisect_right([r.start for r in ranges], at) - 1]
    return found.nodes if found.start <= at < found.stop else ()


def node_ids(ranges: tuple[NodeRange, ...], at: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The node of the range that holds, or ends before, each byte."""
    starts, nodes = np.array([(r.start, r.nodes[0]) for r in ranges]).T
    return nodes[np.searchsorted(starts, at, side="right") - 1]


def owner(num_cores: int, count: int, item: int) -> int:
    """The core whose share holds `item`, found the slow way."""
    ends = [(core + 1) * count // num_cores for core in range(num_cores)]
    return next(core for core, end in enumerate(ends) if item < end)


def check_weights(layout: ModelLayout, cpus: tuple[int, ...], machine: Machine) -> None:
    """Every panel of every matrix begins and ends on the node of the core that reads it."""
    ranges = place(machine, cpus, layout, cache_of(layout)).weights
    at = 0
    for name, spec in layout.tensor_specs().items():
        at = -(-at // 64) * 64
        role = name.partition("_scales")[0]
        if role in layout.matrices:
            panels = layout.panels(role)
            num_layers = 1 if role == "lm_head" else layout.shape.num_layers
            per_column = spec.nbytes // num_layers // panels.n_padded
            for layer in (0, num_layers - 1):
                start = at + layer * (spec.nbytes // num_layers)
                for panel in range(panels.num_panels):
                    core = owner(len(cpus), panels.num_panels, panel)
                    wanted = (machine.topology.node_of(cpus[core]),)
                    first = start + panel * panels.panel * per_column
                    last = first + panels.panel_width(panel) * per_column - 1
                    assert nodes_at(ranges, first) == nodes_at(ranges, last) == wanted
        at += spec.nbytes


@pytest.mark.parametrize("name", SEVERAL_NODES)
@pytest.mark.parametrize("weights", [None, INT4], ids=["bf16", "int4"])
def test_every_panel_and_its_scales_belong_on_the_node_of_their_reader(
    name: str, weights: WeightFormat | None
) -> None:
    machine = load_machine(name)
    check_weights(layout_of("smollm-135m", weights), machine.usable_cpus(), machine)


@pytest.mark.parametrize("cpus", [(0, 18, 1, 19), (18, 0), tuple(range(7)) + tuple(range(18, 23))])
def test_cores_may_come_in_any_order_and_number(cpus: tuple[int, ...]) -> None:
    machine = load_machine("xeon-gold-6151-2s")
    check_weights(layout_of("smollm-135m", panel=96), cpus, machine)


def test_every_head_belongs_on_the_node_of_its_reader() -> None:
    machine = load_machine("kunpeng-920-4826-2s")
    layout = layout_of("llama-3.2-1b")
    kv, cpus = cache_of(layout), machine.usable_cpus()
    ranges = place(machine, cpus, layout, kv).cache
    per_head = kv.keys.nbytes // (kv.num_layers * kv.num_kv_heads)
    for base in (0, kv.keys.arena_nbytes):
        for index in range(kv.num_layers * kv.num_kv_heads):
            core = owner(len(cpus), kv.num_kv_heads, index % kv.num_kv_heads)
            wanted = (machine.topology.node_of(cpus[core]),)
            first = base + index * per_head
            assert nodes_at(ranges, first) == nodes_at(ranges, first + per_head - 1) == wanted
    assert ranges[-1].stop == kv.keys.arena_nbytes + kv.values.nbytes


def test_the_blocks_of_a_head_with_readers_on_two_nodes_are_shared_between_them() -> None:
    machine = load_machine("kunpeng-920-4826-2s")
    layout = layout_of("llama-3.2-1b")
    kv = replace(cache_of(layout, num_blocks=10), num_layers=1, num_kv_heads=2)
    ranges = place(machine, machine.usable_cpus(), layout, kv).cache
    sizes = [r.stop - r.start for r in ranges]
    assert sizes == [kv.keys.nbytes // 4] * 8
    assert [r.nodes for r in ranges] == [(0,), (1,), (2,), (3,)] * 2


@pytest.mark.parametrize("name", SEVERAL_NODES)
@pytest.mark.parametrize(
    ("model", "lost"), [("llama-3.2-1b", 0.03), ("llama-3.2-3b", 0.03), ("llama-3.1-8b", 0.006)]
)
def test_whole_huge_pages_leave_little_on_the_wrong_node(
    name: str, model: str, lost: float
) -> None:
    machine = load_machine(name)
    layout = layout_of(model)
    ranges = place(machine, machine.usable_cpus(), layout, cache_of(layout)).weights
    placed = whole_pages(ranges, HUGE)
    assert all(r.start % HUGE == r.stop % HUGE == 0 for r in placed)
    samples = np.arange(ranges[0].start, ranges[-1].stop, 1 << 16)
    is_wrong = node_ids(placed, samples) != node_ids(ranges, samples)
    assert is_wrong.mean() <= lost


def test_ranges_are_sorted_and_apart_and_inside_the_arenas() -> None:
    machine = load_machine("epyc-7h12-2s")
    layout = layout_of("llama-3.2-3b")
    kv = cache_of(layout)
    found = place(machine, machine.usable_cpus(), layout, kv)
    cache_nbytes = arena_nbytes([kv.keys.nbytes, kv.values.nbytes])
    for ranges, nbytes in ((found.weights, layout.weight_bytes), (found.cache, cache_nbytes)):
        borders = [border for r in ranges for border in (r.start, r.stop)]
        assert borders == sorted(borders)
        assert borders[-1] <= nbytes
    assert "on nodes 0-1, where they are read" in found.render()


@pytest.mark.parametrize("name", ["epyc-guest", "graviton3", "core-i7-1260p"])
def test_on_one_node_nothing_is_placed(name: str) -> None:
    machine = load_machine(name)
    layout = layout_of("tiny")
    assert place(machine, machine.usable_cpus(), layout, cache_of(layout)) == NOT_PLACED


def test_a_plan_on_one_node_of_several_has_everything_there() -> None:
    machine = load_machine("epyc-7h12-2s")
    layout = layout_of("tiny")
    cpus = machine.topology.sockets[1].nodes[0].cpus[:4]
    found = place(machine, cpus, layout, cache_of(layout))
    assert found.nodes == (1,)
    assert {r.nodes for r in (*found.weights, *found.cache)} == {(1,)}


def test_what_threads_that_wander_read_is_interleaved() -> None:
    machine = load_machine("epyc-7h12-2s")
    layout = layout_of("tiny")
    found = place(machine, machine.usable_cpus(), layout, cache_of(layout), is_pinned=False)
    assert found == Placement((0, 1))
    assert "interleaved between nodes 0-1" in found.render()


def test_memory_a_node_may_not_give_comes_from_the_nearest_that_may() -> None:
    machine = load_machine("kunpeng-920-4826-2s")
    limits = replace(machine.limits, memory_nodes=(1, 2))
    homes = home_nodes(replace(machine, limits=limits))
    first = {node.node_id: node.cpus[0] for node in machine.topology.nodes()}
    assert [homes[first[node]] for node in range(4)] == [1, 1, 2, 2]
    nowhere = replace(machine, limits=replace(machine.limits, memory_nodes=(9,)))
    assert home_nodes(nowhere) == home_nodes(machine)


def test_the_report_says_how_much_lies_where_it_is_read(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    arena = Arena(4096, "weights")
    count = PageCount(200, 150, ((0, 50), (1, 150)))
    monkeypatch.setattr("platforms.memory.count_pages", lambda *arguments: count)
    with caplog.at_level(logging.INFO):
        report(arena, [NodeRange(0, 4096, (0,))])
        report(arena, [])
    placed, unplaced = [record.getMessage() for record in caplog.records]
    assert unplaced == "memory   weights: 0 % on transparent huge pages"
    assert placed.removeprefix(unplaced) == (
        "; 75 % of its pages are where their readers are (25 % on node 0, 75 % on node 1)"
    )


def test_the_report_does_without_a_kernel_that_tells(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*arguments: object) -> PageCount:
        raise PlacementError(1, "move_pages was refused")

    monkeypatch.setattr("platforms.memory.count_pages", refuse)
    with caplog.at_level(logging.INFO):
        report(Arena(4096, "weights"), [NodeRange(0, 4096, (0,))])
    assert caplog.records[-1].getMessage() == "memory   weights: 0 % on transparent huge pages"


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """This machine as if it had two nodes, which the kernel knows nothing of."""
    machine = probe()
    cores = tuple(machine.topology.cores())
    if len(machine.usable_cpus()) < 2:
        pytest.skip("needs two cores")
    nodes = tuple(
        NumaNode(node, None, (10, 20), (LlcGroup("node", None, part),))
        for node, part in enumerate((cores[:1], cores[1:]))
    )
    made = replace(
        machine,
        topology=Topology((Socket(0, nodes),), (), ()),
        limits=replace(machine.limits, memory_nodes=(0, 1)),
    )
    monkeypatch.setattr(build, "probe", lambda isa: made)
    return made


def test_an_engine_asks_for_its_memory_on_the_nodes_of_its_cores(
    two_nodes: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[tuple[int, tuple[int, ...]]] = []
    monkeypatch.setattr(
        "platforms.memory.place_on_nodes",
        lambda address, nbytes, nodes: asked.append((nbytes, nodes)),
    )
    with caplog.at_level(logging.INFO):
        parts = build.build_engine(EngineConfig(executor="reference", max_model_len=64))
    ranges = place(two_nodes, parts.plans.decode.cpus, parts.memory.layout, parts.memory.kv).weights
    assert asked[0][1] == (0, 1)  # the whole arena first
    assert asked[0][0] >= parts.memory.layout.weight_bytes
    assert {nodes for _, nodes in asked[1:]} <= {r.nodes for r in ranges} == {(0,), (1,)}
    assert "memory   weights by panel and KV cache by head on nodes 0-1" in caplog.text
    assert "% of its pages are where their readers are (100 % on node 0)" in caplog.text


@pytest.mark.usefixtures("two_nodes")
def test_an_engine_is_built_where_its_nodes_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    memory._warn_once.cache_clear()
    for _ in range(2):
        parts = build.build_engine(EngineConfig(executor="reference", max_model_len=64))
        assert parts.engine.limits.max_model_len == 64
    assert caplog.text.count("memory goes where it is first touched") == 1
