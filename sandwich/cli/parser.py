"""An argparse parser that loads a verb's flags when the verb is used, and the table of verbs.

Knows nothing of any verb's flags or of what it does.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from sandwich import __version__


class VerbModule(Protocol):
    """What the file of a verb offers. The module's docstring is the verb's description."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def main(self, args: argparse.Namespace) -> int | None: ...


@dataclass(frozen=True)
class Verb:
    name: str
    module: str
    help: str


VERBS = (
    Verb("serve", "sandwich.cli.serve", "answer HTTP requests in the way of the OpenAI API"),
    Verb("chat", "sandwich.cli.chat", "talk to a model in the terminal"),
    Verb("complete", "sandwich.cli.complete", "continue a text"),
    Verb("probe", "sandwich.cli.probe", "show what this machine has and what may be used of it"),
    Verb("plan", "sandwich.cli.plan", "show how a model would run on this machine"),
    Verb("bench", "sandwich.cli.bench", "measure speed"),
    Verb("collect-env", "sandwich.cli.collect_env", "print what a bug report needs"),
)
BENCHMARKS = (
    Verb("latency", "bench.latency", "prefill and decode beside the limits of this machine"),
)


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34)


class Parser(argparse.ArgumentParser):
    """One line for an error, no abbreviated flags, flags of a verb on demand."""

    def __init__(self, *args: Any, verb: Verb | None = None, **kwargs: Any) -> None:
        kwargs = {"formatter_class": _HelpFormatter, "allow_abbrev": False} | kwargs
        super().__init__(*args, **kwargs)
        self._verb = verb

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        verb, self._verb = self._verb, None
        if verb is not None:
            module: Any = importlib.import_module(verb.module)
            self.description = self.description or verb.help
            self.set_defaults(verb_main=module.main)
            module.add_arguments(self)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see `{self.prog} --help`)\n")

    def add_verbs(self, verbs: Sequence[Verb]) -> None:
        """Sub-commands; exactly one must be given."""
        group = self.add_subparsers(metavar="VERB", required=True, dest="verb")
        for verb in verbs:
            group.add_parser(verb.name, help=verb.help, verb=verb)


def build_parser() -> Parser:
    """The parser of the whole command. A parsed namespace has `verb_main`, the verb's function."""
    parser = Parser(
        prog="sandwich",
        description="Serve large language models on CPUs.",
        epilog="`sandwich VERB --help` lists the flags of a verb.",
    )
    python = ".".join(map(str, sys.version_info[:3]))
    parser.add_argument(
        "--version", action="version", version=f"sandwich {__version__} (Python {python})"
    )
    parser.add_verbs(VERBS)
    return parser
