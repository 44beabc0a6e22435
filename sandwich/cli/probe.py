"""`sandwich probe`: what this machine has, what limits apply to this process, what will be used."""

from __future__ import annotations

import argparse

from sandwich.config import SANDWICH_ISA


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print all of it as one JSON object")
    parser.add_argument("--isa", metavar="NAME", help=f"{SANDWICH_ISA.help} [env: SANDWICH_ISA]")
    parser.add_argument(
        "--root",
        default="/",
        metavar="DIR",
        help="read proc and sys below this folder, as recorded from another machine (default: /)",
    )


def main(args: argparse.Namespace) -> None:
    from platforms.probe import probe
    from platforms.render import render

    machine = probe(args.root, args.isa)
    print(machine.to_json() if args.json else render(machine))
