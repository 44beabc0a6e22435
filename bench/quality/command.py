"""`sandwich eval perplexity`: what a quantisation costs and what it gives, in one table.

Every row runs as it is served: the engine's programs predict each token of a text the row's model
was not calibrated with, and the same engine's prefill and decode are timed.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from bench.driver import BenchmarkError, EngineDriver
from bench.flags import count, some_of, whole
from bench.quality.divergence import Divergence, Float64s, divergence
from bench.quality.windows import SAMPLE, Window, cut, read_text
from bench.record import provenance, write_json
from codegen.layout.model import ModelLayout
from codegen.model.tables import embedding
from sandwich.cli.options import add_model_argument, add_options, build_config
from sandwich.config import QUANTIZATIONS, STORED, EngineConfig
from sandwich.errors import ConfigError
from sandwich.requests.request import Request
from sandwich.requests.sampling_params import SamplingParams

if TYPE_CHECKING:
    from sandwich.engine.engine import Engine
    from sandwich.startup.build import EngineParts

WINDOW: Final = 512  # tokens, where the model allows that many
REFERENCE: Final = "none"  # the quantisation of what rows are compared with
PROMPT, CONTEXT, NUM_PROMPTS, NUM_STEPS = 512, 128, 3, 24  # of what is timed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's flags, and those of the engine."""
    add_model_argument(parser)
    group = parser.add_argument_group("evaluation")
    group.add_argument(
        "--against",
        metavar="MODEL",
        help="what rows are compared with, without quantisation (default: MODEL itself)",
    )
    group.add_argument(
        "--quantizations",
        type=some_of((*STORED, *QUANTIZATIONS)),
        default=QUANTIZATIONS,
        metavar="NAME,NAME",
        help=f"of MODEL, a row each ({','.join(QUANTIZATIONS)}); auto and stored-a8 are a folder "
        "of codes or a GGUF file as `sandwich serve` keeps it",
    )
    group.add_argument(
        "--text", metavar="FILE", help="UTF-8 text to predict (documents of this project)"
    )
    group.add_argument(
        "--window",
        type=whole(2),
        default=WINDOW,
        metavar="N",
        help=f"predict from at most this many tokens, or the model's limit ({WINDOW})",
    )
    group.add_argument(
        "--skip",
        type=whole(0),
        default=0,
        metavar="N",
        help="do not count the first N predictions of a window; windows then follow each other "
        "without a common token (0). Half of the window is what llama-perplexity counts",
    )
    group.add_argument(
        "--max-tokens", type=count, metavar="N", help="predict at most this many (all)"
    )
    group.add_argument("--json", metavar="FILE", help="write the result to this file")
    add_options(parser, EngineConfig, without_groups=("server",))


def main(args: argparse.Namespace) -> None:
    """Measure the reference, then each quantisation beside it; print a table, write."""
    config, text = _config(args), read_text(args.text)
    names = [name for name in args.quantizations if name != REFERENCE or args.against]
    first = replace(_quantized(config, REFERENCE), model=args.against or config.model)
    with _built(first, args.window) as reference:
        window = min(args.window, reference.shape.max_model_len)
        windows = cut(reference.tokenizer, text, window, args.max_tokens, args.skip)
        rows = [_row(reference, first, scored_nats(reference.engine, windows))]
        for name in names:
            candidate = _quantized(config, name)
            with _built(candidate, args.window) as parts:
                if args.against:
                    _check_same_tokens(reference, parts)
                found = _diverged(reference.engine, parts.engine, windows, name)
                rows.append(_row(parts, candidate, found.nats, found))
        result = {
            "benchmark": "perplexity",
            **provenance(reference.machine),
            "model": config.model,
            "against": first.model,
            "dtype": reference.dtype,
            "kv_cache_dtype": reference.kv_dtype,
            "text": args.text or SAMPLE.name,
            "window": window,
            "skip": args.skip,
            "num_tokens": sum(each.num_predicted for each in windows),
            "rows": rows,
        }
    show(result, Console())
    if args.json:
        write_json(args.json, result)


@contextmanager
def _built(config: EngineConfig, window: int) -> Iterator[EngineParts]:
    """An engine for one sequence, long enough for a window and for what is timed."""
    from sandwich.startup.build import build_engine
    from sandwich.startup.model import Model

    needed = max(window, PROMPT + 1, CONTEXT + NUM_STEPS + 2)
    longest = config.max_model_len or min(needed, Model.of(config).config.max_context_len)
    parts = build_engine(replace(config, max_model_len=longest, max_num_seqs=1))
    with closing(parts.engine):
        yield parts


def _config(args: argparse.Namespace) -> EngineConfig:
    """The flags' configuration, without a quantisation of its own."""
    config = build_config(EngineConfig, args)
    if config.quantization not in ("auto", REFERENCE):
        raise ConfigError(
            f"--quantization is {config.quantization}; name all that are to be measured with "
            "--quantizations"
        )
    return config


def _quantized(config: EngineConfig, name: str) -> EngineConfig:
    """`config` with that quantisation; a group size is for those that have scales."""
    group = None if name in (REFERENCE, *STORED) else config.quantization_group
    return replace(config, quantization=name, quantization_group=group)


def _check_same_tokens(reference: EngineParts, other: EngineParts) -> None:
    """ConfigError unless both models mean the same by a token id."""
    one, two = (parts.tokenizer.encode(SAMPLE.read_text()) for parts in (reference, other))
    if one != two or reference.shape.vocab_size != other.shape.vocab_size:
        raise ConfigError("--against: the two models have different tokenizers or vocabularies")


# ---- quality ----


def scored_nats(engine: Engine, windows: Sequence[Window]) -> Float64s:
    """-log probability of each predicted token, as a request for prompt_logprobs gets it."""
    params = SamplingParams(max_tokens=0, prompt_logprobs=0)
    for index, window in enumerate(windows):
        engine.add_request(Request(f"window-{index}", window.token_ids, params))
    first = 1 + windows[0].skip  # the same of all windows
    nats: list[float] = []
    with _progress("reference", windows) as advance:
        while engine.has_work():
            for event in engine.step():
                if event.error is not None:
                    raise BenchmarkError(event.error)
                entries = event.prompt_logprobs or ()
                found = [-entry.logprob for entry in entries[first:] if entry]
                nats += found
                advance(len(found))
    return np.array(nats)


def _diverged(reference: Engine, other: Engine, windows: Sequence[Window], name: str) -> Divergence:
    with _progress(name, windows) as advance:
        return divergence(reference.executor, other.executor, windows, advance)


@contextmanager
def _progress(name: str, windows: Sequence[Window]) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, if that is a terminal; it is told the number of tokens that were scored."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("tokens"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(name, total=sum(window.num_predicted for window in windows))
        yield lambda num_tokens: progress.advance(bar, num_tokens)


# ---- speed and size ----


def _speed(parts: EngineParts) -> dict[str, float]:
    """Tokens a second of a prompt and of one sequence that decodes; medians, after a warm-up."""
    longest = parts.shape.max_model_len
    driver, executor = EngineDriver(parts.engine, seed=0), parts.engine.executor
    prompt = min(PROMPT, longest - 1)
    prompts = [sum(step.seconds for step in driver.prefill(prompt)) for _ in range(1 + NUM_PROMPTS)]
    context = min(CONTEXT, longest - NUM_STEPS - 2)
    steps = list(driver.decode(1, context, 1 + NUM_STEPS, lambda step: None))
    parts.engine.executor = executor
    return {
        "prefill_tokens_per_second": prompt / median(prompts[1:]),
        "decode_tokens_per_second": 1 / median(step.seconds for step in steps[1:]),
    }


def bits_per_weight(layout: ModelLayout) -> float:
    """Bits that the matrices take, scales and padding included, over the numbers in them."""
    table = layout.tensor_specs()[embedding(layout.shape)]
    nbytes = count = 0
    if not layout.shape.tied_embeddings:
        nbytes, count = table.nbytes, math.prod(table.shape)
    for role, matrix in layout.matrices.items():
        panels, repeats = matrix.panels, math.prod(layout.stack(role))
        nbytes += panels.nbytes * repeats
        count += panels.n * panels.k * repeats
    return 8 * nbytes / count


# ---- results ----


def _row(
    parts: EngineParts, config: EngineConfig, nats: Float64s, found: Divergence | None = None
) -> dict[str, Any]:
    """What a table or a file says of one engine; `found`: beside the reference, None for itself."""
    layout = parts.memory.layout
    return {
        "name": _row_name(parts, config.quantization),
        "model": config.model,
        "weights": layout.weights.name,
        "lm_head": layout.head.name,
        "bits_per_weight": bits_per_weight(layout),
        "weight_bytes": layout.weight_bytes,
        "perplexity": float(np.exp(nats.mean())),
        "perplexity_ratio": found.perplexity_ratio if found else 1.0,
        "perplexity_ratio_error": found.ratio_error if found else 0.0,
        "kl_divergence": float(found.kl.mean()) if found else 0.0,
        "kl_divergence_p99": float(np.quantile(found.kl, 0.99)) if found else 0.0,
        "top_1_agreement": found.agreement if found else 1.0,
        **_speed(parts),
    }


def _row_name(parts: EngineParts, quantization: str) -> str:
    """What the table calls a row: its type where nothing is quantised, and what `auto` found."""
    if quantization == REFERENCE:
        return parts.dtype
    return parts.memory.layout.weights.name if quantization in STORED else quantization


def _relative(row: dict[str, Any]) -> tuple[str, str, str]:
    """What a row has beside the reference: perplexity above it, KL divergence, same top token."""
    return (
        f"{row['perplexity_ratio'] - 1:+.2%} ±{row['perplexity_ratio_error']:.2%}",
        f"{row['kl_divergence']:.4f}",
        f"{row['top_1_agreement']:.1%}",
    )


def show(result: dict[str, Any], console: Console) -> None:
    """Print the table."""
    rows = result["rows"]
    title = f"{result['model']}, {result['num_tokens']} tokens of {result['text']}, windows of "
    title += str(result["window"])
    if result["skip"]:
        title += f" without their first {result['skip']}"
    if result["against"] != result["model"]:
        title += f", against {result['against']}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, collapse_padding=True)
    table.add_column("weights", overflow="fold")  # the figures beside it are never cut
    for column in ("bits", "perplexity", "above", "KL", "top 1", "decode", "prefill"):
        table.add_column(column, justify="right", no_wrap=True)
    for index, row in enumerate(rows):
        table.add_row(
            row["name"],
            f"{row['bits_per_weight']:.2f}",
            f"{row['perplexity']:.3f}",
            *(_relative(row) if index else ("", "", "")),
            f"{row['decode_tokens_per_second']:.1f}",
            f"{row['prefill_tokens_per_second']:.0f}",
        )
    console.print(table)
    console.print(
        "KL: divergence of the next token's distribution, in nats; top 1: share of tokens where "
        "both find the same one likeliest; decode, prefill: tokens a second of one sequence",
        highlight=False,
    )
