"""The picture of `sandwich plan --draw`: what a search has chosen, as uses of the TopoTree's cores.

Knows nothing of how it is painted.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path

from platforms.machine import Machine
from sandwich.config import ConfigError
from schedules.canvas import PictureError
from schedules.choice import PhaseChoice
from schedules.mixed import MixedMode
from schedules.plan_picture import Use, plan_picture
from schedules.search import SearchResult
from schedules.topotree import Level, TopoTree, counted

PREFILL, DECODE, CORUN = "#2f6fb0", "#e08a1e", "#7a5aa6"  # told apart by colour-blind eyes too


def draw(path: Path, model: str, machine: Machine, result: SearchResult) -> None:
    """Write the picture; ConfigError for a name or a place where that cannot be done."""
    choices = (result.prefill, result.decode)
    cpus = {*machine.usable_cpus(), *chain(*(c.chosen.candidate.cpus for c in choices))}
    tree = TopoTree.of(machine, sorted(cpus))
    source = "measured on it" if result.rates.is_measured else "estimated from published figures"
    levels = {"socket": Level.SOCKET, "NUMA node": Level.NODE, "LLC group": Level.GROUP}
    counts = [counted(tree.count(level), noun) for noun, level in levels.items()]
    counts.append(counted(tree.count(Level.CORE), "core"))
    notes = [f"{', '.join(counts)}; rates {source}"]
    uses = [_use(result.prefill, PREFILL), _use(result.decode, DECODE)]
    mixed = result.mixed
    if mixed is not None and mixed.plan.mode is MixedMode.CORUN:
        text = "cores that go on decoding while the others prefill"
        uses.append(Use("co-run", frozenset(mixed.plan.decode_cpus), CORUN, text))
    elif mixed is not None:
        notes.append(f"while there is work of both: {mixed.plan.mode.value}")
    try:
        plan_picture(f"{model} on {machine.cpu_model}", tree, uses, notes).write(path)
    except (PictureError, OSError) as error:
        raise ConfigError(f"--draw {path}: {error}") from error


def _use(choice: PhaseChoice, colour: str) -> Use:
    chosen = choice.chosen
    text = f"{chosen.candidate.name}: {choice.case.name} in {chosen.shown}"
    return Use(choice.phase.value, frozenset(chosen.candidate.cpus), colour, text)
