"""A phase program: one function that runs a whole forward step, from token ids to logits, their
argmax and the scores of tokens.

Its operators are those that `codegen.step.operators` records of the text of the model. The step is
one parallel region; every operator is cut into shares that the plan's cores compute and wait for,
and the code between the operators runs on all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from codegen.cores.parallel import each_share, parallel_region
from codegen.functions import ir_module
from codegen.gemm.nest import Epilogue, Gemm, Slice
from codegen.gemm.register_tile import Weights
from codegen.kit import Expr, T
from codegen.model.pattern import Period
from codegen.spec import ProgramSpec
from codegen.step.arguments import TIMER_WORDS
from codegen.step.attention import attention
from codegen.step.elementwise import (
    add_normed,
    argmax_of_shares,
    argmax_share,
    convert_rows,
    quantize_rows,
    rms_norm,
    rope_and_cache,
)
from codegen.step.embedding import embed
from codegen.step.epilogues import Index, add_to_residual, gate, store
from codegen.step.head_norm import norm_heads
from codegen.step.operators import (
    AddNormed,
    Argmax,
    Attention,
    Collect,
    Convert,
    Embed,
    End,
    Gather,
    Linear,
    Norm,
    NormHeads,
    Operator,
    Quantize,
    RotateAndCache,
    Route,
    Scores,
)
from codegen.step.routing import each_expert, routing
from codegen.step.scores import score_share, scores_of_shares
from codegen.step.step import LogitBlock, Step
from codegen.step.timing import OUTSIDE, clock_import, switch_to

Body = Callable[[Step], None]


def phase_program(spec: ProgramSpec) -> Any:
    """The module of `spec`, whose function is named after the phase; its arguments are
    step.SCALARS, then argument_specs(spec).
    """
    return step_program(spec, forward)


def step_program(spec: ProgramSpec, body: Body) -> Any:
    """A module whose function has a step's arguments and whose parallel region runs `body`."""

    def build() -> None:
        step = Step.of(spec)
        step.declare()
        with ExitStack() as frames:
            frames.enter_context(step.kit.imports())
            if spec.has_timers:
                frames.enter_context(clock_import())
            frames.enter_context(parallel_region(step.team))
            body(step)

    return ir_module(spec.phase.value, build)


def forward(step: Step) -> None:
    """All operators: those before the layers, the layers in a loop, then those that make logits of
    the wanted rows, a block after the other, and read them.
    """
    for operator in step.operators.before:
        emit(step, operator)
    first = 0
    for period in step.operators.pattern:
        layers(step, period, first)
        first += period.length * period.repeats
    with logit_blocks(step) as rows:
        for operator in step.operators.after:
            emit(step, operator, rows=rows)
    if step.spec.has_timers:
        each_share(step.team, lambda core: _clock(step, core, OUTSIDE))


def layers(step: Step, period: Period, first: int) -> None:
    """Loops over the layers of a period, which begin with layer `first`."""

    def run_through(turn_first: Expr) -> None:
        at = turn_first
        for part in period.runs:
            with T.serial(0, part.count) as index:
                layer = index if isinstance(at, int) and at == 0 else T.bind(at + index)
                for operator in step.operators.layer[part.kind]:
                    emit(step, operator, layer)
            at = at + part.count

    if period.repeats == 1:
        run_through(first)
        return
    with T.serial(0, period.repeats) as turn:
        run_through(T.bind(first + turn * period.length))


@contextmanager
def logit_blocks(step: Step) -> Iterator[LogitBlock]:
    """A loop over the wanted rows in blocks; all but the first are as large as they may be, so that
    the last rows of a step have their logits in memory when it ends.
    """
    most, count = step.spec.limits.max_num_logits, step.num_logits
    num_blocks = T.bind((count + (most - 1)) // most)
    with T.serial(0, num_blocks) as block:
        end = T.bind(count - (num_blocks - 1 - block) * most)
        first = T.bind(T.max(end - most, 0))
        yield LogitBlock(first, T.bind(end - first))


def emit(
    step: Step, operator: Operator, layer: Expr | None = None, rows: LogitBlock | None = None
) -> None:
    """An operator of a layer, or one that has wanted rows, or one before both."""

    def each(*bodies: Callable[[Expr], None]) -> None:
        for body in bodies:
            run(step, operator.name, body)

    match operator:
        case Embed(role=role):
            each(lambda core: embed(step, core, role))
        case Norm() | AddNormed() | Convert():
            each(lambda core: _from_residual(step, core, operator, layer, rows))
        case Linear():
            each(lambda core: _product(step, core, operator, layer, rows))
        case NormHeads():
            each(lambda core: norm_heads(step, core, operator, layer))
        case RotateAndCache():
            each(lambda core: rope_and_cache(step, core, layer, operator.rotation))
        case Attention():
            each(lambda core: attention(step, core, layer, operator.window))
        case Quantize(rows=name):
            each(lambda core: quantize_rows(step, core, name))
        case Route() | Gather() | Collect():
            each(*routing(step, operator))
        case Argmax() | Scores():
            assert rows is not None
            _read_logits(operator, step, rows, each)
        case _:
            raise AssertionError(operator)


def _read_logits(
    operator: Argmax | Scores, step: Step, rows: LogitBlock, each: Callable[..., None]
) -> None:
    match operator:
        case Argmax():
            each(
                lambda core: argmax_share(step, core, rows),
                lambda core: argmax_of_shares(step, core, rows),
            )
        case Scores():
            with T.If(step.num_scored > 0), T.Then():
                each(
                    lambda core: score_share(step, core, rows),
                    lambda core: scores_of_shares(step, core, rows),
                )


def _weight(step: Step, role: str, layer: Expr | None) -> Callable[[Expr], Expr]:
    """The vector of a norm's weights at a column."""
    return lambda at: step.kit.load(step.b[role], *([] if layer is None else [layer]), at)


def _from_residual(
    step: Step,
    core: Expr,
    operator: Norm | AddNormed | Convert,
    layer: Expr | None,
    rows: LogitBlock | None,
) -> None:
    weight = _weight(step, operator.name, layer)
    match operator:
        case Convert():
            convert_rows(step, core, operator.out)
        case AddNormed():
            add_normed(step, core, operator.rows, weight)
        case Norm() if rows is None:
            rms_norm(step, core, weight, operator.out, step.num_tokens)
        case Norm():
            wanted, first = step.b["logit_rows"], rows.first
            rms_norm(step, core, weight, operator.out, rows.count, lambda row: wanted[first + row])


def _product(
    step: Step, core: Expr, op: Linear, layer: Expr | None, rows: LogitBlock | None
) -> None:
    def product(which: Index, num_rows: Expr, part: Slice | None = None) -> None:
        match op.end:
            case End.STORE:
                epilogue = store(step, op.name, op.out, which, op.cap)
            case End.ADD:
                epilogue = add_to_residual(step, op.name, which)
            case End.GATE:
                epilogue = gate(step, op.name, op.out, which, core)
        gemm = linear(step, op.name, op.a, epilogue, which, part)
        gemm.emit(core, step.spec.cut, num_rows)

    if step.model.matrices[op.name].matrix.num_experts:
        each_expert(step, lambda expert, count, part: product((layer, expert), count, part))
    elif rows is None:
        product((layer,), step.num_tokens)
    else:
        product((), rows.count)


def run(step: Step, operator: str, body: Callable[[Expr], None]) -> None:
    """`body(share)` for every share of an operator, on the cores of the plan, until all are done;
    timed as `operator` if asked for.

    From the moment another thread sets `stop`, operators do nothing, GEMMs compute no more panels
    and the step soon ends. What it has written is of no use then, so cores need not agree on when
    that was.
    """

    def unless_stopped(core: Expr) -> None:
        if step.spec.has_timers:
            _clock(step, core, TIMER_WORDS + step.operators.names.index(operator))
        with T.If(step.b["stop"][0] == 0), T.Then():
            body(core)

    each_share(step.team, unless_stopped)


def _clock(step: Step, core: Expr, slot: int) -> None:
    with T.If(core == 0), T.Then():
        switch_to(step.b["ticks"], slot)


def linear(
    step: Step,
    role: str,
    a: str,
    epilogue: Epilogue,
    which: Index = (),
    rows: Slice | None = None,
) -> Gemm:
    """The GEMM of `role` on activations `a`, or some rows of them, with the matrix that has the
    indices `which`.
    """
    extras = (step.b.get(role + suffix) for suffix in ("_scales", "_zero_points", "_minima"))
    matrix = step.model.matrices[role]
    shape = step.num_rows_of(role), matrix.panels.n_padded
    return Gemm(
        kit=step.kit,
        layout=matrix.panels,
        tiles=step.spec.ranges(role),
        a=step.activations(a),
        w=Weights(step.b[role], which, *extras),
        partial=T.decl_buffer(shape, "float32", data=step.b["partial"].data),
        epilogue=epilogue,
        in_halves=matrix.matrix.in_halves,
        stop=step.b["stop"],
        rows=rows,
    )
