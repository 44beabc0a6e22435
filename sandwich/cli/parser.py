"""An argparse parser that loads a verb's flags when the verb is used, and the table of verbs."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from sandwich import __version__


@dataclass(frozen=True)
class Verb:
    """A module with `add_arguments(parser)` and `main(args) -> int | None`, or a group of verbs."""

    name: str
    module: str | None
    help: str
    arguments: str | None = None  # for the line of usage; by default argparse lists all
    verbs: tuple[Verb, ...] = ()


BENCHMARKS = (
    Verb(
        "serve",
        "bench.serving.command",
        "load on any server that speaks the OpenAI API: throughput, TTFT, TPOT, goodput",
    ),
    Verb("all", "bench.suite", "everything below that belongs into a machine's report"),
    Verb("report", "bench.report.command", "pages with tables and pictures of what was measured"),
    Verb("smoke", "bench.smoke", "what got slower since the last time on this machine"),
    Verb("startup", "bench.startup", "from a server's start to its first token", "[MODEL]"),
    Verb("tune", "bench.tune", "what tuning takes, and what it gains"),
    Verb("limits", "bench.limits", "what the cores can do at most"),
    Verb(
        "attention",
        "bench.attention",
        "the attention kernel over head sizes, groups and contexts, beside the limits",
    ),
    Verb(
        "throughput",
        "bench.throughput",
        "many requests at once through the engine, without a server",
        "[MODEL]",
    ),
    Verb(
        "soak",
        "bench.soak.command",
        "random requests by the thousand, good and bad, to see what breaks in a server",
        "[MODEL]",
    ),
    Verb("noise", "bench.noise", "what a busy neighbour on one core does to the speed", "[MODEL]"),
    Verb(
        "peers",
        "bench.peers.command",
        "other engines at the same work, with the same bits, in turns",
        "[MODEL]",
    ),
    Verb(
        "latency",
        "bench.latency",
        "prefill and decode beside the machine's limits",
        "[MODEL]",
    ),
    Verb(
        "gemm",
        "bench.gemm.command",
        "matrix products beside oneDNN, OpenBLAS and the machine's limits",
    ),
    Verb("switch", "bench.switch", "what a change of the phase's plan costs", "[MODEL]"),
    Verb("plans", "bench.plans", "what the cost model predicts of steps beside what they take"),
    Verb(
        "mixed",
        "bench.mixed",
        "what a new prompt does to those that decode, in each mode of mixed steps",
        "[MODEL]",
    ),
)
EVALUATIONS = (
    Verb(
        "perplexity",
        "bench.quality.command",
        "how well a model predicts a text, and what each quantisation costs of it",
        "[MODEL]",
    ),
    Verb(
        "tasks",
        "bench.quality.tasks",
        "the tasks of lm-evaluation-harness",
        "--tasks NAME,NAME [MODEL]",
    ),
)
VERBS = (
    Verb(
        "serve",
        "sandwich.cli.serve",
        "answer HTTP requests in the way of the OpenAI API",
        "[MODEL]",
    ),
    Verb("chat", "sandwich.cli.chat", "talk to a model in the terminal", "[MODEL]"),
    Verb("complete", "sandwich.cli.complete", "continue a text", "TEXT"),
    Verb(
        "batch",
        "sandwich.cli.batch",
        "answer a file of requests in OpenAI's batch format",
        "IN OUT [MODEL]",
    ),
    Verb("probe", "sandwich.cli.probe", "show what this machine has and what may be used of it"),
    Verb("plan", "sandwich.cli.plan", "show how a model would run on this machine", "[MODEL]"),
    Verb(
        "tune",
        "sandwich.cli.tune",
        "find the fastest kernels for a model on this machine",
        "[MODEL]",
    ),
    Verb(
        "quantize",
        "sandwich.cli.quantize",
        "round a model's weights once and write them to a folder",
        "MODEL OUT",
    ),
    Verb(
        "cache",
        "sandwich.cli.cache",
        "list or remove what is kept on disk for the next start",
        "ls | rm NAME...",
    ),
    Verb("bench", None, "measure speed", verbs=BENCHMARKS),
    Verb("eval", None, "measure quality", verbs=EVALUATIONS),
    Verb("collect-env", "sandwich.cli.collect_env", "print what a bug report needs"),
)


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34)


class Parser(argparse.ArgumentParser):
    """One line for an error, no abbreviated flags, flags of a verb on demand."""

    def __init__(self, *args: Any, verb: Verb | None = None, **kwargs: Any) -> None:
        options: dict[str, Any] = {"formatter_class": _HelpFormatter, "allow_abbrev": False}
        super().__init__(*args, **(options | kwargs))
        self._verb = verb

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        verb, self._verb = self._verb, None
        if verb is not None:
            self._load(verb)
            args = None if args is None else [_with_dashes(arg) for arg in args]
        return super().parse_known_args(args, namespace)

    def _load(self, verb: Verb) -> None:
        self.description = f"{verb.help[0].upper()}{verb.help[1:]}."
        if verb.module is None:
            self.add_verbs(verb.verbs)
            return
        module: Any = importlib.import_module(verb.module)
        self.set_defaults(verb_main=module.main)
        module.add_arguments(self)
        if verb.arguments is not None:
            self.usage = f"%(prog)s [options] {verb.arguments}"

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see `{self.prog} --help`)\n")

    def add_verbs(self, verbs: Sequence[Verb]) -> None:
        """Sub-commands; exactly one must be given."""
        group = self.add_subparsers(metavar="VERB", required=True, dest="verb")
        for verb in verbs:
            group.add_parser(verb.name, help=verb.help, verb=verb)


def _with_dashes(arg: str) -> str:
    """A flag that is written with underscores, as in Python and YAML, is the one with dashes."""
    flag, equals, value = arg.partition("=")
    is_flag = flag.startswith("--") and flag[2:].isidentifier()
    return flag.replace("_", "-") + equals + value if is_flag else arg


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
