"""The cost model: what must grow with what, its limits, and the trade it is there to show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen.layout import ModelLayout
from codegen.spec import ModelShape
from platforms.machines import load_machine, recorded_machines
from schedules.cost import Operator, Seats, Step, StepCost, operators, step_cost
from schedules.rates import MachineRates, estimated_rates
from schedules.topotree import Candidate, TopoTree, candidates

SHAPE = ModelShape(
    num_layers=16,
    hidden_size=2048,
    num_heads=32,
    num_kv_heads=8,
    head_dim=64,
    intermediate_size=8192,
    vocab_size=128256,
    rms_norm_eps=1e-5,
    qkv_bias=False,
    o_bias=False,
    mlp_bias=False,
    tied_embeddings=True,
    max_model_len=4096,
)
LAYOUT = ModelLayout.build(SHAPE, "bfloat16", lanes=16, panel=64)
PREFILL, DECODE = Step.prefill(512, 4), Step.decode([1024])
ALIKE = MachineRates(  # every barrier is free and every path but the core's own is wide
    core_gflops=100.0,
    core_gbps=10.0,
    group_gbps=1e9,
    node_gbps=1e9,
    link_gbps=1e9,
    group_line_ns=0.0,
    node_line_ns=0.0,
    far_line_ns=0.0,
    lines_in_flight=1.0,
    barrier_base_us=0.0,
)
EVEN = (Operator(1, 960, 1000.0, 1000.0),)  # divides among 1 to 6 cores, 8, 10, ...


def cost(
    ops: Sequence[Operator], seats: Seats, rates: MachineRates, memory: Sequence[int] = ()
) -> StepCost:
    return step_cost(ops, SHAPE.num_layers, seats, rates, frozenset(memory or seats.nodes))


def seats_of(num_groups: int, cores_per_group: int, num_nodes: int = 1) -> Seats:
    per_node = num_groups // num_nodes
    nodes = tuple(i // per_node for i in range(num_groups))
    return Seats((cores_per_group,) * num_groups, nodes)


def test_the_bytes_of_a_decode_step_are_weights_and_cache_read_once() -> None:
    ops = operators(LAYOUT, "bfloat16", Step.decode([1000, 24]))
    nbytes = sum(op.repeats * op.num_units * op.nbytes for op in ops)
    hidden, layers = SHAPE.hidden_size, SHAPE.num_layers
    values = layers * hidden * (3072 + 2048 + 3 * 8192) + SHAPE.vocab_size * hidden
    assert nbytes == 2 * values + layers * 1024 * 2 * 8 * 64 * 2


def test_the_operations_of_a_prefill_are_those_of_its_tokens_and_one_row_of_logits() -> None:
    ops = operators(LAYOUT, "bfloat16", Step.prefill(7, 4))
    flops = sum(op.repeats * op.num_units * op.flops for op in ops)
    hidden, layers = SHAPE.hidden_size, SHAPE.num_layers
    gemms = 2 * 7 * layers * hidden * (3072 + 2048 + 3 * 8192) + 2 * SHAPE.vocab_size * hidden
    assert flops == gemms + 4 * layers * 32 * 64 * 28


@pytest.mark.parametrize("num_cores", [1, 2, 3, 4, 5, 6, 8])
def test_without_shared_limits_n_cores_are_n_times_as_fast(num_cores: int) -> None:
    one = cost(EVEN, Seats((1,), (0,)), ALIKE).total_us
    many = cost(EVEN, Seats((num_cores,), (0,)), ALIKE).total_us
    assert one == pytest.approx(num_cores * many)


def test_work_that_does_not_divide_lasts_as_long_as_the_busiest_core() -> None:
    ops = (Operator(1, 5, 1000.0, 1000.0),)
    four, five = (cost(ops, Seats((n,), (0,)), ALIKE).total_us for n in (4, 5))
    assert four == pytest.approx(2 * five)


@pytest.mark.parametrize(
    ("limit", "value", "gbps"),
    [
        ("core_gbps", 5.0, 80.0),  # 16 cores
        ("group_gbps", 15.0, 60.0),  # 4 groups
        ("node_gbps", 20.0, 40.0),  # 2 nodes
    ],
)
def test_the_tightest_path_to_memory_decides(limit: str, value: float, gbps: float) -> None:
    rates = replace(ALIKE, **{limit: value})
    reading = cost(EVEN, seats_of(4, 4, num_nodes=2), rates).memory_us
    assert reading == pytest.approx(960 * 1000.0 / gbps * 1e-3)


def test_memory_on_another_node_comes_through_the_link() -> None:
    rates = replace(ALIKE, link_gbps=2.0)
    seats = Seats((4,), (0,))
    nbytes = 960 * 1000.0
    assert cost(EVEN, seats, rates, [1]).memory_us == pytest.approx(nbytes / 2.0 * 1e-3)
    assert cost(EVEN, seats, rates, [0, 1]).memory_us == pytest.approx(nbytes / 2 / 2.0 * 1e-3)
    assert cost(EVEN, seats, rates, [0]).memory_us == pytest.approx(nbytes / 40.0 * 1e-3)


def test_a_barrier_costs_the_lines_of_all_others_by_their_distance() -> None:
    rates = replace(ALIKE, group_line_ns=10.0, node_line_ns=100.0, far_line_ns=1000.0)
    assert seats_of(4, 4, num_nodes=2).barrier_us(rates) == pytest.approx(3 * 0.01 + 0.4 + 8)
    assert Seats((1,), (0,)).barrier_us(replace(rates, barrier_base_us=9.0)) == 0


@given(st.sampled_from(recorded_machines()), st.data())
def test_more_tokens_longer_contexts_and_slower_parts_never_take_less_time(
    name: str, data: st.DataObject
) -> None:
    machine = load_machine(name)
    candidate = data.draw(st.sampled_from(candidates(TopoTree.of(machine))))
    seats = Seats.of(machine, candidate.groups)
    rates = estimated_rates(machine, "bfloat16")

    def total(step: Step, with_rates: MachineRates = rates) -> float:
        return cost(operators(LAYOUT, "bfloat16", step), seats, with_rates).total_us

    assert total(Step.prefill(128, 4)) <= total(PREFILL)
    assert total(Step.decode([64])) <= total(DECODE) <= total(Step.decode([1024] * 2))
    for limit in ("core_gflops", "core_gbps", "group_gbps", "node_gbps", "link_gbps"):
        slower = replace(rates, **{limit: getattr(rates, limit) / 2})
        assert total(DECODE) <= total(DECODE, slower)
    for price in ("group_line_ns", "node_line_ns", "far_line_ns", "barrier_base_us"):
        dearer = replace(rates, **{price: getattr(rates, price) * 2})
        assert total(DECODE) <= total(DECODE, dearer)


def best(name: str, step: Step, **changes: float) -> Candidate:
    machine = load_machine(name)
    rates = replace(estimated_rates(machine, "bfloat16"), **changes)
    ops = operators(LAYOUT, "bfloat16", step)
    home = frozenset(node.node_id for node in machine.topology.nodes())
    return min(
        candidates(TopoTree.of(machine)),
        key=lambda c: cost(ops, Seats.of(machine, c.groups), rates, list(home)).total_us,
    )


def test_decode_takes_fewer_cores_as_barriers_become_dearer() -> None:
    counts = [
        len(best("epyc-7h12-2s", DECODE, far_line_ns=ns, node_line_ns=ns).cpus)
        for ns in (1, 200, 2000, 200_000)
    ]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]


def test_two_cores_of_a_complex_are_enough_for_decode_where_they_saturate_its_link() -> None:
    assert best("epyc-9655", DECODE).name == "2 cores per LLC group"


@pytest.mark.parametrize("name", recorded_machines())
def test_a_long_prefill_takes_all_cores(name: str) -> None:
    assert best(name, PREFILL).name.startswith("all ")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dot_products_double_the_arithmetic_where_there_are_any(dtype: str) -> None:
    factor = 2 if dtype == "bfloat16" else 1
    turin, rome = load_machine("epyc-9655"), load_machine("epyc-7h12-2s")
    base = estimated_rates(turin, "float32").core_gflops
    assert estimated_rates(turin, dtype).core_gflops == factor * base
    assert estimated_rates(rome, dtype) == estimated_rates(rome, "float32")


def test_a_processor_that_is_not_known_is_taken_to_need_all_its_cores() -> None:
    machine = replace(load_machine("graviton3"), cpu_model="ARM 0x99:0x001")
    rates = estimated_rates(machine, "bfloat16")
    assert rates.node_gbps == pytest.approx(64 * rates.core_gbps)
