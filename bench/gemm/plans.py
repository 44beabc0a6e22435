"""The plans that our kernels of the GEMM benchmark run with: those that the engine would have.

That is default tiles, tuned ones where there are records, and newly tuned ones if it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from codegen.layout.model import ModelLayout
from codegen.spec import TileRanges
from platforms.machine import Machine
from sandwich.cli.tune import to_json
from schedules.plan import PlanPair
from schedules.records import RecordBook
from schedules.tiles.default_plans import default_plans
from schedules.tiles.tuned_plans import tuned_plans
from schedules.tiles.tuning import TuningJob, run

# The rule of phases: up to this many rows run with the tile of the decode plan, as the default
# batch of a server does (EngineConfig.max_num_seqs), more with that of the prefill plan.
DECODE_ROWS = 32


@dataclass
class PlanSource:
    """Plans for a model's matrices. budget: seconds to tune each model and format for, 0: none.

    tuning: what that took and found, over all of them.
    """

    machine: Machine
    roles: tuple[str, ...]
    cache_dir: Path
    budget: float = 0.0
    tuning: dict[str, Any] = field(default_factory=lambda: {"seconds": 0.0, "roles": []})

    def plans(self, model: str, layout: ModelLayout, say: Callable[[str], None]) -> PlanPair:
        """The plans for `layout`, tuned first if there is a budget."""
        isa, weights = self.machine.isa_row, layout.weights
        plans = default_plans(isa, self.machine.usable_cpus(), layout.shape, weights)
        if weights.group:
            plans = _with_grouped_head(plans)
        if self.budget:
            say(f"{weights.name} {model}: tuning for {self.budget:g} s")
            job = TuningJob(
                self.machine, plans, layout, self.cache_dir, roles=self.roles, budget=self.budget
            )
            found = to_json(run(job, lambda progress: None))
            self.tuning["seconds"] += found["seconds"]
            self.tuning["roles"] += [{"model": model, **line} for line in found["roles"]]
        return tuned_plans(plans, layout, RecordBook.open(self.machine, self.cache_dir))[0]


def _with_grouped_head(plans: PlanPair) -> PlanPair:
    """No model has an LM head with groups; where one is measured, it has a layer's tiles."""

    def like_first(tiles: tuple[tuple[str, TileRanges], ...]) -> tuple[tuple[str, TileRanges], ...]:
        return tuple((role, tiles[0][1]) for role, _ in tiles)

    return replace(
        plans,
        prefill=replace(plans.prefill, tiles=like_first(plans.prefill.tiles)),
        decode=replace(plans.decode, tiles=like_first(plans.decode.tiles)),
    )


def tiles_of(plans: PlanPair, role: str) -> TileRanges:
    """The tiles of a role by the rule of phases (DECODE_ROWS)."""
    decode, prefill = dict(plans.decode.tiles)[role], dict(plans.prefill.tiles)[role]
    few = [(rows, tile) for rows, tile in decode[:-1] if rows < DECODE_ROWS]
    most = next((tile for rows, tile in decode if rows >= DECODE_ROWS), decode[-1][1])
    return (*few, (DECODE_ROWS, most), *(entry for entry in prefill if entry[0] > DECODE_ROWS))
