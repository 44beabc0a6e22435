"""Execution plans: which cores run a phase, how they share the work, and with which tiles.

A plan is a value: frozen, printable, JSON in and out. It knows no model and no TVM.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

from codegen.spec import (
    GemmTile,
    Groups,
    Phase,
    TileRanges,
    check_ranges,
    num_cores,
)
from platforms.sysfs import format_cpu_list
from schedules.mixed.plan import TAKE_TURNS, MixedMode, MixedPlan


class PlanError(ValueError):
    """A plan's JSON that does not describe a plan."""


@dataclass(frozen=True)
class Plan:
    """How one phase runs.

    cpus: one worker on each, in the order in which they share the panels of every GEMM (panels in
    equal contiguous ranges) and the KV heads of attention. tiles: (role, ranges of rows with their
    tiles) for every matrix of the model. query_tile: tokens of a sequence that share a pass over
    its keys and values. groups: how many of `cpus`, in their order, share an LLC, by NUMA node;
    they meet there first in a barrier. Empty: all share one.
    """

    phase: Phase
    isa: str
    cpus: tuple[int, ...]
    tiles: tuple[tuple[str, TileRanges], ...]
    query_tile: int
    groups: Groups = ()

    def __post_init__(self) -> None:
        if not self.cpus or len(set(self.cpus)) != len(self.cpus):
            raise PlanError(f"cpus is {list(self.cpus)}; a plan needs one or more different CPUs")
        roles = [role for role, _ in self.tiles]
        if not roles or len(set(roles)) != len(roles):
            raise PlanError(f"tiles are for {roles}; a plan has one each for all matrices")
        for role, ranges in self.tiles:
            try:
                check_ranges(ranges)
            except ValueError as error:
                raise PlanError(f"{role}: {error}") from error
        if type(self.query_tile) is not int or self.query_tile < 1:
            raise PlanError(f"query_tile is {self.query_tile!r}; it is a whole number from 1 on")
        if self.groups and num_cores(self.groups) != len(self.cpus):
            raise PlanError(f"groups {self.groups} are not those of {len(self.cpus)} cpus")

    @property
    def core_groups(self) -> Groups:
        """Numbers of cores by NUMA node and LLC group, never empty."""
        return self.groups or ((len(self.cpus),),)

    def on(self, cpus: Iterable[int], groups: Groups = ()) -> Plan:
        """The same on other cores."""
        return replace(self, cpus=tuple(cpus), groups=groups)

    def groups_of(self, cpus: Iterable[int]) -> Groups:
        """Numbers of cores by NUMA node and LLC group for some of the plan's CPUs."""
        kept, rest = set(cpus), iter(self.cpus)
        counts = [
            [sum(cpu in kept for cpu in islice(rest, size)) for size in node]
            for node in self.core_groups
        ]
        nodes = (tuple(count for count in node if count) for node in counts)
        return tuple(node for node in nodes if node)

    def to_json(self) -> dict[str, Any]:
        """A dict of JSON types; `from_json` gives the plan back."""
        return asdict(self) | {
            "phase": self.phase.value,
            "cpus": list(self.cpus),
            "groups": [list(node) for node in self.groups],
            "tiles": {
                role: [{"max_rows": rows} | asdict(tile) for rows, tile in ranges]
                for role, ranges in self.tiles
            },
        }

    @staticmethod
    def from_json(fields: dict[str, Any]) -> Plan:
        """The plan of `to_json`'s dict; PlanError if it is none."""
        try:
            return Plan(
                phase=Phase(fields["phase"]),
                isa=fields["isa"],
                cpus=tuple(fields["cpus"]),
                groups=tuple(tuple(node) for node in fields["groups"]),
                tiles=tuple((role, _ranges_of(ranges)) for role, ranges in fields["tiles"].items()),
                query_tile=fields["query_tile"],
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise PlanError(f"not a plan ({error!r}): {json.dumps(fields)[:200]}") from error

    def render(self) -> str:
        """One line for people."""
        groups: dict[TileRanges, list[str]] = {}
        for role, ranges in self.tiles:
            groups.setdefault(ranges, []).append(role)
        tiles = "; ".join(
            f"{_ranges_text(ranges)} ({', '.join(roles)})" for ranges, roles in groups.items()
        )
        cpus = format_cpu_list(self.cpus)
        queries = "1 query" if self.query_tile == 1 else f"{self.query_tile} queries"
        return f"{self.phase.value:<8} cores {cpus}  tiles {tiles}  {queries} a pass"


def _ranges_of(entries: list[dict[str, Any]]) -> TileRanges:
    """The ranges of one role out of JSON."""

    def one(max_rows: int, **tile: Any) -> tuple[int, GemmTile]:
        if type(max_rows) is not int:
            raise PlanError(f"max_rows is {max_rows!r}; it is a whole number from 1 on")
        return max_rows, GemmTile(**tile)

    return tuple(one(**entry) for entry in entries)


def _ranges_text(ranges: TileRanges) -> str:
    return " | ".join(f"up to {rows} tokens: {tile_text(tile)}" for rows, tile in ranges)


def tile_text(tile: GemmTile) -> str:
    """A tile for people."""
    size = f"{tile.mr} rows x {tile.nv} vectors" if tile.nv else f"{tile.mr} rows"
    parts = [size, f"K step {tile.k_unroll}"]
    if tile.kc:
        parts.append(f"K block {tile.kc}")
    if tile.prefetch_bytes:
        parts.append(f"prefetch {tile.prefetch_bytes} B")
    if tile.block_prefetch:
        parts.append(f"K blocks prefetched by {tile.block_prefetch}")
    if tile.row_parts > 1:
        parts.append(f"{tile.row_parts} parts of rows")
    if tile.order != "panels":
        parts.append(f"in order of {'rows' if tile.order == 'rows' else 'a curve'}")
    if tile.chains > 1:
        parts.append(f"{tile.chains} chains of sums")
    if tile.is_widened:
        parts.append("widened once")
    return ", ".join(parts)


@dataclass(frozen=True)
class PlanPair:
    """The two plans of a machine, the panel width they share, because they share the weights, and
    what happens while there is work of both.
    """

    panel: int
    prefill: Plan
    decode: Plan
    mixed: MixedPlan = TAKE_TURNS

    def of(self, phase: Phase) -> Plan:
        """The plan of `phase`."""
        return self.prefill if phase is Phase.PREFILL else self.decode

    @property
    def corun(self) -> PlanPair | None:
        """The plans on the cores that the mixed plan sets apart for each; None if it does not."""
        if self.mixed.mode is not MixedMode.CORUN:
            return None
        prefill, decode = self.mixed.prefill_cpus, self.mixed.decode_cpus
        return replace(
            self,
            prefill=self.prefill.on(prefill, self.prefill.groups_of(prefill)),
            decode=self.decode.on(decode, self.prefill.groups_of(decode)),
        )

    def to_json(self) -> dict[str, Any]:
        """A dict of JSON types."""
        return {
            "panel": self.panel,
            "prefill": self.prefill.to_json(),
            "decode": self.decode.to_json(),
            "mixed": self.mixed.to_json(),
        }
