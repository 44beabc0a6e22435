"""`sandwich probe`: what this machine has, what limits apply to this process, what will be used."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sandwich.config import SANDWICH_CACHE_DIR, SANDWICH_ISA
from sandwich.errors import ConfigError

if TYPE_CHECKING:
    from platforms.machine import Machine
    from schedules.calibration import Calibration


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print all of it as one JSON object")
    parser.add_argument("--isa", metavar="NAME", help=f"{SANDWICH_ISA.help} [env: SANDWICH_ISA]")
    parser.add_argument(
        "--root",
        default="/",
        metavar="DIR",
        help="read proc and sys below this folder, as recorded from another machine (default: /)",
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="measure bandwidth, arithmetic, barriers and cache lines, which takes some seconds, "
        "and keep them for the choice of plans",
    )


def main(args: argparse.Namespace) -> None:
    from platforms.probe import probe
    from platforms.render import render
    from schedules.calibration import load_calibration

    if args.measure and args.root != "/":
        raise ConfigError(f"--measure runs on this machine; leave out --root {args.root}")
    if not Path(args.root, "proc/cpuinfo").is_file():
        raise ConfigError(
            f"--root {args.root}: there is no proc/cpuinfo below it; give the folder that holds "
            "the recorded proc and sys"
        )
    machine = probe(args.root, args.isa)
    cache_dir = SANDWICH_CACHE_DIR.read()
    found = _measure(machine) if args.measure else load_calibration(cache_dir, machine)
    if args.json:
        print(_json(machine, found))
        return
    print(render(machine))
    if found:
        for i, line in enumerate(found.render()):
            print(f"{'' if i else 'Measured':14}{line}")


def _measure(machine: Machine) -> Calibration:
    from sandwich.startup.calibrate import calibrate
    from schedules.calibration import save_calibration

    cache_dir = SANDWICH_CACHE_DIR.read()
    calibration = calibrate(machine, cache_dir, _track)
    save_calibration(cache_dir, machine, calibration)
    return calibration


def _track(items: Sequence[Any], what: str) -> Iterable[Any]:
    """A progress bar on standard error, if that is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(items, what, console=console, transient=True, disable=not console.is_terminal)


def _json(machine: Machine, calibration: Calibration | None) -> str:
    """The machine's record; with a calibration, that and the groups it found beside it."""
    from platforms.record import to_record
    from schedules.calibration import Calibration

    if calibration is None:
        return machine.to_json()
    record = json.loads(machine.to_json())
    record["calibration"] = to_record(calibration, Calibration) | {
        "groups": [list(cpus) for cpus in calibration.groups]
    }
    return json.dumps(record, indent=2)
