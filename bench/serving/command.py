"""`sandwich bench serve`: load on any server that speaks the OpenAI API, and how it bears it.

Flags and figures have the names that vLLM's `bench serve` made known.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from bench.flags import number, positive, ratio, some_of, whole
from bench.record import CHECKOUT, commit, write_json
from bench.serving.client import Client, session
from bench.serving.conversations import (
    Conversation,
    Lengths,
    first,
    multi_turn,
    needs,
    prefix_repetition,
    random_prompts,
    share_gpt,
)
from bench.serving.figures import METRICS, block, figures
from bench.serving.load import Arrivals, Run, run_load
from bench.serving.target import BenchServeError, Target
from bench.serving.trace import KINDS, trace
from bench.serving.words import Count, Words
from sandwich.errors import ConfigError
from sandwich.text.tokenizer import Tokenizer

DATASETS = ("random", "sharegpt", "prefix_repetition", "multi-turn", "trace")
BACKENDS = {"openai": "/v1/completions", "openai-chat": "/v1/chat/completions"}
GOALS = ("ttft", "tpot", "e2el")
API_KEY = "OPENAI_API_KEY"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's flags."""
    _add_server(parser.add_argument_group("server"))
    _add_dataset(parser.add_argument_group("what is asked"))
    _add_traffic(parser.add_argument_group("traffic"))
    _add_result(parser.add_argument_group("result"))


def _add_server(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--base-url",
        default="http://127.0.0.1:8000",
        metavar="URL",
        help="the server (http://127.0.0.1:8000)",
    )
    group.add_argument("--model", metavar="NAME", help="its model (the first that it lists)")
    group.add_argument(
        "--backend",
        choices=BACKENDS,
        default="openai",
        help="text completions, or chat, through the model's template (openai)",
    )
    group.add_argument(
        "--endpoint", metavar="PATH", help="path of the requests (that of --backend)"
    )
    group.add_argument(
        "--tokenizer",
        metavar="FOLDER",
        help="folder of the model's tokenizer, to make prompts of exact lengths "
        "(by default the server's /tokenize counts)",
    )
    group.add_argument(
        "--api-key", metavar="KEY", help=f"key to send [env: {API_KEY}]", default=os.getenv(API_KEY)
    )
    group.add_argument(
        "--ready-check-timeout-sec",
        type=float,
        default=600.0,
        metavar="S",
        help="wait so long for the server to be ready (600)",
    )
    group.add_argument(
        "--extra-body", type=_json, default={}, metavar="JSON", help="more fields of every request"
    )


def _add_dataset(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--dataset-name", choices=DATASETS, default="random", help="kind of prompts (random)"
    )
    group.add_argument("--dataset-path", metavar="FILE", help="the ShareGPT file")
    for flag, default, text in (
        ("num-prompts", 100, "requests in all"),
        ("random-input-len", 512, "mean prompt length; in multi-turn: of each turn"),
        ("random-output-len", 128, "mean tokens asked for; in multi-turn: in each turn"),
        ("random-prefix-len", 0, "tokens that all prompts begin with"),
        ("prefix-repetition-prefix-len", 256, "tokens of a shared prefix"),
        ("prefix-repetition-suffix-len", 256, "mean tokens behind it"),
        ("prefix-repetition-num-prefixes", 10, "different prefixes"),
        ("prefix-repetition-output-len", 128, "mean tokens asked for"),
        ("num-turns", None, "turns of a conversation (multi-turn: 4; sharegpt: 1 at most)"),
        ("multi-turn-system-len", 0, "tokens of the system prompt that conversations share"),
        ("sharegpt-output-len", None, "tokens asked for (as many as the answer in the file has)"),
    ):
        shown = "" if default is None else f" ({default})"
        least = 0 if default == 0 else 1
        group.add_argument(
            f"--{flag}", type=whole(least), default=default, metavar="N", help=text + shown
        )
    group.add_argument(
        "--max-model-len",
        type=whole(1),
        metavar="N",
        help="leave out what needs more tokens in all (what the server says it takes)",
    )
    group.add_argument(
        "--random-range-ratio",
        type=ratio,
        default=0.0,
        metavar="R",
        help="lengths lie evenly within this share of their mean (0)",
    )
    group.add_argument(
        "--trace-kinds",
        type=some_of([kind.name for kind in KINDS]),
        default=(),
        metavar="A,B",
        help=f"parts of the trace ({','.join(kind.name for kind in KINDS)})",
    )
    group.add_argument(
        "--trace-scale",
        type=positive,
        default=1.0,
        metavar="X",
        help="every length of the trace times this (1)",
    )


def _add_traffic(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--request-rate",
        type=_rates,
        default=(math.inf,),
        metavar="R,R",
        help="conversations that begin in a second, inf: all at once; several: in turn (inf)",
    )
    group.add_argument(
        "--burstiness",
        type=positive,
        default=1.0,
        metavar="B",
        help="shape of the gamma distribution of the gaps: 1 Poisson, less for bursts (1)",
    )
    group.add_argument(
        "--max-concurrency", type=whole(1), metavar="N", help="most requests at a time (any)"
    )
    group.add_argument("--num-warmups", type=whole(0), default=1, metavar="N", help="first (1)")
    group.add_argument("--ignore-eos", action="store_true", help="every answer has its full length")
    group.add_argument("--temperature", type=float, default=0.0, metavar="T", help="(0: greedy)")
    group.add_argument("--seed", type=whole(0), default=0, metavar="N", help="(0)")


def _add_result(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--percentile-metrics",
        type=some_of(METRICS),
        default=("ttft", "tpot", "itl"),
        metavar="A,B",
        help=f"what is shown, of {','.join(METRICS)} (ttft,tpot,itl)",
    )
    group.add_argument(
        "--metric-percentiles",
        type=_percentiles,
        default=(99.0,),
        metavar="P,P",
        help="percentiles (99)",
    )
    group.add_argument(
        "--goodput",
        nargs="+",
        type=_goal,
        default=[],
        metavar="METRIC:MS",
        help="count the requests that keep all of these, such as ttft:500 tpot:100",
    )
    group.add_argument("--save-result", action="store_true", help="write a JSON file")
    group.add_argument("--result-dir", default=".", metavar="DIR", help="into this folder (.)")
    group.add_argument("--result-filename", metavar="FILE", help="under this name (made up)")


def main(args: argparse.Namespace) -> int:
    """Ask, print and write; 1 if no request was answered."""
    if repeated := [m for m, n in Counter(m for m, _ in args.goodput).items() if n > 1]:
        raise ConfigError(f"--goodput names {repeated[0]} twice")
    target = Target(args.base_url, args.api_key)
    target.wait_until_ready(args.ready_check_timeout_sec)
    models = target.models()
    model = args.model or next(iter(models))
    max_tokens = args.max_model_len or models.get(model)
    results = [measure(args, target, model, max_tokens, rate) for rate in args.request_rate]
    if args.save_result:
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        name = args.result_filename or f"{args.backend}-{Path(model).name}-{stamp}.json"
        content = results[0] if len(results) == 1 else {"runs": results}
        path = Path(args.result_dir) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(str(path), content)
    return 0 if all(result["completed"] for result in results) else 1


def measure(
    args: argparse.Namespace, target: Target, model: str, max_tokens: int | None, rate: float
) -> dict[str, Any]:
    """One run of the load at one rate; prints its block."""
    console = Console(stderr=True)
    rng = np.random.default_rng(args.seed)
    source = dataset(args, target, model, rng)
    conversations = first(source, args.num_prompts, max_tokens)
    warm_up = first(source, args.num_warmups, max_tokens)
    starts = Arrivals(rate, args.burstiness).times(len(conversations), rng)
    num_asked = sum(len(conversation.turns) for conversation in conversations)
    console.print(f"{num_asked} requests in {len(conversations)} conversations", highlight=False)
    goals = dict(args.goodput)
    run = asyncio.run(_run(args, model, warm_up, conversations, starts))
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(CHECKOUT),
        "backend": args.backend,
        "base_url": args.base_url,
        "model_id": model,
        "dataset_name": args.dataset_name,
        "num_prompts": num_asked,
        "seed": args.seed,
        "request_rate": "inf" if math.isinf(rate) else rate,
        "burstiness": args.burstiness,
        "max_concurrency": args.max_concurrency,
        "goodput": goals,
        **figures(run, args.metric_percentiles, goals),
    }
    print(block(result, args.percentile_metrics, args.metric_percentiles))
    for error, count in result["errors"].items():
        console.print(f"failed, {count} times: {error}", style="red", markup=False)
    if result["without_usage"]:
        console.print(
            f"{result['without_usage']} answers had no usage: their tokens are pieces of the "
            "stream, and their prompts are not counted",
            style="red",
        )
    return result


async def _run(
    args: argparse.Namespace,
    model: str,
    warm_up: Sequence[Conversation],
    conversations: Sequence[Conversation],
    starts: Sequence[float],
) -> Run:
    """First what is not measured, one after the other, then the load."""
    body = {"model": model, "temperature": args.temperature, **args.extra_body}
    if args.ignore_eos:
        body["ignore_eos"] = True
    url = args.base_url.rstrip("/") + (args.endpoint or BACKENDS[args.backend])
    async with session() as http:
        client = Client(http, url, args.backend == "openai-chat", body, args.api_key)
        for conversation in warm_up:
            done = await run_load(client, [conversation], [0.0], 1)
            if error := done.answers[0].error:
                raise BenchServeError(f"the first request to {url} failed: {error}")
        return await run_load(client, conversations, starts, args.max_concurrency)


def dataset(
    args: argparse.Namespace, target: Target, model: str, rng: np.random.Generator
) -> Iterator[Conversation]:
    """The conversations that the flags ask for, without an end where they are made up."""
    count = local_counter(args.tokenizer) if args.tokenizer else target.counter(model)
    lengths = Lengths(args.random_input_len, args.random_output_len, args.random_range_ratio)
    if args.dataset_name == "sharegpt":
        path, counted = needs(args.dataset_path, count, args.dataset_name)
        return share_gpt(path, counted, rng, args.sharegpt_output_len, args.num_turns or 1)
    words = Words.counted(count) if count else Words.uncounted()
    if args.dataset_name == "trace":
        return trace(words, args.trace_kinds, args.trace_scale, rng)
    if args.dataset_name == "multi-turn":
        return multi_turn(words, lengths, args.num_turns or 4, args.multi_turn_system_len, rng)
    if args.dataset_name == "prefix_repetition":
        lengths = Lengths(
            args.prefix_repetition_suffix_len,
            args.prefix_repetition_output_len,
            args.random_range_ratio,
        )
        prefix, number = args.prefix_repetition_prefix_len, args.prefix_repetition_num_prefixes
        return prefix_repetition(words, prefix, lengths, number, rng)
    return random_prompts(words, lengths, args.random_prefix_len, rng)


def local_counter(folder: str) -> Count:
    """Counts with the tokenizer of a model's folder; ModelError if it has none."""
    tokenizer = Tokenizer(folder)
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False))


def _rates(text: str) -> tuple[float, ...]:
    rate = "a number of requests in a second above 0, or inf"
    return tuple(number(part, lambda value: value > 0, rate) for part in text.split(","))


def _percentiles(text: str) -> tuple[float, ...]:
    what = "a percentile from 0 to 100"
    return tuple(number(part, lambda p: 0 <= p <= 100, what) for part in text.split(","))


def _goal(text: str) -> tuple[str, float]:
    metric, colon, most = text.partition(":")
    if metric not in GOALS or not colon:
        known = ", ".join(f"{name}:MILLISECONDS" for name in GOALS)
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {known}")
    return metric, positive(most)


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object")
    return value
