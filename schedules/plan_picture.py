"""The TopoTree as a picture: sockets, nodes and LLC groups as boxes, and in every core a stripe for
each use that is made of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from schedules.canvas import Box, Canvas, Label, Shape
from schedules.topotree import Level, TopoTree, counted

MARGIN: Final = 24.0
MAX_WIDTH: Final = 1180.0  # of a row of LLC groups
MIN_WIDTH: Final = 640.0
CELL_WIDTH, STRIPE, NUMBER_HEIGHT = 30.0, 11.0, 13.0
GAP, PAD, HEAD = 4.0, 8.0, 20.0  # between cells, inside boxes, of a box's label
UNUSED: Final = "#e4e4e4"
INK, FAINT = "#222222", "#666666"
_FILLS: Final = {Level.SOCKET: "#fbfbfb", Level.NODE: "#f1f4f8", Level.GROUP: "#ffffff"}
_EDGES: Final = {Level.SOCKET: "#999999", Level.NODE: "#b4bfcc", Level.GROUP: "#c8c8c8"}


@dataclass(frozen=True)
class Use:
    """What cores are used for: a stripe in each of `cpus`. text: for the legend, one line.

    row: of the stripe in a core, from the top; uses of different cores may share one.
    """

    name: str
    cpus: frozenset[int]
    colour: str
    text: str
    row: int


@dataclass(frozen=True)
class _Block:
    """A box with what is in it, its corner at (0, 0)."""

    width: float
    height: float
    shapes: tuple[Shape, ...]

    def at(self, x: float, y: float) -> list[Shape]:
        """The shapes with the corner at (x, y)."""
        return [_moved(shape, x, y) for shape in self.shapes]


def plan_picture(title: str, tree: TopoTree, uses: Sequence[Use], notes: Sequence[str]) -> Canvas:
    """Draw a machine. notes: lines of text above the legend."""
    painter = _Painter(uses)
    body = painter.block(tree)
    shapes: list[Shape] = []
    y = MARGIN + 16
    shapes.append(Label(MARGIN, y, title, size=17, is_bold=True))
    for note in notes:
        y += 20
        shapes.append(Label(MARGIN, y, note, size=12, fill=FAINT))
    for use in uses:
        y += 22
        shapes.append(Box(MARGIN, y - 11, CELL_WIDTH, STRIPE, use.colour, radius=2))
        shapes.append(Label(MARGIN + CELL_WIDTH + 8, y - 1, use.name, size=13, is_bold=True))
        shapes.append(Label(MARGIN + CELL_WIDTH + 78, y - 1, use.text, size=13))
    if any(cpu not in row for row in _cpus_of_rows(uses) for cpu in tree.cpus):
        y += 22
        shapes.append(Box(MARGIN, y - 11, CELL_WIDTH, STRIPE, UNUSED, radius=2))
        shapes.append(Label(MARGIN + CELL_WIDTH + 8, y - 1, "not used", size=13, fill=FAINT))
    y += 16
    longest = max([len(title) * 1.3, *(len(n) for n in notes), *(len(u.text) + 12 for u in uses)])
    width = max(MIN_WIDTH, body.width + 2 * MARGIN, longest * 7.3 + 2 * MARGIN)
    height = y + body.height + MARGIN
    shapes += body.at(MARGIN, y)
    return Canvas(width, height, [Box(0, 0, width, height, "#ffffff"), *shapes])


@dataclass(frozen=True)
class _Painter:
    uses: Sequence[Use]

    def block(self, tree: TopoTree) -> _Block:
        """A subtree from the machine down to an LLC group."""
        if tree.level == Level.GROUP:
            cores = [self._core(thread.number) for thread in tree.at(Level.THREAD)]
            return self._box(tree, _grid(cores, _columns(len(cores))))
        inner = _flow([self.block(child) for child in tree.children])
        return inner if tree.level == Level.MACHINE else self._box(tree, inner)

    def _box(self, tree: TopoTree, inner: _Block) -> _Block:
        text = _name(tree)
        width = max(inner.width + 2 * PAD, 6.6 * len(text) + 2 * PAD)
        height = inner.height + HEAD + PAD
        fill, edge = _FILLS[tree.level], _EDGES[tree.level]
        size, ink = (10.0, FAINT) if tree.level == Level.GROUP else (12.0, INK)
        frame = Box(0, 0, width, height, fill, edge, radius=5)
        label = Label(PAD, 14, text, size=size, fill=ink)
        return _Block(width, height, (frame, label, *inner.at(PAD, HEAD)))

    def _core(self, cpu: int) -> _Block:
        found = {use.row: use for use in self.uses if cpu in use.cpus}
        names = ", ".join(use.name for use in found.values()) or "not used"
        num_rows = len(_cpus_of_rows(self.uses))
        stripes = [
            Box(
                0,
                row * STRIPE,
                CELL_WIDTH,
                STRIPE,
                found[row].colour if row in found else UNUSED,
                stroke="#ffffff",
                radius=2,
                title=f"CPU {cpu}: {names}",
            )
            for row in range(num_rows)
        ]
        top = num_rows * STRIPE
        number = Label(CELL_WIDTH / 2, top + 9, str(cpu), size=8.5, fill=FAINT, anchor="middle")
        return _Block(CELL_WIDTH, top + NUMBER_HEIGHT, (*stripes, number))


def _cpus_of_rows(uses: Sequence[Use]) -> list[set[int]]:
    """The CPUs that have a colour, by row of stripes."""
    rows: dict[int, set[int]] = {}
    for use in uses:
        rows.setdefault(use.row, set()).update(use.cpus)
    return [rows[row] for row in sorted(rows)]


def _name(tree: TopoTree) -> str:
    cores = counted(tree.count(Level.CORE), "core")
    kind = {Level.SOCKET: "socket", Level.NODE: "NUMA node", Level.GROUP: "LLC"}[tree.level]
    return f"{kind}: {cores}" if tree.level == Level.GROUP else f"{kind} {tree.number}: {cores}"


def _columns(num_cores: int) -> int:
    """Cores in a row of an LLC group: one row of few, two of more, as many as needed of many."""
    num_rows = 1 if num_cores <= 4 else max(2, -(-num_cores // 16))
    return -(-num_cores // num_rows)


def _grid(blocks: Sequence[_Block], columns: int) -> _Block:
    rows = [blocks[i : i + columns] for i in range(0, len(blocks), columns)]
    return _stack([_row(row) for row in rows])


def _flow(blocks: Sequence[_Block]) -> _Block:
    """Rows from left to right, no wider than MAX_WIDTH; equally long ones if they are not short."""
    widest = max(block.width for block in blocks)
    most = min(len(blocks), max(1, int((MAX_WIDTH + PAD) // (widest + PAD))))
    even = (n for n in range(most, most // 2, -1) if len(blocks) % n == 0)
    per_row = next(even, most)
    rows = [blocks[i : i + per_row] for i in range(0, len(blocks), per_row)]
    return _stack([_row(row, PAD) for row in rows], PAD)


def _row(blocks: Sequence[_Block], gap: float = GAP) -> _Block:
    shapes: list[Shape] = []
    x = 0.0
    for block in blocks:
        shapes += block.at(x, 0)
        x += block.width + gap
    return _Block(x - gap, max(block.height for block in blocks), tuple(shapes))


def _stack(blocks: Sequence[_Block], gap: float = GAP) -> _Block:
    shapes: list[Shape] = []
    y = 0.0
    for block in blocks:
        shapes += block.at(0, y)
        y += block.height + gap
    return _Block(max(block.width for block in blocks), y - gap, tuple(shapes))


def _moved(shape: Shape, x: float, y: float) -> Shape:
    return replace(shape, x=shape.x + x, y=shape.y + y)
