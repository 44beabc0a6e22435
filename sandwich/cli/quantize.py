"""`sandwich quantize MODEL OUT`: round the weights of a model once and write them to a folder.

With `--text`, the matrices of the layers are rounded so that their products with what the text
makes of their inputs change least, which takes minutes; without, to the nearest values.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sandwich.config import QUANTIZATION_GROUPS, QUANTIZATIONS, EngineConfig
from sandwich.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from sandwich.checkpoint.source import ModelSource

WINDOW: Final = 512  # tokens that attend to each other
MOST_TOKENS: Final = 16384


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", help="a folder in the Hugging Face layout or a hub id"
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder to write, a new one")
    group = parser.add_argument_group("calibration")
    group.add_argument(
        "--text",
        metavar="FILE",
        type=Path,
        help="UTF-8 text like what the model is to be used for: rounding minimises the error of "
        "products with its inputs",
    )
    group.add_argument(
        "--tokens",
        type=int,
        default=MOST_TOKENS,
        metavar="N",
        help=f"use at most this many tokens of the text ({MOST_TOKENS})",
    )
    group = parser.add_argument_group("format")
    names = [name for name in QUANTIZATIONS if name != "none"]
    group.add_argument(
        "--quantization", choices=names, default="int4", help="as `sandwich serve` has it (int4)"
    )
    group.add_argument(
        "--quantization-group",
        type=int,
        choices=[size for size in QUANTIZATION_GROUPS if size],
        help="inputs of an output channel that share a scale (32)",
    )


def main(args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from sandwich.checkpoint.formats import open_source
    from sandwich.checkpoint.huggingface import HuggingFaceFolder
    from sandwich.models.config import ModelConfig
    from sandwich.quantization.store import num_rounded, quantize_folder
    from sandwich.startup.hub import resolve_model
    from sandwich.startup.quantization import weight_formats

    source = open_source(resolve_model(args.model))
    if not isinstance(source, HuggingFaceFolder):
        raise ConfigError(f"{args.model}: is no folder in the Hugging Face layout; give one")
    config = EngineConfig(
        quantization=args.quantization, quantization_group=args.quantization_group
    )
    model = ModelConfig.from_source(source)
    formats = weight_formats(config, "float32")
    windows = None if args.text is None else _windows(source, args.text, args.tokens)
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(f"quantising {model.name}", total=num_rounded(model))
        both = formats.layers, formats.lm_head
        quantize_folder(source, args.out, *both, windows, lambda n: progress.advance(bar, n))
    print(f"{args.out}: {formats.layers.name}, LM head {formats.lm_head.name}")


def _windows(source: ModelSource, text: Path, most: int) -> npt.NDArray[np.int32]:
    """The text's tokens, (windows, tokens): whole windows, or one short one."""
    import numpy as np

    from sandwich.text.tokenizer import Tokenizer

    try:
        ids = Tokenizer(source.tokenizer()).encode(text.read_text("utf-8"))[: max(most, 0)]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--text {text} cannot be read as UTF-8 text: {error}") from error
    if not ids:
        raise ConfigError(f"--text {text} and --tokens {most} leave no tokens to calibrate with")
    length = min(WINDOW, len(ids))
    count = len(ids) // length
    return np.array(ids[: count * length], np.int32).reshape(count, length)
