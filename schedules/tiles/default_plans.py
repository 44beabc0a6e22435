"""The plans of a machine without records: all cores, and the default tiles of its ISA."""

from __future__ import annotations

from collections.abc import Iterable

from codegen.model.tables import matrices
from codegen.spec import ModelShape, Phase, WeightFormat
from platforms.isa import IsaRow
from schedules.plan import Plan, PlanPair
from schedules.tiles.defaults import default_tiles

QUERY_ROWS = 16  # rows of an attention tile: query heads x tokens


def panel_width(isa: IsaRow) -> int:
    """Columns of a weight panel: four vectors where the registers hold a 6 x 4 tile, else eight, of
    which a row has sums enough in registers not to wait for them, and tiles take two.
    """
    return isa.lanes * (4 if isa.num_vector_registers >= 32 else 8)


def default_plans(
    isa: IsaRow,
    cpus: Iterable[int],
    model: ModelShape,
    weights: WeightFormat | None = None,
    lm_head: WeightFormat | None = None,
) -> PlanPair:
    """The plans of an ISA with nothing measured: complete and right, every core in both phases.

    weights, lm_head: the formats of the layers' matrices and of the LM head; None for weights that
    are not quantised.
    """
    cores, plain = tuple(cpus), WeightFormat("bfloat16")

    def plan(phase: Phase, query_tile: int) -> Plan:
        layers = default_tiles(isa, phase, weights or plain)
        head = default_tiles(isa, phase, lm_head or plain)
        tiles = tuple((m.role, layers if m.in_layers else head) for m in matrices(model))
        return Plan(phase, isa.name, cores, tiles, query_tile)

    return PlanPair(
        panel=panel_width(isa),
        prefill=plan(Phase.PREFILL, max(1, QUERY_ROWS // model.group_size)),
        decode=plan(Phase.DECODE, 1),
    )
