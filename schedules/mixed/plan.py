"""The mixed plan: how the phases share the machine while some requests decode and others prefill.

A plan is a value: frozen, printable, JSON in and out. It knows no model, no cost and no TVM.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final

from platforms.sysfs import format_cpu_list
from schedules.topotree import counted


class MixedPlanError(ValueError):
    """A mixed plan that contradicts itself, or JSON that does not describe one."""


class MixedMode(StrEnum):
    """How prefill and decode share the machine.

    TURNS: a prefill step, then a decode step. RIDE: each prefill step takes a token of every
    decoding sequence along, on the prefill plan (Sarathi-Serve, arXiv 2403.02310). CORUN: decode
    steps on some cores while a prefill step runs on the others (NanoFlow, arXiv 2408.12757).
    """

    TURNS = "turns"
    RIDE = "ride"
    CORUN = "corun"


@dataclass(frozen=True)
class MixedPlan:
    """How a machine is shared while there is work of both phases.

    chunk_tokens: most prompt tokens of one step while others decode; 0 is as many as a step takes.
    prefill_cpus, decode_cpus: two disjoint sets of cores, of CORUN alone. reason: one sentence,
    without the full stop; empty if nobody chose.
    """

    mode: MixedMode = MixedMode.TURNS
    chunk_tokens: int = 0
    prefill_cpus: tuple[int, ...] = ()
    decode_cpus: tuple[int, ...] = ()
    reason: str = ""

    def __post_init__(self) -> None:
        if self.chunk_tokens < 0:
            raise MixedPlanError(f"chunk_tokens is {self.chunk_tokens}; it must be 0 or more")
        prefill, decode = set(self.prefill_cpus), set(self.decode_cpus)
        if self.mode is not MixedMode.CORUN and prefill | decode:
            raise MixedPlanError(f"{self.mode} has cores of its own; only corun sets some apart")
        if self.mode is MixedMode.CORUN and (not prefill or not decode or prefill & decode):
            raise MixedPlanError(
                f"prefill would co-run on {list(self.prefill_cpus)} and decode on "
                f"{list(self.decode_cpus)}; each needs one core or more that the other has not"
            )

    def to_json(self) -> dict[str, Any]:
        """A dict of JSON types; `from_json` gives the plan back."""
        return asdict(self) | {
            "mode": self.mode.value,
            "prefill_cpus": list(self.prefill_cpus),
            "decode_cpus": list(self.decode_cpus),
        }

    @staticmethod
    def from_json(fields: dict[str, Any]) -> MixedPlan:
        """The plan of `to_json`'s dict; MixedPlanError if it is none."""
        try:
            return MixedPlan(
                mode=MixedMode(fields["mode"]),
                chunk_tokens=int(fields["chunk_tokens"]),
                prefill_cpus=tuple(fields["prefill_cpus"]),
                decode_cpus=tuple(fields["decode_cpus"]),
                reason=str(fields["reason"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            text = json.dumps(fields)[:200]
            raise MixedPlanError(f"not a mixed plan ({error!r}): {text}") from error

    def render(self) -> str:
        """One line for people."""
        chunk = f"{self.chunk_tokens} prompt tokens" if self.chunk_tokens else "whole prompt steps"
        what = {
            MixedMode.TURNS: f"{chunk}, then a decode step",
            MixedMode.RIDE: f"{chunk} and every decoding sequence's next in one step",
            MixedMode.CORUN: (
                f"{chunk} on {counted(len(self.prefill_cpus), 'core')} while decode runs on "
                f"{counted(len(self.decode_cpus), 'core')}: {format_cpu_list(self.decode_cpus)}"
            ),
        }
        return f"{'mixed':<8} {self.mode}: {what[self.mode]}"


TAKE_TURNS: Final = MixedPlan()  # whole prefill steps and decode steps by turns
