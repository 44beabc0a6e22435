"""`sandwich bench perplexity`: what quantised weights cost, on a text that the model has not seen.

Every quantisation runs as it is served: the engine's programs predict each token of the text, and
perplexity is taken from the log probabilities that a request may ask for.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from bench.driver import BenchmarkError
from bench.record import provenance, write_json
from sandwich.cli.options import add_options, build_config
from sandwich.config import EMBEDDED_NAME, QUANTIZATIONS, EngineConfig
from sandwich.embedded import MODEL_DIR, SAMPLE_FILE
from sandwich.errors import ConfigError
from sandwich.perplexity import Perplexity
from sandwich.requests.request import Request
from sandwich.requests.sampling_params import SamplingParams

if TYPE_CHECKING:
    from sandwich.engine.engine import Engine
    from sandwich.startup.build import EngineParts
    from sandwich.text.tokenizer import Tokenizer

VALIDATION: Final = "validation"  # as a text: all that was held out when the model was trained
WINDOW: Final = 1024  # tokens, where the model allows that many


@dataclass(frozen=True)
class Window:
    """Consecutive tokens of a document; the first is there to predict the others from."""

    token_ids: tuple[int, ...]

    @property
    def num_predicted(self) -> int:
        return len(self.token_ids) - 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's flags, and those of the engine."""
    group = parser.add_argument_group("benchmark")
    group.add_argument(
        "--model",
        default=EMBEDDED_NAME,
        metavar="MODEL",
        help=f"a folder or hub id ({EMBEDDED_NAME})",
    )
    group.add_argument(
        "--quantizations",
        type=_quantizations,
        default=QUANTIZATIONS,
        metavar="NAME,NAME",
        help=f"side by side; the first is what the others are compared with "
        f"({','.join(QUANTIZATIONS)})",
    )
    group.add_argument(
        "--text",
        metavar="FILE",
        help=f"UTF-8 text to predict; {VALIDATION!r}: every file of the running Python's standard "
        f"library that the embedded model was not trained on (one of them, {SAMPLE_FILE})",
    )
    group.add_argument(
        "--max-tokens", type=_count, metavar="N", help="predict at most this many (all)"
    )
    group.add_argument(
        "--window",
        type=_count,
        default=WINDOW,
        metavar="N",
        help=f"predict from at most this many tokens, or the model's limit ({WINDOW})",
    )
    group.add_argument("--json", metavar="FILE", help="write the result to this file")
    add_options(parser, EngineConfig, without_groups=("server",))


def main(args: argparse.Namespace) -> None:
    """Measure each quantisation, print a table, write."""
    from sandwich.startup.build import build_engine

    config = _config(args)
    documents = read_documents(args.text)
    rows: list[dict[str, Any]] = []
    record: dict[str, Any] = {}
    for name in args.quantizations:
        parts = build_engine(quantized(config, name))
        with closing(parts.engine):
            window = min(args.window, parts.shape.max_model_len)
            windows = list(cut(parts.tokenizer, documents, window, args.max_tokens))
            measured = perplexity(parts.engine, parts.tokenizer, windows, name)
        record = record or {
            "benchmark": "perplexity",
            **provenance(parts.machine),
            "model": config.model,
            "dtype": parts.dtype,
            "kv_cache_dtype": parts.kv_dtype,
            "text": args.text or SAMPLE_FILE,
            "window": window,
            "num_tokens": measured.num_tokens,
        }
        rows.append(_row(name, parts, measured, rows))
    result = record | {"quantizations": rows}
    show(result, Console())
    if args.json:
        write_json(args.json, result)


def quantized(config: EngineConfig, name: str) -> EngineConfig:
    """`config` with that quantisation; a group size is for those that have scales."""
    group = None if name == "none" else config.quantization_group
    return replace(config, quantization=name, quantization_group=group)


def read_documents(text: str | None) -> list[str]:
    """The texts to predict, each from its own beginning. ConfigError if the file is unusable."""
    if text == VALIDATION:
        from sandwich.embedded.corpus import source_files

        return [file.text for file in source_files() if file.is_validation]
    path = MODEL_DIR / SAMPLE_FILE if text is None else Path(text)
    try:
        return [path.read_text(encoding="utf-8")]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--text {path}: {error}") from error


def cut(
    tokenizer: Tokenizer, documents: Sequence[str], length: int, max_tokens: int | None
) -> Iterator[Window]:
    """Windows of up to `length` tokens; every token but a document's first is predicted once.

    A window begins with the last token of the one before.
    """
    left = math.inf if max_tokens is None else max_tokens
    for ids in tokenizer.encode_batch(documents):
        for start in range(0, len(ids) - 1, length - 1):
            window = Window(tuple(ids[start : start + int(min(length, left + 1))]))
            if not window.num_predicted:
                return
            left -= window.num_predicted
            yield window


def perplexity(
    engine: Engine, tokenizer: Tokenizer, windows: Sequence[Window], name: str
) -> Perplexity:
    """Of all `windows`. Shows a progress bar called `name` on a terminal; one run per engine."""
    params = SamplingParams(max_tokens=0, prompt_logprobs=0)
    for index, window in enumerate(windows):
        engine.add_request(Request(f"window-{index}", window.token_ids, params))
    nats = []
    with _progress() as progress:
        bar = progress.add_task(name, total=sum(window.num_predicted for window in windows))
        while engine.has_work():
            for event in engine.step():
                if event.error is not None:
                    raise BenchmarkError(event.error)
                found = [entry.logprob for entry in event.prompt_logprobs or () if entry]
                nats.append(-math.fsum(found))
                progress.advance(bar, len(found))
    num_bytes = sum(len(tokenizer.decode(window.token_ids[1:]).encode()) for window in windows)
    num_tokens = sum(window.num_predicted for window in windows)
    return Perplexity(num_bytes, num_tokens, math.fsum(nats))


def _row(
    name: str, parts: EngineParts, measured: Perplexity, rows: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    layout, value = parts.memory.layout, measured.per_token
    return {
        "quantization": name,
        "weights": layout.weights.name,
        "lm_head": layout.lm_head.format.name,
        "weight_bytes": layout.weight_bytes,
        "perplexity": value,
        "bits_per_byte": measured.bits_per_byte,
        "ratio": value / rows[0]["perplexity"] if rows else 1.0,
    }


def show(result: dict[str, Any], console: Console) -> None:
    """Print the table."""
    rows = result["quantizations"]
    table = Table(
        title=f"{result['model']}, {result['num_tokens']} tokens of {result['text']}",
        title_justify="left",
    )
    for column in ("name", "weights", "LM head"):
        table.add_column(column, no_wrap=True)
    for column in ("MiB", "perplexity", f"above {rows[0]['quantization']}"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["quantization"],
            row["weights"],
            row["lm_head"],
            f"{row['weight_bytes'] / 2**20:.1f}",
            f"{row['perplexity']:.3f}",
            f"{row['ratio'] - 1:+.2%}",
        )
    console.print(table)


def _config(args: argparse.Namespace) -> EngineConfig:
    """The flags' configuration, without a quantisation of its own."""
    config = build_config(EngineConfig, args)
    if config.quantization != "none":
        raise ConfigError(
            f"--quantization is {config.quantization}; name all that are to be measured with "
            "--quantizations"
        )
    return config


def _quantizations(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in QUANTIZATIONS:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(QUANTIZATIONS)}")
    return names


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


def _progress() -> Progress:
    """A bar on standard error, if that is a terminal."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
