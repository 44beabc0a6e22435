"""Which model a benchmark of the engine runs: a folder, a hub id, or a published shape."""

from __future__ import annotations

import argparse
from dataclasses import replace

from sandwich.cli.options import add_model_argument, build_config
from sandwich.config import DEFAULT_MODEL, EngineConfig
from sandwich.errors import ConfigError


def add_model_choice(
    parser: argparse.ArgumentParser, default: str | None = None
) -> argparse._ArgumentGroup:
    """MODEL and --random; `default` is the shape that is taken where both are left out.

    Returns the group for the benchmark's other flags.
    """
    add_model_argument(parser, f"--random {default}" if default else DEFAULT_MODEL)
    group = parser.add_argument_group("benchmark")
    group.add_argument(
        "--random",
        metavar="NAME",
        help="a published shape with random weights, in place of MODEL: llama-3.2-1b, ...",
    )
    return group


def chosen_config(args: argparse.Namespace, default: str | None = None) -> EngineConfig:
    """The engine's configuration, with the model that the flags name; ConfigError for two."""
    if args.random and args.model:
        raise ConfigError(f"give a model or --random, not both: {args.model!r}, {args.random!r}")
    config = build_config(EngineConfig, args)
    shape = args.random or (None if args.model else default)
    return replace(config, model=shape, random_weights=True) if shape else config
