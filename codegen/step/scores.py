"""What is read of logits beside their argmax: a token's probability and rank, the likeliest ones.

Each core goes over some of the fixed parts of the vocabulary, then the parts become one result for
each row, so that no row of logits has to leave the program. A probability is
exp(logit - peak) / total, where the peak of the whole row is known before the sum is begun.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from codegen.cores.parallel import split
from codegen.gemm.register_tile import Accumulators
from codegen.kit import Expr, Kit, T
from codegen.spec import NOT_SCORED, SCORE_PARTS
from codegen.step.elementwise import LOG2_E
from codegen.step.step import LogitBlock, Step

SUM_CHAINS = 4  # independent accumulators of the sum of a row's share


def score_share(step: Step, core: Expr, rows: LogitBlock) -> None:
    """share_*[part, r]: of each of this core's parts of the columns, the sum of exp(logit - peak),
    the number of tokens that come before the target, and the likeliest tokens, best first.
    """
    first, last = split(core, step.spec.num_shares, T.int32(SCORE_PARTS))

    def score(row: Expr, at: Expr) -> None:
        with T.serial(first, last) as part:
            begin, end = split(part, SCORE_PARTS, _num_vectors(step))
            _sum_share(step, [part, row], at, begin, end)
            num_top = T.bind(step.b["num_tops"][at])
            with T.If(num_top > 0), T.Then():
                best = BestFirst(
                    step.b["share_top_logits"], step.b["share_top_ids"], [part, row], num_top
                )
                _collect(step, best, row, begin, end)

    _each_scored(step, rows, (0, rows.count), score)


def scores_of_shares(step: Step, core: Expr, rows: LogitBlock) -> None:
    """totals, chosen, ranks and top_*[r] from the parts.

    chosen is the target's logit; ranks count from 1, the lower id first among equals.
    """
    b = step.b

    def join(row: Expr, at: Expr) -> None:
        T.buffer_store(b["totals"], T.float32(0), [at])
        T.buffer_store(b["ranks"], T.int32(1), [at])
        with T.serial(0, SCORE_PARTS) as other:
            T.buffer_store(b["totals"], b["totals"][at] + b["share_totals"][other, row], [at])
            T.buffer_store(b["ranks"], b["ranks"][at] + b["share_before"][other, row], [at])
        T.buffer_store(b["chosen"], b["logits"][row, _target(step, at)], [at])
        num_top = T.bind(b["num_tops"][at])
        with T.If(num_top > 0), T.Then():
            _join_tops(step, BestFirst(b["top_logits"], b["top_ids"], [at], num_top), row)

    _each_scored(step, rows, split(core, step.spec.num_shares, rows.count), join)


class BestFirst:
    """The `most` likeliest of the tokens that are inserted, the lower id first among equals, in
    logits[*at, :] and ids[*at, :].
    """

    def __init__(self, logits: Expr, ids: Expr, at: Sequence[Expr], most: Expr) -> None:
        self._logits, self._ids, self._at = logits, ids, at
        self.most = most
        self._count = T.alloc_buffer((1,), "int32", scope="local")
        self._logit = T.alloc_buffer((1,), "float32", scope="local")  # of the one on its way down
        self._id = T.alloc_buffer((1,), "int32", scope="local")
        T.buffer_store(self._count, T.int32(0), [0])

    def may_take(self, kit: Kit, logits: Expr) -> Expr:
        """Whether a vector of logits, of higher ids than those before, has one of the likeliest."""
        last = self._logits[(*self._at, T.max(self._count[0] - 1, 0))]
        return T.Or(self._count[0] < self.most, kit.call("sw_any_above", logits, last) != 0)

    def insert(self, logit: Expr, token_id: Expr) -> None:
        """From the first place on, whoever is better stays and the other one goes on."""
        T.buffer_store(self._logit, logit, [0])
        T.buffer_store(self._id, token_id, [0])
        with T.serial(0, self._count[0]) as place:
            at = (*self._at, place)
            there, its_id = T.bind(self._logits[at]), T.bind(self._ids[at])
            mine, my_id = T.bind(self._logit[0]), T.bind(self._id[0])
            is_better = T.Or(mine > there, T.And(mine == there, my_id < its_id))
            with T.If(is_better), T.Then():
                self._put(place, mine, my_id)
                T.buffer_store(self._logit, there, [0])
                T.buffer_store(self._id, its_id, [0])
        with T.If(self._count[0] < self.most), T.Then():
            self._put(self._count[0], self._logit[0], self._id[0])
            T.buffer_store(self._count, self._count[0] + 1, [0])

    def _put(self, place: Expr, logit: Expr, token_id: Expr) -> None:
        T.buffer_store(self._logits, logit, [*self._at, place])
        T.buffer_store(self._ids, token_id, [*self._at, place])


def _num_vectors(step: Step) -> int:
    """Vectors that hold a row of logits."""
    return -(-step.spec.shape.vocab_size // step.kit.lanes)


def _each_scored(
    step: Step, rows: LogitBlock, within: tuple[Expr, Expr], body: Callable[[Expr, Expr], None]
) -> None:
    """body(r, at) for the rows r of a block that want scores; `at` is r's number in the step."""
    with T.serial(*within) as row:
        at = T.bind(rows.first + row)
        with T.If(step.b["targets"][at] != NOT_SCORED), T.Then():
            body(row, at)


def _target(step: Step, at: Expr) -> Expr:
    """The token whose score is wanted; any one where it is none in particular."""
    return T.bind(T.max(step.b["targets"][at], 0))


def _logits(step: Step, row: Expr, vector: Expr) -> Expr:
    """A vector of a row of logits, -inf behind the last token."""
    kit, vocab = step.kit, step.spec.shape.vocab_size
    first = vector * kit.lanes
    return T.bind(kit.call("sw_mask_from", kit.load(step.b["logits"], row, first), vocab - first))


def _sum_share(step: Step, share_at: list[Expr], at: Expr, begin: Expr, end: Expr) -> None:
    """share_totals, share_before of one row over the vectors [begin, end)."""
    kit, lanes, row = step.kit, step.kit.lanes, share_at[1]
    target = _target(step, at)
    peak, bar = kit.splat(step.b["peaks"][at]), kit.splat(step.b["logits"][row, target])
    sums, before = Accumulators(kit, 1, SUM_CHAINS), Accumulators(kit, 1, SUM_CHAINS, "int32")
    sums.clear()
    before.load(lambda i, j: T.broadcast(T.int32(0), lanes))
    one, zero = (T.broadcast(T.int32(value), lanes) for value in (1, 0))

    def add(first: Expr, count: int) -> None:
        terms, ahead = [], []
        for i in range(count):
            logits = _logits(step, row, first + i)
            scaled = (logits - peak) * kit.splat(LOG2_E)
            terms.append(T.bind(kit.call("sw_exp2", scaled)))
            is_lower_id = kit.ramp((first + i) * lanes) < T.broadcast(target, lanes)
            is_ahead = T.Or(logits > bar, T.And(logits == bar, is_lower_id))
            ahead.append(T.Select(is_ahead, one, zero))
        sums.add(0, terms)
        before.add(0, ahead)

    whole = T.bind((end - begin) // SUM_CHAINS)
    with T.serial(0, whole) as turn:
        add(begin + turn * SUM_CHAINS, SUM_CHAINS)
    with T.serial(begin + whole * SUM_CHAINS, end) as vector:
        add(vector, 1)
    for name, intrinsic, chains in (
        ("share_totals", "sw_hsum", sums.row(0)),
        ("share_before", "sw_hsum_int", before.row(0)),
    ):
        total = chains[0]
        for vector in chains[1:]:
            total = total + vector
        T.buffer_store(step.b[name], kit.call(intrinsic, total), share_at)


def _collect(step: Step, best: BestFirst, row: Expr, begin: Expr, end: Expr) -> None:
    """Insert the tokens of the vectors [begin, end) that may be among the likeliest."""
    kit, lanes, vocab = step.kit, step.kit.lanes, step.spec.shape.vocab_size
    with T.serial(begin, end) as vector:
        logits, first = _logits(step, row, vector), T.bind(vector * lanes)
        with T.If(best.may_take(kit, logits)), T.Then():
            with T.serial(0, T.min(vocab - first, lanes)) as lane:
                best.insert(step.b["logits"][row, first + lane], first + lane)


def _join_tops(step: Step, best: BestFirst, row: Expr) -> None:
    """Insert the likeliest tokens of every part."""
    b, vocab = step.b, step.spec.shape.vocab_size
    with T.serial(0, SCORE_PARTS) as part:
        begin, end = split(part, SCORE_PARTS, _num_vectors(step))
        width = T.min(end * step.kit.lanes, vocab) - T.min(begin * step.kit.lanes, vocab)
        with T.serial(0, T.min(best.most, width)) as i:
            at = part, row, i
            best.insert(b["share_top_logits"][at], b["share_top_ids"][at])
