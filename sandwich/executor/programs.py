"""From the specs of phase programs to compiled ones: the code behind them and their launchers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codegen.cache import ProgramCache
from codegen.compile import load, lower, object_code
from codegen.spec import Phase, ProgramSpec
from codegen.step.program import phase_program
from platforms.isa import isa_row
from sandwich.executor.launcher import Launcher
from sandwich.executor.specs import Specs
from schedules.plan import PlanPair

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PhaseProgram:
    """A compiled program, what it was compiled for, and the launcher of its plan."""

    spec: ProgramSpec
    function: Any
    launcher: Launcher

    def __post_init__(self) -> None:
        if self.spec.num_cores > len(self.launcher.cpus):
            raise ValueError(
                f"the {self.spec.phase.value} program is for {self.spec.num_cores} cores, but its "
                f"launcher has {len(self.launcher.cpus)} workers; they would wait for ever"
            )


def compile_programs(
    specs: Specs,
    plans: PlanPair,
    cache_dir: Path,
    is_pinned: bool = True,
    dump: Sequence[str] = (),
    prefix: str = "",
) -> dict[Phase, PhaseProgram]:
    """Machine code for both phases, from the cache or from TVM, each with its launcher.

    dump: forms to write beside the cache ("tir", "ll", "asm"); they are made by compiling again.
    prefix: what their files' names and those of the threads begin with.
    """
    cache = ProgramCache(cache_dir)

    def code(spec: ProgramSpec) -> bytes:
        if dump:
            return _compile(spec, cache_dir / "dump", dump, prefix)
        return cache.get(cache.key(spec, isa_row(spec.isa)), lambda: _compile(spec))

    with ThreadPoolExecutor(len(specs)) as pool:
        objects = dict(zip(specs, pool.map(code, specs.values()), strict=True))
    launchers = phase_launchers(plans, is_pinned, prefix)
    return {
        phase: PhaseProgram(
            spec,
            load(objects[phase], phase.value),
            launchers[phase],
        )
        for phase, spec in specs.items()
    }


def phase_launchers(plans: PlanPair, is_pinned: bool, prefix: str = "") -> dict[Phase, Launcher]:
    """A launcher for each phase; one for both if their plans have the same CPUs, in order."""
    phases: dict[tuple[int, ...], list[Phase]] = {}
    for phase in Phase:
        phases.setdefault(plans.of(phase).cpus, []).append(phase)
    launchers: dict[Phase, Launcher] = {}
    for cpus, users in phases.items():
        launchers |= dict.fromkeys(users, Launcher(prefix + "-".join(users), cpus, is_pinned))
    return launchers


def _compile(
    spec: ProgramSpec, folder: Path | None = None, dump: Sequence[str] = (), prefix: str = ""
) -> bytes:
    _log.info("compiling the %s program for %s", spec.phase.value, spec.isa)
    program = phase_program(spec)
    module = lower(program, isa_row(spec.isa))
    for form in dump:
        assert folder is not None
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{prefix}{spec.phase.value}.{form}"
        file.write_text(program.script() if form == "tir" else module.inspect_source(form))
        _log.info("wrote %s", file)
    return object_code(module)
