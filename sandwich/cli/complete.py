"""`sandwich complete TEXT`: continue a text on stdout, in this process, without a server."""

from __future__ import annotations

import argparse
import sys
from contextlib import closing

from sandwich.cli.local_model import (
    add_generation_arguments,
    open_llm,
    print_reply,
    sampling_params,
)
from sandwich.config import DEFAULT_MODEL

_MAX_TOKENS = 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "prompt", metavar="TEXT", help="the text to continue; - reads it from stdin"
    )
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help=f"file, folder, hub id, or {DEFAULT_MODEL!r} (default: {DEFAULT_MODEL})",
    )
    parser.add_argument("--echo", action="store_true", help="print the text itself first")
    parser.add_argument("--stats", action="store_true", help="print the speed to stderr at the end")
    add_generation_arguments(parser, _MAX_TOKENS)


def main(args: argparse.Namespace) -> None:
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    with open_llm(args) as llm, closing(llm.stream(prompt, sampling_params(args, llm))) as deltas:
        if args.echo:
            print(prompt, end="")
        reply = print_reply(deltas)
    print()
    if args.stats:
        print(reply.summary(), file=sys.stderr)
    if reply.is_interrupted:
        raise KeyboardInterrupt
