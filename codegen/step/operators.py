"""The operators of a compiled step, as they follow from the text of the model.

A matrix product becomes one operator with what is done to its sums: stored, gated, or added to the
residual stream. There is a barrier behind each operator. The record is a value: programs are
emitted from it, and whoever needs to know what a step consists of counts with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from typing import ClassVar

from codegen.layout.model import ModelLayout
from codegen.model.pattern import Period, pattern_of
from codegen.model.tables import HeadNorms, head_norms
from codegen.model.text import forward
from codegen.spec import LayerKind, ModelShape


@dataclass(frozen=True)
class Operator:
    """An operator: its name in timers and reports.

    num_passes: behind each of them the cores wait for each other. is_optional: a step may do
    without it.
    """

    name: str
    num_passes: ClassVar[int] = 1
    is_optional: ClassVar[bool] = False


@dataclass(frozen=True)
class Embed(Operator):
    """x = rows of the embedding `role`."""

    role: str


@dataclass(frozen=True)
class Norm(Operator):
    """out = RMSNorm of x with the weights `name`, of all tokens or of the wanted ones."""

    out: str
    is_wanted: bool


@dataclass(frozen=True)
class AddNormed(Operator):
    """x += RMSNorm of the rows `rows` with the weights `name`."""

    rows: str


@dataclass(frozen=True)
class Convert(Operator):
    """out = x as activations."""

    out: str


@dataclass(frozen=True)
class Route(Operator):
    """Each token's experts and their shares, by its row of `logits`; then the rows of the experts,
    in order.
    """

    logits: str
    num_passes: ClassVar[int] = 2


@dataclass(frozen=True)
class Gather(Operator):
    """out = a row of `source` for each row of the experts."""

    source: str
    out: str


@dataclass(frozen=True)
class Collect(Operator):
    """The rows of each token's experts, times their shares and added up: stored in `out`, or added
    to the residual stream x.
    """

    rows: str
    out: str


class End(Enum):
    """What becomes of the sums of a matrix product."""

    STORE = "store"
    ADD = "add"
    GATE = "gate"


@dataclass(frozen=True)
class Linear(Operator):
    """The rows `a` times the matrix `name`: stored in `out`, added to it, or gated into it.

    cap: the soft cap of what is stored, 0 for none.
    """

    a: str
    end: End
    out: str
    cap: float = 0.0


@dataclass(frozen=True)
class NormHeads(Operator):
    """Columns of `rows`, from the first on, through the norms of queries and keys."""

    rows: str
    norms: tuple[HeadNorms, ...]


@dataclass(frozen=True)
class RotateAndCache(Operator):
    """queries = the rotated queries of `source`; its keys and values go into the cache.

    rotation: number of the table of rotations.
    """

    source: str
    rotation: int


@dataclass(frozen=True)
class Attention(Operator):
    """out = attention of the queries to the cache, all of it or a window (0: all)."""

    out: str
    window: int


@dataclass(frozen=True)
class Quantize(Operator):
    """The rows `rows`, which were computed in parts that share a scale, in int8 for the matrix
    `reader`.
    """

    rows: str
    reader: str


@dataclass(frozen=True)
class Argmax(Operator):
    """argmax = the largest of each row of logits: by each core in its share, then among those."""

    num_passes: ClassVar[int] = 2


@dataclass(frozen=True)
class Scores(Operator):
    """What is wanted of rows of logits beside the argmax, where anything is."""

    num_passes: ClassVar[int] = 2
    is_optional: ClassVar[bool] = True


@dataclass(frozen=True)
class StepOperators:
    """The operators of a step in order: before the layers, in a layer of each kind, after them.

    pattern: the order of the layers.
    """

    before: tuple[Operator, ...]
    layer: dict[LayerKind, tuple[Operator, ...]]
    after: tuple[Operator, ...]
    pattern: tuple[Period, ...]

    def __iter__(self) -> Iterator[tuple[Operator, int]]:
        """Each operator once for every kind of layer, with the number of times it runs there."""
        runs = [(run, period.repeats) for period in self.pattern for run in period.runs]
        yield from ((operator, 1) for operator in self.before)
        for kind, operators in self.layer.items():
            count = sum(run.count * repeats for run, repeats in runs if run.kind == kind)
            yield from ((operator, count) for operator in operators)
        yield from ((operator, 1) for operator in self.after)

    @property
    def in_layers(self) -> frozenset[str]:
        """The names of the operators in layers."""
        return frozenset(op.name for operators in self.layer.values() for op in operators)

    @property
    def names(self) -> tuple[str, ...]:
        """Of all operators, each once."""
        return tuple(dict.fromkeys(operator.name for operator, _ in self))

    @property
    def num_barriers(self) -> int:
        """Of a step without what is optional."""
        return sum(op.num_passes * repeats for op, repeats in self if not op.is_optional)

    @property
    def products(self) -> tuple[Linear, ...]:
        """The matrix products."""
        return tuple(operator for operator, _ in self if isinstance(operator, Linear))

    @property
    def activations(self) -> dict[str, str]:
        """The arrays of rows that meet matrices, and whose matrix each meets first."""
        readers: dict[str, str] = {}
        for op in self.products:
            readers.setdefault(op.a, op.name)
        return readers

    @property
    def rounded_apart(self) -> tuple[str, ...]:
        """The activations that an operator of their own rounds to int8."""
        return tuple(dict.fromkeys(op.rows for op, _ in self if isinstance(op, Quantize)))


def step_operators(layout: ModelLayout) -> StepOperators:
    """The operators of a step of a model in a layout, whose formats decide what is rounded when."""
    recorder = _Recorder(layout)
    forward(recorder)
    before, after = map(tuple, (recorder.before, recorder.after))
    return StepOperators(before, recorder.layer, after, pattern_of(layout.shape.kinds))


@dataclass(frozen=True)
class _Rows:
    """A value of the text: rows in the array `name`, or their product with `role` to be made.

    norm: their norm, to be made where they are read or added. cap: their soft cap, to be made where
    they are stored; 0 for none. together: columns that one core computes together; 0 for whole
    rows. of_experts: they are those of experts, to be collected where they are used.
    """

    name: str
    role: str = ""
    norm: str = ""
    cap: float = 0.0
    together: int = 0
    is_wanted: bool = False
    of_experts: bool = False


class _Recorder:
    """The interpreter of the text that notes the operators; they all work on the same arrays in
    every layer.
    """

    def __init__(self, layout: ModelLayout) -> None:
        self._layout = layout
        self.before: list[Operator] = []
        self.layer: dict[LayerKind, tuple[Operator, ...]] = {}
        self.after: list[Operator] = []
        self._operators = self.before

    @property
    def shape(self) -> ModelShape:
        return self._layout.shape

    def embed(self, role: str) -> _Rows:
        self._operators.append(Embed("embed", role))
        return _Rows("x")

    def layers(self, x: _Rows, layer: Callable[[LayerKind, _Rows], _Rows]) -> _Rows:
        for kind in dict.fromkeys(self.shape.kinds):
            self._operators = []
            assert layer(kind, x) == x, "a layer ends in the residual stream"
            self.layer[kind] = tuple(self._operators)
        self._operators = self.after
        return x

    def wanted(self, x: _Rows) -> _Rows:
        return replace(x, is_wanted=True)

    def norm(self, role: str, x: _Rows) -> _Rows:
        if x.name != "x":
            x = self._stored(x, "product")
        return replace(x, norm=role)

    def linear(self, role: str, x: _Rows) -> _Rows:
        if x.name == "x":
            x = self._read(role, x)
        weights = self._layout.panels(role).format
        is_apart = not weights.group or x.together % weights.group
        if weights.has_int8_activations and x.together and is_apart:
            self._operators.append(Quantize(f"quantize_{x.name}", x.name, role))
        return replace(x, role=role)

    def norm_heads(self, qkv: _Rows) -> _Rows:
        qkv = self._stored(qkv, "qkv_out")
        self._operators.append(NormHeads("head_norm", qkv.name, head_norms(self.shape)))
        return qkv

    def rotate_and_cache(self, kind: LayerKind, qkv: _Rows) -> _Rows:
        qkv = self._stored(qkv, "qkv_out")
        self._operators.append(RotateAndCache("rope_and_cache", qkv.name, kind.rotation))
        return _Rows("queries")

    def attend(self, kind: LayerKind, queries: _Rows) -> _Rows:
        self._operators.append(Attention("attention", "attended", kind.window))
        return _Rows("attended", together=self.shape.group_size * self._layout.head_dim_padded)

    def gate(self, gate_up: _Rows) -> _Rows:
        self._product(gate_up, End.GATE, "gated")
        return _Rows("gated", together=self._layout.panel // 2)

    def route(self, logits: _Rows, x: _Rows) -> _Rows:
        source = logits.name  # of `x`, as the router reads them
        logits = self._stored(logits, "router_logits")
        self._operators += Route("route", logits.name), Gather("gather", source, "gathered")
        return _Rows("gathered")

    def collect(self, y: _Rows) -> _Rows:
        return replace(self._stored(y, "expert_out"), of_experts=True)

    def add(self, x: _Rows, y: _Rows) -> _Rows:
        if y.norm:
            self._operators.append(AddNormed(y.norm, y.name))
        elif y.of_experts:
            self._operators.append(Collect("collect", y.name, x.name))
        else:
            self._product(y, End.ADD, x.name)
        return x

    def cap(self, logits: _Rows) -> _Rows:
        return replace(logits, cap=self.shape.traits.logit_cap)

    def read(self, logits: _Rows) -> None:
        self._stored(logits, "logits")
        self._operators += Argmax("argmax"), Scores("scores")

    def _read(self, role: str, x: _Rows) -> _Rows:
        """The residual stream, or its norm, as activations for the matrix `role`."""
        is_plain = self._layout.matrices[role].matrix.is_plain
        out = "final" if x.is_wanted else "routed" if is_plain else "normed"
        self._operators.append(
            Norm(x.norm, out, x.is_wanted) if x.norm else Convert("convert", out)
        )
        return _Rows(out)

    def _stored(self, rows: _Rows, out: str) -> _Rows:
        """A product in the array `out`, made now unless it has been."""
        if rows.of_experts:
            self._operators.append(Collect("collect", rows.name, out))
        elif rows.role:
            self._product(rows, End.STORE, out)
        return _Rows(out)

    def _product(self, rows: _Rows, end: End, out: str) -> None:
        self._operators.append(Linear(rows.role, rows.name, end, out, rows.cap))
