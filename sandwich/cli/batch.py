"""`sandwich batch IN.jsonl OUT.jsonl [MODEL]`: many requests from a file, without a server."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sandwich.cli.logs import set_up_logging
from sandwich.cli.options import add_model_argument, add_options, build_config
from sandwich.config import EngineConfig

if TYPE_CHECKING:
    from sandwich.server.batch import Counts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="IN", type=Path, help="requests, one JSON object a line")
    parser.add_argument(
        "output",
        metavar="OUT",
        type=Path,
        help="answers, in the order in which they came; where it has some already, the others are "
        "added",
    )
    add_model_argument(parser)
    add_options(parser, EngineConfig)


def main(args: argparse.Namespace) -> None:
    config = build_config(EngineConfig, args)
    set_up_logging(config.debug)

    from sandwich.batch_file import BatchOutput, check_requests, read_requests
    from sandwich.server.backend import build_backend
    from sandwich.server.batch import URLS, run_batch

    known = check_requests(args.input, URLS)
    with BatchOutput(args.output, known) as output:
        num_left = len(known) - len(output.done)
        if num_left:
            backend = build_backend(config)
            with _progress(num_left) as on_answer:
                requests = read_requests(args.input, URLS)
                counts = asyncio.run(run_batch(backend, requests, output, on_answer))
            print(
                f"{counts.num_answered} answered, {counts.num_refused} of them with an error; "
                f"{len(output.done)} were done before",
                file=sys.stderr,
            )
        else:
            print(f"all {len(known)} requests are answered already", file=sys.stderr)


@contextmanager
def _progress(num_left: int) -> Iterator[Callable[[Counts], None]]:
    """A bar on stderr, if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("requests", total=num_left)
        yield lambda counts: bar.update(task, completed=counts.num_answered)
