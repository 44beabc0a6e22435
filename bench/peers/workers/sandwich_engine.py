"""Our own engine, timed as the others are: `sandwich_engine.py MODEL --flag value ...`."""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from typing import Any

from bench.driver import EngineDriver
from bench.peers.workers.loop import answer_requests
from sandwich.cli.options import add_model_argument, add_options, build_config
from sandwich.config import EngineConfig
from sandwich.startup.build import build_engine


def main() -> None:
    """Load and answer."""
    parser = argparse.ArgumentParser()
    add_model_argument(parser)
    add_options(parser, EngineConfig)
    config = build_config(EngineConfig, parser.parse_args())
    answer_requests(partial(seconds, EngineDriver(build_engine(config).engine, seed=0)))


def seconds(driver: EngineDriver, asked: dict[str, Any]) -> float:
    """Of a whole prompt, or the median step; the first step of a run is left out."""
    if asked["work"] == "prefill":
        return sum(step.seconds for step in driver.prefill(asked["tokens"]))
    steps = driver.decode(asked["batch"], asked["context"], asked["steps"] + 1, lambda index: None)
    return statistics.median([step.seconds for step in steps][1:])


if __name__ == "__main__":
    main()
