"""Mixture of experts: which experts each token has, their rows side by side, and the way back.

The rows of a step are sorted by expert (a counting sort that keeps the order of tokens), so that a
matrix of an expert meets its rows as one product. What a token gets is added up in the order of its
experts, so that it does not depend on the tokens beside it.

Source: Shazeer et al., "Outrageously Large Neural Networks" (arXiv 1701.06538).
"""

from __future__ import annotations

from collections.abc import Callable

from codegen.cores.parallel import split
from codegen.gemm.nest import Slice
from codegen.kit import Expr, T
from codegen.layout.arrays import round_up
from codegen.spec import Experts
from codegen.step.elementwise import LOG2_E
from codegen.step.operators import Collect, Gather, Route
from codegen.step.step import Step

Body = Callable[[Expr], None]  # of an operator, for a share

VECTORS_AT_ONCE = 16  # of a row that a core collects: few tokens leave no core without work


def routing(step: Step, operator: Route | Gather | Collect) -> tuple[Body, ...]:
    """The passes of an operator."""
    match operator:
        case Route(logits=logits):
            return (
                lambda core: choose_experts(step, core, logits),
                lambda core: sort_rows(step, core),
            )
        case Gather(source=source, out=out):
            return (lambda core: gather_rows(step, core, source, out),)
        case Collect(rows=rows, out=out):
            return (lambda core: collect_rows(step, core, rows, out),)


def each_expert(step: Step, product: Callable[[Expr, Expr, Slice], None]) -> None:
    """product(expert, number of rows, which rows) for every expert that has rows."""
    b, turns = step.b, T.bind(step.b["num_chosen"][0])
    with T.serial(0, turns) as turn:
        expert = T.bind(b["chosen_experts"][turn])
        first = T.bind(b["expert_starts"][expert])
        count = T.bind(b["expert_starts"][expert + 1] - first)
        product(expert, count, Slice(step.spec.limits.max_num_tokens, first, turn, turns))


def choose_experts(step: Step, core: Expr, logits: str) -> None:
    """expert_ids[t], expert_shares[t]: the experts of the largest logits of row t, in ascending
    order, and what a softmax gives them.
    """
    kit, b, experts = step.kit, step.b, _experts(step)
    begin, end = split(core, step.spec.num_shares, step.num_tokens)
    size = round_up(experts.count, kit.lanes)
    ranks = T.alloc_buffer((size,), "int32", scope="local")
    powers = T.alloc_buffer((size,), "float32", scope="local")
    count = T.alloc_buffer((1,), "int32", scope="local")
    total = T.alloc_buffer((1,), "float32", scope="local")
    with T.serial(begin, end) as token:
        _rank(step, logits, token, ranks)
        _power(step, logits, token, powers)
        T.buffer_store(count, T.int32(0), [0])
        T.buffer_store(total, T.float32(0), [0])
        with T.serial(0, experts.count) as expert:
            power, place = T.bind(powers[expert]), T.bind(count[0])
            # what is no number comes before nothing and behind nothing: then there are too many
            is_chosen = T.And(ranks[expert] < experts.per_token, place < experts.per_token)
            with T.If(is_chosen), T.Then():
                T.buffer_store(b["expert_ids"], expert, [token, place])
                T.buffer_store(b["expert_shares"], power, [token, place])
                T.buffer_store(count, place + 1, [0])
            counts = is_chosen if experts.is_normalised else True
            T.buffer_store(total, total[0] + T.Select(counts, power, T.float32(0)), [0])
        with T.serial(0, experts.per_token) as place:
            share = b["expert_shares"][token, place] / total[0]
            T.buffer_store(b["expert_shares"], share, [token, place])


def _rank(step: Step, logits: str, token: Expr, ranks: Expr) -> None:
    """ranks[e] = the number of experts that come before expert e."""
    kit, b, count = step.kit, step.b[logits], _experts(step).count
    one, zero = (T.broadcast(T.int32(value), kit.lanes) for value in (1, 0))
    for first in range(0, count, kit.lanes):
        kit.store(ranks, (first,), zero)
        mine = T.bind(kit.load(b, token, first))
        with T.serial(0, count) as other:
            theirs = T.bind(kit.splat(T.bind(b[token, other])))
            is_lower = T.broadcast(other, kit.lanes) < kit.ramp(first)
            is_before = T.Or(theirs > mine, T.And(theirs == mine, is_lower))
            kit.store(ranks, (first,), kit.load(ranks, first) + T.Select(is_before, one, zero))


def _power(step: Step, logits: str, token: Expr, powers: Expr) -> None:
    """powers[e] = exp(logit of e - the largest)."""
    kit, b, count = step.kit, step.b[logits], _experts(step).count
    vectors = [
        T.bind(kit.call("sw_mask_from", kit.load(b, token, first), T.int32(count - first)))
        for first in range(0, count, kit.lanes)
    ]
    largest = vectors[0]
    for vector in vectors[1:]:
        largest = T.bind(T.max(largest, vector))
    peak = T.bind(kit.splat(T.bind(kit.call("sw_hmax", largest))))
    for i, vector in enumerate(vectors):
        scaled = (vector - peak) * kit.splat(LOG2_E)
        kit.store(powers, (i * kit.lanes,), kit.call("sw_exp2", scaled))


def sort_rows(step: Step, core: Expr) -> None:
    """The rows of the experts, by the first share alone: expert_starts[e] is the first row of
    expert e, expert_rows[t] has those of token t, and row_tokens[r] the token of row r;
    chosen_experts has the num_chosen experts that have rows.
    """
    b, experts = step.b, _experts(step)
    starts, chosen, num_chosen = b["expert_starts"], b["chosen_experts"], b["num_chosen"]
    ends = T.alloc_buffer((experts.count,), "int32", scope="local")  # of the rows that are placed
    with T.If(core == 0), T.Then():
        with T.serial(0, experts.count) as expert:
            T.buffer_store(ends, T.int32(0), [expert])
        with T.serial(0, step.num_tokens) as token, T.serial(0, experts.per_token) as place:
            expert = T.bind(b["expert_ids"][token, place])
            T.buffer_store(ends, ends[expert] + 1, [expert])
        T.buffer_store(starts, T.int32(0), [0])
        T.buffer_store(num_chosen, T.int32(0), [0])
        with T.serial(0, experts.count) as expert:
            count, first = T.bind(ends[expert]), T.bind(starts[expert])
            with T.If(count > 0), T.Then():
                T.buffer_store(chosen, expert, [num_chosen[0]])
                T.buffer_store(num_chosen, num_chosen[0] + 1, [0])
            T.buffer_store(starts, first + count, [expert + 1])
            T.buffer_store(ends, first, [expert])
        with T.serial(0, step.num_tokens) as token, T.serial(0, experts.per_token) as place:
            expert = T.bind(b["expert_ids"][token, place])
            row = T.bind(ends[expert])
            T.buffer_store(ends, row + 1, [expert])
            T.buffer_store(b["expert_rows"], row, [token, place])
            T.buffer_store(b["row_tokens"], token, [row])


def gather_rows(step: Step, core: Expr, source: str, out: str) -> None:
    """out[r] = source[token of row r], as activations of the experts' matrices."""
    num_rows = step.num_tokens * _experts(step).per_token
    begin, end = split(core, step.spec.num_shares, num_rows)
    with T.serial(begin, end) as row:
        token = T.bind(step.b["row_tokens"][row])
        step.store_row(out, row, lambda column: step.kit.load_act(step.b[source], token, column))


def collect_rows(step: Step, core: Expr, rows: str, out: str) -> None:
    """out[t] = the sum of rows[r] * share over the experts of token t; x[t] is added to."""
    kit, b, experts = step.kit, step.b, _experts(step)
    num_vectors = step.model.hidden_padded // kit.lanes
    parts = -(-num_vectors // VECTORS_AT_ONCE)
    begin, end = split(core, step.spec.num_shares, step.num_tokens * parts)
    with T.serial(begin, end) as item:
        token, first = T.bind(item // parts), T.bind(item % parts * VECTORS_AT_ONCE)
        places = range(experts.per_token)
        mine = [T.bind(b["expert_rows"][token, place]) for place in places]
        shares = [T.bind(kit.splat(T.bind(b["expert_shares"][token, p]))) for p in places]
        with T.serial(first, T.min(first + VECTORS_AT_ONCE, num_vectors)) as i:
            column = T.bind(i * kit.lanes)
            total = kit.load(b[rows], mine[0], column) * shares[0]
            for row, share in zip(mine[1:], shares[1:], strict=True):
                total = T.bind(total + kit.load(b[rows], row, column) * share)
            if out == "x":
                total = kit.load(b["x"], token, column) + total
            kit.store(b[out], (token, column), total)


def _experts(step: Step) -> Experts:
    experts = step.spec.shape.traits.experts
    assert experts is not None, step.spec.shape
    return experts
