"""`sandwich eval tasks`: tasks of EleutherAI's lm-evaluation-harness, on an engine as it serves.

The harness fetches the data of its own tasks from the hub; tasks in a folder (`--include-path`) may
read files.
"""

from __future__ import annotations

import argparse
import importlib.util
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from bench.flags import count, whole
from bench.record import provenance, write_json
from sandwich.cli.options import add_model_argument, add_options, build_config
from sandwich.config import EngineConfig
from sandwich.errors import ConfigError

REMEDY: Final = "pip install 'sandwich-llm[eval]'"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's flags, and those of the engine."""
    add_model_argument(parser)
    group = parser.add_argument_group("evaluation")
    group.add_argument(
        "--tasks",
        required=True,
        metavar="NAME,NAME",
        help="of the harness or of --include-path: hellaswag, arc_easy, wikitext, ...",
    )
    group.add_argument(
        "--include-path", metavar="FOLDER", help="a folder with the YAML files of more tasks"
    )
    group.add_argument(
        "--limit", type=count, metavar="N", help="documents of each task (all of them)"
    )
    group.add_argument(
        "--num-fewshot",
        type=whole(0),
        metavar="N",
        help="examples in front of each document (as the task says)",
    )
    group.add_argument(
        "--apply-chat-template",
        action="store_true",
        help="ask in the form of a conversation",
    )
    group.add_argument("--json", metavar="FILE", help="write the result to this file")
    add_options(parser, EngineConfig, without_groups=("server",))


def main(args: argparse.Namespace) -> None:
    """Run the tasks, print the harness's table, write."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(f"the package lm_eval is not installed; {REMEDY}")
    from lm_eval.utils import make_table

    from sandwich.startup.build import build_engine

    config = build_config(EngineConfig, args)
    manager, names = _tasks(args)
    parts = build_engine(config)
    with closing(parts.engine):
        found = _evaluate(parts, manager, names, args)
    print(make_table(found))
    if found.get("groups"):
        print(make_table(found, "groups"))
    if args.json:
        result = {
            "benchmark": "tasks",
            **provenance(parts.machine),
            "model": config.model,
            "quantization": config.quantization,
            "weights": parts.memory.weights,
            "kv_cache_dtype": parts.kv_dtype,
            **{key: found[key] for key in ("results", "n-shot", "n-samples", "versions")},
        }
        write_json(args.json, result)


def _tasks(args: argparse.Namespace) -> tuple[Any, list[str]]:
    """The harness's task manager and the names of the tasks; ConfigError for one it lacks."""
    from lm_eval.tasks import TaskManager

    folder = args.include_path
    if folder is not None and not Path(folder).is_dir():
        raise ConfigError(f"--include-path {folder}: there is no such folder")
    manager = TaskManager(include_path=folder)
    wanted = args.tasks.split(",")
    for name in wanted:
        if not manager.match_tasks([name]):
            raise ConfigError(f"--tasks names {name!r}, which neither the harness nor a folder has")
    return manager, manager.match_tasks(wanted)


def _evaluate(
    parts: Any, manager: Any, names: list[str], args: argparse.Namespace
) -> dict[str, Any]:
    from lm_eval.evaluator import simple_evaluate

    from bench.quality.harness import HarnessModel
    from sandwich.llm import LLM

    model = HarnessModel(LLM.from_parts(parts), parts.shape.max_model_len)
    found: dict[str, Any] = simple_evaluate(
        model=model,
        tasks=names,
        num_fewshot=args.num_fewshot,
        limit=args.limit,
        apply_chat_template=args.apply_chat_template,
        task_manager=manager,
        log_samples=False,
        bootstrap_iters=0,
    )
    return found
