"""The picture of a plan search's choice: the cores of the TopoTree, and what they are used for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Final

from platforms.machine import Machine
from sandwich.errors import ConfigError
from schedules.canvas import Canvas, PictureError
from schedules.choice import PhaseChoice
from schedules.mixed.plan import MixedMode, MixedPlan
from schedules.plan_picture import Use, plan_picture
from schedules.search import SearchResult
from schedules.topotree import Level, TopoTree, counted

# Told apart by colour-blind eyes too; side by side, phases have lighter ones.
PREFILL, DECODE, CORUN_PREFILL, CORUN_DECODE = "#2f6fb0", "#e08a1e", "#a9c6e3", "#f4cf9b"
_MODES: Final = {
    MixedMode.TURNS: "prefill steps and decode steps take turns",
    MixedMode.RIDE: "prefill steps take the next token of every reply along",
}


def draw(path: Path, model: str, machine: Machine, result: SearchResult) -> None:
    """Write the picture; ConfigError for a name or a place where that cannot be done."""
    try:
        picture(model, machine, result).write(path)
    except PictureError as error:
        raise ConfigError(f"--draw {path}: {error}") from error
    except OSError as error:
        raise ConfigError(
            f"--draw {path}: {error.strerror}; give a file in a folder that is there "
            "and may be written"
        ) from error


def picture(model: str, machine: Machine, result: SearchResult) -> Canvas:
    """The machine with the cores of each phase."""
    choices = (result.prefill, result.decode)
    tree = TopoTree.of(machine, _shown_cpus(machine, choices), result.hidden_groups)
    source = "measured on it" if result.rates.is_measured else "estimated from published figures"
    levels = {"socket": Level.SOCKET, "NUMA node": Level.NODE, "LLC group": Level.GROUP}
    counts = [counted(tree.count(level), noun) for noun, level in levels.items()]
    num_cores, num_usable = tree.count(Level.CORE), len(machine.usable_cpus())
    counts.append(counted(num_cores, "core"))
    if num_usable < num_cores:
        counts[-1] += f" ({num_usable} to be used)"
    notes = [f"{', '.join(counts)}; rates {source}"]
    uses = [_use(result.prefill, PREFILL, 0), _use(result.decode, DECODE, 1)]
    if result.mixed is not None:
        uses += _uses_beside(result.mixed.plan)
        if mode := _MODES.get(result.mixed.plan.mode):
            notes.append(f"While there is work of both, {mode}.")
    return plan_picture(f"{model} on {machine.cpu_model}", tree, uses, notes)


def _shown_cpus(machine: Machine, choices: Sequence[PhaseChoice]) -> list[int]:
    """One CPU of every core, used or not; the one that works if there is one."""
    used = set(chain(*(choice.chosen.candidate.cpus for choice in choices)))
    firsts = {core.cpus[0] for core in machine.topology.cores() if not used & set(core.cpus)}
    return sorted(used | firsts)


def _use(choice: PhaseChoice, colour: str, row: int) -> Use:
    chosen = choice.chosen
    text = f"{chosen.candidate.name}, {choice.case.name}: {chosen.shown}"
    return Use(choice.phase.value, frozenset(chosen.candidate.cpus), colour, text, row)


def _uses_beside(plan: MixedPlan) -> list[Use]:
    """What cores do while prefill and decode run side by side; nothing in the other modes."""
    shares = (
        ("prefill", plan.prefill_cpus, CORUN_PREFILL, "beside decode"),
        ("decode", plan.decode_cpus, CORUN_DECODE, "beside prefill"),
    )
    return [
        Use(name, frozenset(cpus), colour, f"{text}, on {counted(len(cpus), 'core')}", 2)
        for name, cpus, colour, text in shares
        if cpus
    ]
