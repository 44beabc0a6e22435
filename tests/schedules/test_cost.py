"""The cost model: what must grow with what, its limits, and the trade it is there to show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen.layout.model import ModelLayout
from codegen.spec import Experts, ModelShape, Phase, Traits, WeightFormat
from platforms.machines import load_machine, recorded_machines
from schedules.cost import (
    CACHE_FRACTION,
    OVERLAP,
    Kind,
    Operator,
    Seats,
    StepCase,
    StepCost,
    StepOperators,
    StepSize,
    operators,
    step_cost,
)
from schedules.rates import Curve, KernelRates, MachineRates, estimated_rates
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
PREFILL, DECODE = StepSize.prefill(512, 4), StepSize.decode([1024])
KERNELS = KernelRates(
    gemm_gflops=Curve(((1, 50.0), (2, 100.0))),
    attention_gflops=10.0,
    attention_unit_us=3.0,
    embed_ns=4.0,
    norm_ns=1.0,
    rope_ns=2.0,
    argmax_ns=0.5,
)
ALIKE = MachineRates(  # every barrier and launch is free and every path but the core's own is wide
    prefill=KERNELS,
    decode=KERNELS,
    busy_speed=Curve(((1, 1.0),)),
    group_gbps=Curve(((1, 10.0), (1e8, 1e9))),
    node_gbps=1e9,
    link_gbps=1e9,
    group_line_ns=0.0,
    node_line_ns=0.0,
    far_line_ns=0.0,
    barrier_lines=1.0,
    barrier_base_us=0.0,
    launch_us=0.0,
)
# Divides among 1 to 6 cores, 8, 10, ...
EVEN = (Operator("qkv", Kind.LINEAR, 1, 960, nbytes=1000.0),)


def cost(
    ops: StepOperators | Sequence[Operator],
    seats: Seats,
    rates: MachineRates,
    memory: Sequence[int] = (),
) -> StepCost:
    step = ops if isinstance(ops, StepOperators) else StepOperators(Phase.DECODE, 16, tuple(ops))
    return step_cost(step, seats, rates, frozenset(memory or seats.nodes))


def seats_of(num_groups: int, cores_per_group: int, num_nodes: int = 1) -> Seats:
    per_node = num_groups // num_nodes
    nodes = tuple(i // per_node for i in range(num_groups))
    return Seats((cores_per_group,) * num_groups, nodes)


def test_the_bytes_of_a_decode_step_are_weights_and_cache_read_once() -> None:
    step = operators(LAYOUT, "bfloat16", StepSize.decode([1000, 24]))
    hidden, layers = SHAPE.hidden_size, SHAPE.num_layers
    values = layers * hidden * (3072 + 2048 + 3 * 8192) + SHAPE.vocab_size * hidden
    assert step.nbytes == 2 * values + layers * 1024 * 2 * 8 * 64 * 2


def test_quantised_weights_count_with_their_scales() -> None:
    layout = ModelLayout.build(SHAPE, "bfloat16", 16, 64, WeightFormat("int8", group=32))
    panels = layout.panels("qkv")
    (qkv,) = (op for op in operators(layout, "bfloat16", DECODE).operators if op.name == "qkv")
    assert qkv.num_units * qkv.nbytes == panels.nbytes > panels.n * panels.k


def test_the_operations_of_a_prefill_are_those_of_its_tokens_and_one_row_of_logits() -> None:
    step = operators(LAYOUT, "bfloat16", StepSize.prefill(7, 4))
    hidden, layers = SHAPE.hidden_size, SHAPE.num_layers
    gemms = 2 * 7 * layers * hidden * (3072 + 2048 + 3 * 8192) + 2 * SHAPE.vocab_size * hidden
    assert step.flops == gemms + 4 * layers * 32 * 64 * 28


@pytest.mark.parametrize(
    ("op", "microseconds"),
    [
        (Operator("o", Kind.LINEAR, 1, 1, flops=1e6, rows=1), 20.0),
        (Operator("o", Kind.LINEAR, 1, 1, flops=1e6, rows=2), 10.0),
        (Operator("o", Kind.LINEAR, 1, 1, flops=1e6, rows=99), 10.0),
        (Operator("attention", Kind.ATTENTION, 1, 1, flops=1e6), 103.0),
        (Operator("embed", Kind.EMBED, 1, 1, values=1e3), 4.0),
        (Operator("input_norm", Kind.NORM, 1, 1, values=1e3), 1.0),
        (Operator("norm", Kind.NORM, 1, 1, values=1e3), 1.0),
        (Operator("rope_and_cache", Kind.ROPE, 1, 1, values=1e3), 2.0),
        (Operator("argmax", Kind.ARGMAX, 1, 1, values=1e3), 0.5),
    ],
)
def test_a_unit_takes_as_long_as_the_kernel_of_its_operator(
    op: Operator, microseconds: float
) -> None:
    assert op.unit_us(KERNELS) == pytest.approx(microseconds)


def test_a_gemm_takes_a_quarter_longer_where_arithmetic_and_reading_take_equally_long() -> None:
    op = Operator("down", Kind.LINEAR, 1, 1, flops=1e6, nbytes=1e5, rows=2)  # 10 us each
    assert cost([op], Seats((1,), (0,)), ALIKE).total_us == pytest.approx(10 * 2 ** (1 / OVERLAP))


def test_attention_waits_for_what_it_reads() -> None:
    op = Operator("attention", Kind.ATTENTION, 1, 1, flops=1e6, nbytes=1e5)
    found = cost([op], Seats((1,), (0,)), ALIKE)
    assert (found.compute_us, found.memory_us) == pytest.approx((103.0, 10.0))


def test_busy_cores_compute_with_the_speed_that_they_have_together() -> None:
    rates = replace(ALIKE, busy_speed=Curve(((1, 1.0), (4, 0.5))))
    ops = [Operator("o", Kind.LINEAR, 1, 4, flops=1e6, rows=2)]
    assert cost(ops, Seats((4,), (0,)), rates).total_us == pytest.approx(20.0)


@pytest.mark.parametrize(("part", "is_read"), [(0.0, True), (0.99, True), (1.01, False)])
def test_a_model_that_fits_in_the_last_level_caches_is_not_read_from_memory(
    part: float, is_read: bool
) -> None:
    nbytes = sum(op.repeats * op.num_units * op.nbytes for op in EVEN)
    cache_bytes = int(part * nbytes / CACHE_FRACTION)
    found = cost(EVEN, Seats((1,), (0,), cache_bytes), ALIKE)
    assert (found.memory_us > 0) is is_read


def test_cases_name_themselves_and_know_their_steps() -> None:
    assert StepCase(Phase.PREFILL, 32).step(4) == StepSize.prefill(32, 4)
    assert StepCase(Phase.DECODE, 2, 9).step(4) == StepSize.decode([9, 9])
    assert StepCase(Phase.PREFILL, 32).name == "prefill of 32 tokens"
    assert StepCase(Phase.DECODE, 1, 9).name == "decode of one sequence of 9 tokens"
    assert StepCase(Phase.DECODE, 2, 9).num_cached == 18


@pytest.mark.parametrize("num_cores", [1, 2, 3, 4, 5, 6, 8])
def test_without_shared_limits_n_cores_are_n_times_as_fast(num_cores: int) -> None:
    one = cost(EVEN, Seats((1,), (0,)), ALIKE).total_us
    many = cost(EVEN, Seats((num_cores,), (0,)), ALIKE).total_us
    assert one == pytest.approx(num_cores * many)


def test_work_that_does_not_divide_lasts_as_long_as_the_busiest_core() -> None:
    ops = (Operator("qkv", Kind.LINEAR, 1, 5, nbytes=1000.0),)
    four, five = (cost(ops, Seats((n,), (0,)), ALIKE).total_us for n in (4, 5))
    assert four == pytest.approx(2 * five)


@pytest.mark.parametrize(
    ("limit", "value", "gbps"),
    [
        ("group_gbps", Curve(((1, 5.0), (4, 20.0))), 80.0),  # 16 cores
        ("group_gbps", Curve(((1, 10.0), (4, 15.0))), 60.0),  # 4 groups
        ("node_gbps", 20.0, 40.0),  # 2 nodes
    ],
)
def test_the_tightest_path_to_memory_decides(limit: str, value: Curve | float, gbps: float) -> None:
    changes: dict[str, Any] = {limit: value}
    rates = replace(ALIKE, **changes)
    seats = seats_of(4, 4, num_nodes=2)
    assert cost(EVEN, seats, rates).memory_us == pytest.approx(960 * 1000.0 / gbps * 1e-3)
    assert seats.read_gbps(rates) == pytest.approx(gbps)


def test_memory_on_another_node_comes_through_the_link() -> None:
    rates = replace(ALIKE, link_gbps=2.0, group_gbps=Curve(((1, 10.0), (4, 40.0))))
    seats = Seats((4,), (0,))
    nbytes = 960 * 1000.0
    assert cost(EVEN, seats, rates, [1]).memory_us == pytest.approx(nbytes / 2.0 * 1e-3)
    assert cost(EVEN, seats, rates, [0, 1]).memory_us == pytest.approx(nbytes / 2 / 2.0 * 1e-3)
    assert cost(EVEN, seats, rates, [0]).memory_us == pytest.approx(nbytes / 40.0 * 1e-3)


def test_a_barrier_costs_the_arrivals_in_a_group_in_a_node_and_of_the_nodes() -> None:
    rates = replace(ALIKE, group_line_ns=10.0, node_line_ns=100.0, far_line_ns=1000.0)
    assert seats_of(4, 4, num_nodes=2).barrier_us(rates) == pytest.approx(0.04 + 0.2 + 2)
    assert seats_of(4, 1).barrier_us(rates) == pytest.approx(0.4)
    assert Seats((1,), (0,)).barrier_us(replace(rates, barrier_base_us=9.0)) == 0


@given(st.sampled_from(recorded_machines()), st.data())
def test_more_tokens_longer_contexts_and_slower_parts_never_take_less_time(
    name: str, data: st.DataObject
) -> None:
    machine = load_machine(name)
    candidate = data.draw(st.sampled_from(candidates(TopoTree.of(machine))))
    seats = Seats.of(machine, candidate.groups)
    rates = estimated_rates(machine, WeightFormat("bfloat16"))

    def total(step: StepSize, with_rates: MachineRates = rates) -> float:
        return cost(operators(LAYOUT, "bfloat16", step), seats, with_rates).total_us

    assert total(StepSize.prefill(128, 4)) <= total(PREFILL)
    assert total(StepSize.decode([64])) <= total(DECODE) <= total(StepSize.decode([1024] * 2))
    assert total(DECODE) <= total(DECODE, rates.as_sampled(len(candidate.cpus), 0.5, 1.0))
    assert total(DECODE) <= total(DECODE, rates.as_sampled(len(candidate.cpus), 1.0, 0.5))
    for price in ("group_line_ns", "node_line_ns", "far_line_ns", "launch_us"):
        dearer = replace(rates, **{price: getattr(rates, price) * 2})
        assert total(DECODE) <= total(DECODE, dearer)


def best(name: str, step: StepSize, **changes: Any) -> Candidate:
    machine = load_machine(name)
    rates = replace(estimated_rates(machine, WeightFormat("bfloat16")), **changes)
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


def test_decode_takes_fewer_cores_where_more_of_them_read_more_slowly() -> None:
    crowded = Curve(((1, 33.0), (2, 64.0), (8, 30.0)))
    assert len(best("epyc-9655", DECODE, group_gbps=crowded).cpus) < 96 / 2


@pytest.mark.parametrize("name", recorded_machines())
def test_a_long_prefill_takes_all_cores(name: str) -> None:
    assert best(name, PREFILL).name.startswith("all ")


@pytest.mark.parametrize(
    ("weights", "factor", "factor_of_avx2"),
    [
        (WeightFormat("float32"), 1, 1),
        (WeightFormat("bfloat16"), 2, 1),
        (WeightFormat("int8"), 2, 1),  # widened to bf16, or to float32
        (WeightFormat("int8", activations="int8"), 4, 2),  # AVX2 multiplies pairs of 16 bits
        (WeightFormat("int4", activations="int8", group=32), 4, 2),
    ],
)
def test_dot_products_multiply_the_arithmetic_where_there_are_any(
    weights: WeightFormat, factor: int, factor_of_avx2: int
) -> None:
    turin, rome = load_machine("epyc-9655"), load_machine("epyc-7h12-2s")
    base = estimated_rates(turin, WeightFormat("float32")).prefill.gemm_gflops.most
    found = estimated_rates(turin, weights).prefill
    assert found.gemm_gflops.most == factor * base
    assert found.attention_gflops <= base  # keys and values stay floats
    plain = estimated_rates(rome, WeightFormat("float32")).prefill
    on_avx2 = estimated_rates(rome, weights).prefill
    assert on_avx2.gemm_gflops.most == factor_of_avx2 * plain.gemm_gflops.most
    assert replace(on_avx2, gemm_gflops=plain.gemm_gflops) == plain


def test_tiles_do_eight_times_as_much_as_dot_products() -> None:
    turin, bf16 = load_machine("epyc-9655"), WeightFormat("bfloat16")
    tiled = estimated_rates(replace(turin, isa="amx"), bf16).decode
    plain = estimated_rates(turin, bf16).decode
    assert tiled.gemm_gflops.most == 8 * plain.gemm_gflops.most
    assert tiled.attention_gflops == plain.attention_gflops


def test_a_processor_that_is_not_known_is_taken_to_need_all_its_cores() -> None:
    machine = replace(load_machine("graviton3"), cpu_model="ARM 0x99:0x001")
    rates = estimated_rates(machine, WeightFormat("bfloat16"))
    assert rates.node_gbps == pytest.approx(64 * rates.core_gbps)


def test_a_token_reads_few_experts_and_a_prompt_all_of_them() -> None:
    traits = Traits(experts=Experts(count=64, per_token=8, size=1024))
    layout = ModelLayout.build(replace(SHAPE, traits=traits), "bfloat16", 16, 64)
    every = SHAPE.num_layers * 64 * layout.panels("down").nbytes

    def of_down(step: StepSize) -> Operator:
        (down,) = [op for op in operators(layout, "bfloat16", step).operators if op.name == "down"]
        return down

    def read(step: StepSize) -> float:
        down = of_down(step)
        return down.repeats * down.num_units * down.nbytes

    assert read(StepSize.decode([1])) == pytest.approx(every / 8)
    assert every / 8 < read(StepSize.decode([1, 1])) < every / 4
    assert read(StepSize.prefill(512, 1)) == pytest.approx(every)
    prompt = of_down(StepSize.prefill(512, 1))
    assert prompt.repeats * prompt.num_units * prompt.flops == 2 * 512 * 8 * 16 * 2048 * 1024
    assert prompt.rows == pytest.approx(64)
