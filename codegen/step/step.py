"""What the operators of a phase program share: the sizes, the kits and the buffers, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from codegen.cores.parallel import Team
from codegen.functions import declare
from codegen.gemm.register_tile import Activations
from codegen.kit import Expr, Kit, T
from codegen.layout.model import KvLayout, ModelLayout
from codegen.layout.operands import Int8Rows
from codegen.layout.panels import PanelLayout
from codegen.spec import ProgramSpec
from codegen.step.arguments import (
    FLOAT_ROWS,
    SCALARS,
    Layouts,
    argument_specs,
    int8_rows,
    num_rows,
)
from codegen.step.operators import StepOperators, step_operators
from codegen.step.quantize_rows import quantize_group, quantize_row
from platforms.isa import isa_row


@dataclass(frozen=True)
class LogitBlock:
    """Wanted rows whose logits are in memory together: `count` of them, from row `first` on."""

    first: Expr
    count: Expr


@dataclass
class Step:
    """A program under construction: `b[name]` is a buffer, `num_tokens` and its like are
    scalars.
    """

    spec: ProgramSpec
    kit: Kit
    kv_kit: Kit
    model: ModelLayout
    kv: KvLayout
    operators: StepOperators
    b: dict[str, Expr] = field(default_factory=dict)
    num_tokens: Expr = None
    num_tiles: Expr = None
    num_logits: Expr = None
    num_scored: Expr = None

    @staticmethod
    def of(spec: ProgramSpec) -> Step:
        """A Step with its kits and layouts and, until `declare`, no buffers."""
        layouts, isa = Layouts.of(spec), isa_row(spec.isa)
        kit, kv_kit = Kit(isa, spec.dtype), Kit(isa, layouts.kv.format.product_dtype)
        operators = step_operators(layouts.model)
        return Step(spec, kit, kv_kit, layouts.model, layouts.kv, operators)

    def declare(self) -> None:
        """Add the parameters to the function under construction: the scalars, then every buffer."""
        for name in SCALARS:
            setattr(self, name, T.arg(name, T.int32()))
        specs = {k: s for group in argument_specs(self.spec).values() for k, s in group.items()}
        self.b |= declare(specs)

    @property
    def team(self) -> Team:
        """The cores that run the program."""
        return Team(self.spec.groups, self.b["barrier"], isa_row(self.spec.isa), self.b["claims"])

    def int8_rows(self, name: str) -> Int8Rows | None:
        """The form of the activations `name`, or None if they are floats."""
        return int8_rows(isa_row(self.spec.isa), self._panels(name))

    def num_rows_of(self, role: str) -> int:
        """The most rows that meet the matrix `role`."""
        return num_rows(self.spec, self.model, role)

    def rows_of(self, role: str) -> Expr:
        """The rows of this step that meet the matrix `role` of the layers."""
        return self.num_tokens * self.model.matrices[role].matrix.per_token

    def _panels(self, name: str) -> PanelLayout:
        """The panels that the activations `name` meet first."""
        return self.model.panels(self.operators.activations[name])

    def activations(self, name: str) -> Activations:
        """The arrays of the activations `name`."""
        extras = (self.b.get(name + suffix) for suffix in ("_scales", "_bias", "_sums"))
        return Activations(self.b[name], *extras)

    def is_rounded_apart(self, name: str) -> bool:
        """Whether an operator of its own rounds the activations `name` to int8."""
        return name in self.operators.rounded_apart

    def group_of(self, name: str) -> int:
        """Columns of the activations `name` that are to be stored together, by `store_group`; 0 if
        any vector can be stored by itself.
        """
        form = self.int8_rows(name)
        return 0 if form is None or self.is_rounded_apart(name) else form.weights.format.group

    def store_group(self, name: str, row: Expr, group: Expr, vectors: Sequence[Expr]) -> None:
        """Store a group of a row of activations, float32 vectors, as int8."""
        form = self.int8_rows(name)
        assert form is not None, name
        quantize_group(self.kit, form, self.activations(name), row, group, vectors)

    def store_part(self, name: str, row: Expr, column: Expr, vector: Expr) -> None:
        """Store float32 lanes of a row of activations, from `column` (a multiple of lanes) on. Rows
        that are to be int8 wait for the rest in float32.
        """
        if self.is_rounded_apart(name):
            self.kit.store(self.b[name + FLOAT_ROWS], (row, column), vector)
        else:
            self.kit.store_act(self.b[name], row, column, vector)

    def store_row(self, name: str, row: Expr, load: Callable[[Expr], Expr]) -> None:
        """Store a whole row of activations, quantised if they are to be: load(column) is a float32
        vector.
        """
        form = self.int8_rows(name)
        if form is not None:
            quantize_row(self.kit, form, self.activations(name), row, load)
            return
        with T.serial(0, -(-self._panels(name).k // self.kit.lanes)) as i:
            column = i * self.kit.lanes
            self.kit.store_act(self.b[name], row, column, load(column))

    def has(self, name: str) -> bool:
        """Whether the model has that tensor (biases and a separate embedding are optional)."""
        return name in self.b
