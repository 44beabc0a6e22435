"""`sandwich tune [MODEL]`: find the fastest kernels for a model's matrices on this machine.

Tiles are searched for in seconds and kept as records beside the compiled programs; every later
start uses them. Records can be carried to like machines.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sandwich.cli.options import add_model_argument, add_options, build_config
from sandwich.config import SANDWICH_CACHE_DIR, EngineConfig
from sandwich.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from codegen.layout.model import ModelLayout
    from codegen.spec import GemmTile
    from schedules.tiles.tuner import Outcome, Progress, Summary
    from schedules.tiles.tuning import TuningJob

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument(
        "--budget",
        type=_seconds,
        default="60s",
        metavar="TIME",
        help="time to spend, in seconds, or with a unit: 90s, 2m (default: 60s)",
    )
    parser.add_argument(
        "--roles",
        type=_roles,
        metavar="A,B",
        help="matrices to tune, such as qkv,lm_head: `sandwich plan` names them (default: all)",
    )
    parser.add_argument(
        "--phase", choices=("prefill", "decode"), help="tune this phase only (default: both)"
    )
    parser.add_argument("--json", metavar="FILE", help="write what was found to this file")
    parser.add_argument(
        "--export", metavar="FILE", help="write this CPU's records to a file; tunes nothing"
    )
    parser.add_argument(
        "--import",
        dest="import_file",
        metavar="FILE",
        help="take over the records that a like machine exported; tunes nothing",
    )
    parser.add_argument(
        "--cache-dir",
        dest="option_cache_dir",
        metavar="DIR",
        help="folder of records and compiled programs "
        f"[env: {SANDWICH_CACHE_DIR.name}] (default: {SANDWICH_CACHE_DIR.default})",
    )
    add_options(parser, EngineConfig, without_groups=("server", "development"))


def main(args: argparse.Namespace) -> None:
    config = build_config(EngineConfig, args)
    if args.export or args.import_file:
        _carry(config, args)
        return
    from rich.console import Console

    from schedules.tiles.tuning import run

    job = _job(config, args)
    with _shown(job) as report:
        summary = run(job, report)
    print_summary(summary, Console())
    print(f"records are in {job.records_file}")
    if args.json:
        report_json = {"model": config.model_name, "tuning": to_json(summary)}
        Path(args.json).write_text(json.dumps(report_json, indent=2) + "\n", encoding="utf-8")


def _job(config: EngineConfig, args: argparse.Namespace) -> TuningJob:
    from codegen.spec import Phase
    from platforms.probe import probe
    from sandwich.cli.plan import model_config
    from sandwich.startup.plans import make_plans
    from schedules.tiles.tuned_plans import untuned
    from schedules.tiles.tuning import TuningJob

    machine = probe(isa=config.isa)
    plans, memory, _ = make_plans(config, machine, model_config(config.model))
    return TuningJob(
        machine=machine,
        plans=untuned(plans, memory.layout),
        layout=memory.layout,
        cache_dir=config.cache_dir,
        phases=(Phase(args.phase),) if args.phase else tuple(Phase),
        roles=_known_roles(args.roles, memory.layout),
        budget=args.budget,
    )


def _carry(config: EngineConfig, args: argparse.Namespace) -> None:
    """Records to a file, or out of one into the cache's folder."""
    from platforms.probe import probe
    from schedules.records import (
        FILE_NAME,
        CpuKind,
        RecordBook,
        TuningRecordError,
        append_records,
        import_records,
        read_records,
    )

    machine, own = probe(isa=config.isa), config.cache_dir / FILE_NAME
    if args.export:
        records = [r for r in read_records(own) if r.cpu == CpuKind.of(machine)]
        if not records:
            raise ConfigError(f"--export: {own} has no records of this CPU; run `sandwich tune`")
        Path(args.export).write_text("".join(f"{r.to_line()}\n" for r in records), encoding="utf-8")
        print(f"{len(records)} records of {machine.cpu_model} are in {args.export}")
        return
    try:
        book = RecordBook.open(machine, config.cache_dir)
        records = import_records(book, machine, Path(args.import_file))
    except (OSError, TuningRecordError) as error:
        raise ConfigError(f"--import: {error}") from error
    append_records(own, records)
    print(f"{len(records)} new records are in {own}")


@contextmanager
def _shown(job: TuningJob) -> Iterator[Any]:
    """A bar of the time that is spent, with the best so far; on a terminal only.

    It is drawn between measurements and never beside them.
    """
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Bar(*columns, console=console, auto_refresh=False, disable=not console.is_terminal) as bar:
        line = bar.add_task("compiling", total=job.budget)

        def report(progress: Progress) -> None:
            roles = ", ".join(role for role, _ in progress.task.roles)
            text = f"{roles} at {progress.task.rows}: {progress.rate_text()}"
            elapsed = bar.tasks[line].elapsed or 0.0
            bar.update(line, description=text, completed=min(elapsed, job.budget), refresh=True)

        yield report


def print_summary(summary: Summary, console: Any) -> None:
    """A table of what changed and what it won, and the totals."""
    if summary.is_interrupted:
        console.print("interrupted; what was found is kept, and the same command goes on from it")
    if not summary.outcomes:
        console.print("nothing was tuned in this time; give it a larger --budget")
        return
    console.print(_table(summary.outcomes))
    changed = sum(outcome.tile != _default(outcome) for outcome in summary.outcomes)
    console.print(
        f"{changed} of {len(summary.outcomes)} tiles changed in {summary.seconds:.0f} s; tuned "
        f"kernels are {geometric_mean(summary.outcomes):.2f} times as fast (geometric mean)"
    )


def _table(outcomes: Sequence[Outcome]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from schedules.plan import tile_text
    from schedules.tiles.tuned_plans import phase_of

    table = Table(box=SIMPLE_HEAD)
    for name in ("phase", "rows", "role", "default", "tuned"):
        table.add_column(name)
    for name in ("GFLOP/s", "GB/s", "limit", "ratio"):
        table.add_column(name, justify="right")
    for outcome in sorted(outcomes, key=lambda outcome: outcome.task.rows):
        table.add_row(
            phase_of(outcome.task.rows).value,
            str(outcome.task.rows),
            ", ".join(role for role, _ in outcome.task.roles),
            tile_text(_default(outcome)),
            tile_text(outcome.tile) if outcome.tile != _default(outcome) else "the same",
            f"{outcome.gflops:.0f}",
            f"{outcome.gbps:.1f}",
            f"{outcome.limit_ratio:.0%}",
            f"{outcome.speedup:.2f}",
        )
    return table


def _default(outcome: Outcome) -> GemmTile:
    return outcome.task.space.start(outcome.task.start)


def geometric_mean(outcomes: Sequence[Outcome]) -> float:
    """The speed-up over all roles of all tasks."""
    logs = [math.log(outcome.speedup) for outcome in outcomes for _ in outcome.task.roles]
    return math.exp(statistics.fmean(logs))


def to_json(summary: Summary) -> dict[str, Any]:
    """What was found, as JSON types; a line for each role and number of rows."""
    from schedules.tiles.tuned_plans import phase_of

    roles = [
        asdict(key)
        | {
            "role": role,
            "phase": phase_of(key.rows).value,
            "default": asdict(_default(outcome)),
            "tuned": asdict(outcome.tile),
            "gflops": outcome.gflops,
            "gbps": outcome.gbps,
            "limit_ratio": outcome.limit_ratio,
            "limits": asdict(outcome.limits),
            "ratio": outcome.speedup,
            "trials": outcome.num_trials,
        }
        for outcome in summary.outcomes
        for role, key in outcome.task.roles
    ]
    return {
        "seconds": summary.seconds,
        "is_interrupted": summary.is_interrupted,
        "geometric_mean": geometric_mean(summary.outcomes) if summary.outcomes else None,
        "roles": roles,
    }


def _seconds(text: str) -> float:
    number = text.rstrip("smhin")
    try:
        seconds = float(number) * _UNITS[text[len(number) :]]
    except (ValueError, KeyError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time like 60s or 2m") from None
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time above zero")
    return seconds


def _roles(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text.split(",")))


def _known_roles(roles: Sequence[str] | None, layout: ModelLayout) -> tuple[str, ...]:
    """The matrices to tune; ConfigError for one that the model does not have."""
    for role in roles or ():
        if role not in layout.matrices:
            known = ", ".join(layout.matrices)
            raise ConfigError(f"--roles: {role!r} is not one of the model's matrices, {known}")
    return tuple(roles or layout.matrices)
