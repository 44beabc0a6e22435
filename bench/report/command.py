"""`sandwich bench report`: pages of the results that are there, without measuring anything."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.record import CHECKOUT
from bench.report.page import write_report, write_results_page
from sandwich.errors import ConfigError

RESULTS = CHECKOUT / "bench" / "results"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's flags."""
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=RESULTS,
        metavar="DIR",
        help="the folder of `sandwich bench all --platform-report` (bench/results)",
    )
    parser.add_argument(
        "--page", type=Path, metavar="FILE.md", help="write the summaries of all machines here too"
    )


def main(args: argparse.Namespace) -> None:
    """Write `report.html` and `summary.md` for every machine, and the common page."""
    folders = sorted({file.parent for file in args.folder.glob("*/*.json")})
    if not folders:
        raise ConfigError(f"{args.folder} has no results; `sandwich bench all` makes some")
    written = [file for folder in folders for file in write_report(folder)]
    if args.page:
        write_results_page(folders, args.page)
        written.append(args.page)
    for file in written:
        print(file)
