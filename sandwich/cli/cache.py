"""`sandwich cache ls`, `sandwich cache rm`: what is kept on disk so that starts are fast."""

from __future__ import annotations

import argparse
import time

from rich.console import Console
from rich.table import Table

from codegen.cache import ProgramCache
from sandwich.config import SANDWICH_CACHE_DIR
from sandwich.errors import ConfigError
from sandwich.options import format_nbytes
from sandwich.weights.cache import Entry, WeightCache

_KEY_LENGTH = 12  # characters shown; enough to tell files apart


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("ls", "rm"), help="list, or remove what is named")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="models, or beginnings of keys, as ls shows them"
    )
    parser.add_argument("--all", action="store_true", help="remove all packed weights and programs")


def main(args: argparse.Namespace) -> int:
    cache_dir = SANDWICH_CACHE_DIR.read()
    weights, programs = WeightCache(cache_dir, 0), ProgramCache(cache_dir)
    if args.action == "ls":
        _show(weights, programs)
        return 0
    if bool(args.names) == args.all:
        raise ConfigError("name models or keys to remove, or give --all")
    found = weights.entries()
    if args.all:
        removed = programs.clear()
        print(f"removed {len(removed)} compiled programs, {format_nbytes(sum(removed))}")
        weights.sweep()
    else:
        for name in args.names:
            if not any(_is_named(entry, name) for entry in found):
                raise ConfigError(f"{name!r} is no model and no key here; see `sandwich cache ls`")
        found = [entry for entry in found if any(_is_named(entry, name) for name in args.names)]
    for entry in found:
        entry.remove()
        print(f"removed {entry.key[:_KEY_LENGTH]} {entry.model}, {format_nbytes(entry.nbytes)}")
    return 0


def _show(weights: WeightCache, programs: ProgramCache) -> None:
    entries, sizes = weights.entries(), programs.sizes()
    table = Table("KEY", "MODEL", "WEIGHTS", "SIZE", "LAST USED", box=None, pad_edge=False)
    for entry in entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used_at))
        key = entry.key[:_KEY_LENGTH]
        table.add_row(key, entry.model, entry.weights, format_nbytes(entry.nbytes), used)
    console = Console(highlight=False)
    if entries:
        console.print(table)
    total = format_nbytes(sum(entry.nbytes for entry in entries))
    console.print(f"{len(entries)} packed models, {total}, in {weights.folder}", soft_wrap=True)
    kept = f"{len(sizes)} compiled programs, {format_nbytes(sum(sizes))}, in {programs.folder}"
    console.print(kept, soft_wrap=True)


def _is_named(entry: Entry, name: str) -> bool:
    return name == entry.model or (len(name) >= 4 and entry.key.startswith(name))
