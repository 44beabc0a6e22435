"""Entry point: parse, run the verb, turn expected failures into one line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from sandwich.cli.parser import build_parser
from sandwich.errors import (
    ConfigError,
    InvalidRequestError,
    MemoryLimitError,
    ModelError,
    SandwichError,
)

EXIT_FAILURE = 1
EXIT_USER_MISTAKE = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells count


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: that of the process); returns the exit code.

    An error that Sandwich raises on purpose becomes one line on stderr. A bug keeps its traceback.
    """
    try:
        args = build_parser().parse_args(argv)
        code = args.verb_main(args) or 0
        sys.stdout.flush()  # here, and not at exit, a reader that has gone can be handled
        return code
    except SystemExit as exit_:  # argparse: --help, --version or a wrong command line
        return exit_.code if isinstance(exit_.code, int) else EXIT_FAILURE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone, as in `sandwich probe | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE
    except _expected_errors() as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_MISTAKE if isinstance(error, _user_mistakes()) else EXIT_FAILURE


def _user_mistakes() -> tuple[type[Exception], ...]:
    from platforms.isa import IsaError
    from platforms.record import RecordError

    return ConfigError, InvalidRequestError, MemoryLimitError, ModelError, IsaError, RecordError


def _expected_errors() -> tuple[type[Exception], ...]:
    """Everything that is raised on purpose; imported only when something was raised."""
    from platforms.memory import ArenaError
    from platforms.placement import PlacementError

    return SandwichError, ArenaError, PlacementError, *_user_mistakes()
