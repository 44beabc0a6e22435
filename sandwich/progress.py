"""A bar on stderr that shows how far many requests are."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sandwich.text.output import OutputDelta


@contextmanager
def progress_bar(num_requests: int, is_shown: bool) -> Iterator[Callable[[OutputDelta], None]]:
    """A bar on stderr, if that is a terminal; it is told every delta."""
    if not (is_shown and sys.stderr.isatty()):
        yield lambda delta: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[num_tokens]} tokens"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("requests", total=num_requests, num_tokens=0)
        num_tokens = 0

        def on_delta(delta: OutputDelta) -> None:
            nonlocal num_tokens
            num_tokens += len(delta.token_ids)
            is_last = delta.finish_reason is not None
            progress.update(task, advance=int(is_last), num_tokens=num_tokens)

        yield on_delta
