"""Our own engine, timed as the others are: `sandwich_engine.py MODEL --flag value ...`.

Unlike the other workers it does import the package, which is what it measures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from typing import Any

from bench.driver import EngineDriver
from sandwich.cli.options import add_model_argument, add_options, build_config
from sandwich.config import EngineConfig
from sandwich.errors import SandwichError
from sandwich.startup.build import build_engine


def main() -> None:
    """Load, then answer until standard input ends."""
    parser = argparse.ArgumentParser()
    add_model_argument(parser)
    add_options(parser, EngineConfig)
    config = build_config(EngineConfig, parser.parse_args())
    driver = EngineDriver(build_engine(config).engine, seed=0)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            print(json.dumps({"seconds": seconds(driver, asked)}), flush=True)
        except SandwichError as error:
            print(json.dumps({"error": error.message}), flush=True)


def seconds(driver: EngineDriver, asked: dict[str, Any]) -> float:
    """Of a whole prompt, or the median step; the first step of a run is left out."""
    if asked["work"] == "prefill":
        return sum(step.seconds for step in driver.prefill(asked["tokens"]))
    steps = driver.decode(asked["batch"], asked["context"], asked["steps"] + 1, lambda index: None)
    return statistics.median([step.seconds for step in steps][1:])


if __name__ == "__main__":
    main()
