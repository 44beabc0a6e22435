"""What `chat` and `complete` share: sampling flags, a model in this process, printing a reply."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from sandwich.cli.logs import set_up_logging
from sandwich.cli.options import add_options, build_config
from sandwich.config import EngineConfig
from sandwich.errors import SandwichError
from sandwich.llm import LLM
from sandwich.requests.sampling_params import SamplingParams
from sandwich.text.output import OutputDelta

# Flag, type, help. Checks are those of SamplingParams.
_SAMPLING_FLAGS: tuple[tuple[str, type, str], ...] = (
    ("temperature", float, "0 always takes the likeliest token"),
    ("top-p", float, "only the likeliest tokens whose probabilities add up to this"),
    ("top-k", int, "only so many of the likeliest tokens; 0 is all"),
    ("min-p", float, "only tokens at least so likely, relative to the likeliest"),
    ("repetition-penalty", float, "above 1: less of what is already there"),
    ("seed", int, "makes random choices repeatable"),
)


def add_generation_arguments(parser: argparse.ArgumentParser, max_tokens: int) -> None:
    """Flags of sampling and of the engine. `max_tokens`: the verb's default."""
    group = parser.add_argument_group("sampling (default: the model's own, or off)")
    group.add_argument(
        "--max-tokens",
        type=int,
        default=max_tokens,
        metavar="N",
        help=f"longest reply, in tokens (default: {max_tokens})",
    )
    for flag, type_, text in _SAMPLING_FLAGS:
        group.add_argument(f"--{flag}", type=type_, metavar="X", help=text)
    group.add_argument(
        "--stop", action="append", metavar="TEXT", help="end before this text; may be given again"
    )
    add_options(parser, EngineConfig, without_groups=("server",))


def sampling_params(args: argparse.Namespace, llm: LLM) -> SamplingParams:
    """The model's defaults, changed by the flags. Raises InvalidRequestError."""
    names = [flag.replace("-", "_") for flag, _, _ in _SAMPLING_FLAGS]
    given = {name: getattr(args, name) for name in [*names, "stop"]}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return llm.default_sampling_params(max_tokens=args.max_tokens, **changes)


@contextmanager
def open_llm(args: argparse.Namespace) -> Iterator[LLM]:
    """The model that the flags ask for, with a remark on stderr while it loads."""
    from sandwich.startup.build import build_engine

    config = build_config(EngineConfig, args)
    set_up_logging(config.debug)
    is_terminal = sys.stderr.isatty()
    if is_terminal:
        print(f"loading {config.model} ...", end="", file=sys.stderr, flush=True)
    try:
        llm = LLM.from_parts(build_engine(config))
    finally:
        if is_terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
    with llm:
        yield llm


@dataclass(frozen=True, slots=True)
class Reply:
    """What was printed. `is_interrupted`: Ctrl-C ended it."""

    text: str
    num_tokens: int
    seconds_to_first_token: float
    seconds: float
    is_interrupted: bool

    def summary(self) -> str:
        num_decoded = self.num_tokens - 1
        decode_seconds = self.seconds - self.seconds_to_first_token
        rate = f", {num_decoded / decode_seconds:.1f} tokens/s" if num_decoded > 0 else ""
        first = f"first after {self.seconds_to_first_token * 1e3:.0f} ms"
        end = ", interrupted" if self.is_interrupted else ""
        return f"{self.num_tokens} tokens, {first}{rate}{end}"


def print_reply(deltas: Iterator[OutputDelta]) -> Reply:
    """Print the pieces as they come; Ctrl-C ends the reply, and only it.

    Raises SandwichError if the engine failed on the request.
    """
    started = time.monotonic()
    first: float | None = None
    pieces: list[str] = []
    num_tokens = 0
    with _interrupts() as interrupts:
        for delta in deltas:
            if delta.error is not None:
                raise SandwichError(delta.error)
            if first is None and delta.token_ids:
                first = time.monotonic()
            num_tokens += len(delta.token_ids)
            pieces.append(delta.text)
            print(delta.text, end="", flush=True)
            if interrupts:
                break
    now = time.monotonic()
    return Reply(
        "".join(pieces), num_tokens, (first or now) - started, now - started, bool(interrupts)
    )


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Collects SIGINT instead of raising, so that no step is torn; a second one does raise."""
    seen: list[int] = []

    def on_interrupt(signal_number: int, frame: FrameType | None) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(signal_number)

    previous = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, previous)
