"""A phase program: one PrimFunc that runs a whole forward step, from token ids to logits, their
argmax and the scores of tokens.

It reads like the model. The step is one parallel region; every operator is a parallel loop over the
plan's cores with a barrier behind it, and the code between the loops runs on all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from codegen.cores.parallel import each_core, parallel_region
from codegen.gemm.nest import Epilogue, Gemm
from codegen.gemm.register_tile import Weights
from codegen.kit import Expr, T, prim_func
from codegen.spec import OPERATORS, ProgramSpec
from codegen.step.attention import attention
from codegen.step.elementwise import (
    argmax_of_shares,
    argmax_share,
    quantize_rows,
    rms_norm,
    rope_and_cache,
)
from codegen.step.embedding import embed
from codegen.step.epilogues import add_to_residual, silu_gate, store
from codegen.step.scores import score_share, scores_of_shares
from codegen.step.step import LogitBlock, Step
from codegen.step.timing import OUTSIDE, clock_import, switch_to

Body = Callable[[Step], None]


def phase_program(spec: ProgramSpec) -> Any:
    """The PrimFunc of `spec`, named after its phase; its arguments are step.SCALARS, then
    argument_specs(spec).
    """
    return step_program(spec, forward)


def step_program(spec: ProgramSpec, body: Body) -> Any:
    """A PrimFunc with a step's arguments whose parallel region runs `body`."""

    def build() -> None:
        step = Step.of(spec)
        step.declare()
        with ExitStack() as frames:
            frames.enter_context(step.kit.imports())
            if spec.has_timers:
                frames.enter_context(clock_import())
            frames.enter_context(parallel_region(step.team))
            body(step)

    return prim_func(spec.phase.value, build)


def forward(step: Step) -> None:
    """Embedding, the layers, then logits of the wanted rows, a block after the other, and what is
    read from them.
    """
    run(step, "embed", lambda core: embed(step, core))
    with T.serial(0, step.spec.shape.num_layers) as layer:
        decoder_layer(step, layer)
    with logit_blocks(step) as rows:
        head(step, rows)
    if step.spec.has_timers:
        each_core(step.team, lambda core: _clock(step, core, OUTSIDE))


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


def head(step: Step, rows: LogitBlock) -> None:
    """The final norm, the LM head, the argmax of each row and, if any are wanted, scores."""

    def final_norm(core: Expr) -> None:
        def weight(at: Expr) -> Expr:
            return step.kit.load(step.b["norm"], at)

        wanted = step.b["logit_rows"]
        rms_norm(step, core, weight, "final", rows.count, lambda row: wanted[rows.first + row])

    lm_head = linear(step, "lm_head", "final", store(step, "lm_head", "logits"))
    run(step, "norm", final_norm)
    run(step, "lm_head", lambda core: lm_head.emit(core, step.spec.num_cores, rows.count))
    run(step, "argmax", lambda core: argmax_share(step, core, rows))
    run(step, "argmax", lambda core: argmax_of_shares(step, core, rows))
    with T.If(step.num_scored > 0), T.Then():
        run(step, "scores", lambda core: score_share(step, core, rows))
        run(step, "scores", lambda core: scores_of_shares(step, core, rows))


def decoder_layer(step: Step, layer: Expr) -> None:
    """One Llama block: attention and gated MLP, each on a normed copy and added to the residual
    stream x.
    """

    def norm(name: str) -> None:
        def weight(at: Expr) -> Expr:
            return step.kit.load(step.b[name], layer, at)

        run(step, name, lambda core: rms_norm(step, core, weight, "normed", step.num_tokens))

    def gemm(role: str, a: str, epilogue: Callable[[Expr], Epilogue]) -> None:
        def product(core: Expr) -> None:
            gemm = linear(step, role, a, epilogue(core), layer)
            gemm.emit(core, step.spec.num_cores, step.num_tokens)

        run(step, role, product)

    def quantize(name: str) -> None:
        if step.is_rounded_apart(name):
            run(step, f"quantize_{name}", lambda core: quantize_rows(step, core, name))

    norm("input_norm")
    gemm("qkv", "normed", lambda core: store(step, "qkv", "qkv_out", layer))
    run(step, "rope_and_cache", lambda core: rope_and_cache(step, core, layer))
    run(step, "attention", lambda core: attention(step, core, layer))
    quantize("attended")
    gemm("o", "attended", lambda core: add_to_residual(step, "o", layer))
    norm("post_attention_norm")
    gemm("gate_up", "normed", lambda core: silu_gate(step, layer, core))
    quantize("gated")
    gemm("down", "gated", lambda core: add_to_residual(step, "down", layer))


def run(step: Step, operator: str, body: Callable[[Expr], None]) -> None:
    """`body(core)` on every core of the plan, then a barrier; timed as `operator` if asked for."""

    def timed(core: Expr) -> None:
        _clock(step, core, OPERATORS.index(operator))
        body(core)

    each_core(step.team, timed if step.spec.has_timers else body)


def _clock(step: Step, core: Expr, slot: int) -> None:
    with T.If(core == 0), T.Then():
        switch_to(step.b["ticks"], slot)


def linear(step: Step, role: str, a: str, epilogue: Epilogue, layer: Expr | None = None) -> Gemm:
    """The GEMM of `role` on activations `a`; the LM head has no layer."""
    extras = (step.b.get(role + suffix) for suffix in ("_scales", "_zero_points", "_minima"))
    return Gemm(
        kit=step.kit,
        layout=getattr(step.model, role),
        tiles=step.spec.ranges(role),
        a=step.activations(a),
        w=Weights(step.b[role], layer, *extras),
        partial=step.b["partial"],
        epilogue=epilogue,
        in_halves=role == "gate_up",
    )
