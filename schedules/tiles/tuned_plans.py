"""What is tuned of a model's plans, and plans with the tiles of tuned records.

Rows come in ranges; each has one tile, tuned at the number of rows that stands for it. Knows
nothing of how tiles are measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from codegen.layout.matrices import MatrixLayout
from codegen.layout.model import ModelLayout
from codegen.layout.panels import PanelLayout
from codegen.model.tables import Matrix
from codegen.spec import GemmTile, Phase, TileRanges
from platforms.isa import isa_row
from schedules.plan import Plan, PlanPair
from schedules.records import RecordBook, TileKey
from schedules.tiles.default_plans import default_plans
from schedules.tiles.defaults import MANY_ROWS
from schedules.tiles.space import TileSpace
from schedules.tiles.trial import slice_of
from schedules.tiles.tuner import Task

# (most rows, the number that stands for the range) of each phase. Logits are few in both phases.
RANGES = {
    Phase.DECODE: ((1, 1), (4, 4), (8, 8), (MANY_ROWS, 32)),
    Phase.PREFILL: ((128, 128), (MANY_ROWS, 512)),
}
MIN_WEIGHT = 0.05  # of a phase's rows, below which no task's part of the budget falls


def ranges_of(phase: Phase, matrix: Matrix) -> tuple[tuple[int, int], ...]:
    """The ranges of rows of a matrix: (most rows, the number of rows to tune at)."""
    return RANGES[phase if matrix.in_layers else Phase.DECODE]


def phase_of(rows: int) -> Phase:
    """The phase that so many rows stand for."""
    is_decode = rows in (number for _, number in RANGES[Phase.DECODE])
    return Phase.DECODE if is_decode else Phase.PREFILL


def tile_at(ranges: TileRanges, rows: int) -> GemmTile:
    """The tile that a program with these ranges takes for so many rows."""
    return next((tile for most, tile in ranges if rows <= most), ranges[-1][1])


def key_of(plan: Plan, layout: PanelLayout, rows: int) -> TileKey:
    """What a record must be for."""
    return TileKey(plan.isa, layout.format.name, layout.n, layout.k, len(plan.cpus), rows)


def _space(plan: Plan, matrix: Matrix, panels: PanelLayout, rows: int, l2_bytes: int) -> TileSpace:
    return TileSpace(isa_row(plan.isa), panels, rows, l2_bytes, matrix.in_halves, len(plan.cpus))


def tasks_of(
    plans: PlanPair,
    layout: ModelLayout,
    l2_bytes: int,
    phases: Sequence[Phase] = tuple(Phase),
    roles: Sequence[str] = (),
) -> list[Task]:
    """What to tune for a model, or for some of its matrices; GEMMs that come down to the same slice
    are one task, unless one in halves cannot start from the default.

    Where both phases have it, it starts from the default tile of decode.
    """
    tasks: dict[tuple[PanelLayout, int, tuple[int, ...], bool], Task] = {}
    chosen = [layout.matrices[role].matrix for role in roles or layout.matrices]
    for plan, matrix, rows in _decisions(plans, phases, chosen):
        role = matrix.role
        panels = layout.panels(role)
        part = slice_of(panels, rows, len(plan.cpus))
        entry = (role, key_of(plan, panels, rows))
        space = _space(plan, matrix, part, rows, l2_bytes)
        default = space.in_blocks(tile_at(dict(plan.tiles)[role], rows))
        start = space.in_pairs(default)
        key = (part, rows, plan.cpus, start == default)
        known = tasks.get(key, Task((), space, plan.cpus, start, 0.0))
        if entry not in known.roles:
            tasks[key] = replace(
                known,
                roles=(*known.roles, entry),
                space=replace(known.space, in_halves=known.space.in_halves or matrix.in_halves),
                weight=known.weight + layout.num_products(role) * panels.n * panels.k,
            )
    return _weighed(list(tasks.values()))


def _decisions(
    plans: PlanPair, phases: Sequence[Phase], chosen: Sequence[Matrix]
) -> Iterator[tuple[Plan, Matrix, int]]:
    """(plan, matrix, rows) of every range of every plan."""
    for phase in (phase for phase in (Phase.DECODE, Phase.PREFILL) if phase in phases):
        for matrix in chosen:
            for _, rows in ranges_of(phase, matrix):
                yield plans.of(phase), matrix, rows


def _weighed(tasks: list[Task]) -> list[Task]:
    """Tasks of the same rows share the weight 1, by their parts of a step's time."""
    total = {
        rows: sum(task.weight for task in tasks if task.rows == rows)
        for rows in {task.rows for task in tasks}
    }
    return [replace(task, weight=max(task.weight / total[task.rows], MIN_WEIGHT)) for task in tasks]


def untuned(plans: PlanPair, layout: ModelLayout) -> PlanPair:
    """The plans with the default tiles for the formats of `layout`."""
    isa, cpus = isa_row(plans.prefill.isa), plans.prefill.cpus
    default = default_plans(isa, cpus, layout.shape, layout.weights, layout.head)
    return replace(
        plans,
        prefill=replace(plans.prefill, tiles=default.prefill.tiles),
        decode=replace(plans.decode, tiles=default.decode.tiles),
    )


@dataclass(frozen=True)
class TileOrigin:
    """Where the tiles of a role come from: for people, one text for each range."""

    phase: Phase
    role: str
    origins: tuple[str, ...]

    def render(self) -> str:
        """ "default", "tuned on this machine", or both where the ranges differ."""
        return " and ".join(dict.fromkeys(self.origins))


Origins = tuple[TileOrigin, ...]


def render_origins(origins: Sequence[TileOrigin], phase: Phase) -> str:
    """One line for people: where each role's tiles in a phase come from."""
    roles: dict[str, list[str]] = {}
    for origin in origins:
        if origin.phase is phase:
            roles.setdefault(origin.render(), []).append(origin.role)
    return "; ".join(f"{text} ({', '.join(names)})" for text, names in roles.items())


def tuned_plans(plans: PlanPair, layout: ModelLayout, book: RecordBook) -> tuple[PlanPair, Origins]:
    """The plans with the tiles of the best records, and the default where there is none."""
    origins: list[TileOrigin] = []

    def tuned(plan: Plan) -> Plan:
        tiles = []
        for role, default in plan.tiles:
            ranges, origin = _tuned_ranges(plan, layout.matrices[role], default, book)
            tiles.append((role, ranges))
            origins.append(origin)
        return replace(plan, tiles=tuple(tiles))

    pair = replace(plans, prefill=tuned(plans.prefill), decode=tuned(plans.decode))
    return pair, tuple(origins)


def _tuned_ranges(
    plan: Plan, layout: MatrixLayout, default: TileRanges, book: RecordBook
) -> tuple[TileRanges, TileOrigin]:
    matrix, panels = layout.matrix, layout.panels
    ranges: list[tuple[int, GemmTile]] = []
    origins = []
    anything = _space(plan, matrix, panels, MANY_ROWS, l2_bytes=0)
    default = tuple((most, anything.in_pairs(anything.in_blocks(tile))) for most, tile in default)
    above = 0
    for most, rows in ranges_of(plan.phase, matrix):
        origin, pieces = "default", _between(default, above, most)
        found = book.best(key_of(plan, panels, rows))
        if found is not None:
            space = _space(plan, matrix, panels, rows, l2_bytes=0)
            known = space.start(found.record.tile)
            start = space.start(tile_at(default, rows))
            if known == start:  # it needs no code of its own
                origin = f"tuned on {found.origin}"
            elif space.is_legal(known, start):
                origin, pieces = f"tuned on {found.origin}", [(most, known)]
        for piece in pieces:
            if ranges and ranges[-1][1] == piece[1]:
                ranges.pop()
            ranges.append(piece)
        origins.append(origin)
        above = most
    return tuple(ranges), TileOrigin(plan.phase, matrix.role, tuple(origins))


def _between(ranges: TileRanges, above: int, most: int) -> list[tuple[int, GemmTile]]:
    """The part of `ranges` for more than `above` rows and at most `most`."""
    inside = [(bound, tile) for bound, tile in ranges if above < bound < most]
    return [*inside, (most, tile_at(ranges, most))]
