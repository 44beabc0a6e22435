"""`sandwich serve [MODEL]`: build the engine, answer HTTP requests until SIGTERM, then drain."""

from __future__ import annotations

import argparse
import gc
import json
import shlex
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from sandwich.cli.logs import set_up_logging
from sandwich.cli.options import (
    add_config_file,
    add_model_argument,
    add_options,
    build_config,
    read_config_file,
)
from sandwich.config import EngineConfig, ServerConfig

if TYPE_CHECKING:
    from sandwich.server.backend import Backend

# Seconds that a step which has returned waits for the event loop to let go of the interpreter. Of
# Python's 5 ms, 8 streams of a model with steps of 1 ms lose a tenth of their tokens.
_SWITCH_INTERVAL_S = 0.0002
_UNSPECIFIED_HOSTS = ("0.0.0.0", "[::]")  # listened on, but not to be called


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    add_config_file(parser)
    add_options(parser, ServerConfig, EngineConfig)


def main(args: argparse.Namespace) -> None:
    file_values = read_config_file(args.config, ServerConfig, EngineConfig) if args.config else None
    server_config = build_config(ServerConfig, args, file_values)
    engine_config = build_config(EngineConfig, args, file_values)
    set_up_logging(
        engine_config.debug,
        is_server=True,
        is_json=server_config.log_format == "json",
        shows_requests=server_config.log_requests,
    )
    sys.setswitchinterval(_SWITCH_INTERVAL_S)

    from sandwich.server.app import run_server
    from sandwich.server.backend import build_backend

    loaded: list[Backend] = []

    def load(on_progress: Callable[[float], None]) -> Backend:
        loaded.append(build_backend(engine_config, on_progress))
        # What was made so far stays; no collection need walk over it while a step waits.
        gc.collect()
        gc.freeze()
        return loaded[0]

    def on_ready(url: str) -> None:
        print(ready_text(url, loaded[0], server_config), flush=True)

    run_server(server_config, load, on_ready)


def ready_text(url: str, backend: Backend, config: ServerConfig) -> str:
    """What the user sees when requests are taken: where, which model, and a request to paste."""
    what = f"{backend.model_name!r}, up to {backend.max_model_len} tokens a request"
    return f"ready: {url} serves {what}. Try\n\n{curl_example(url, backend, config)}\n"


def curl_example(url: str, backend: Backend, config: ServerConfig) -> str:
    for host in _UNSPECIFIED_HOSTS:
        url = url.replace(f"//{host}:", "//127.0.0.1:")
    if backend.tokenizer.has_chat_template:
        endpoint = "/v1/chat/completions"
        asked: dict[str, object] = {"messages": [{"role": "user", "content": "Hello!"}]}
    else:
        endpoint = "/v1/completions"
        asked = {"prompt": 'def add(a, b):\n    """'}
    body = json.dumps({"model": backend.model_name, **asked, "max_tokens": 64})
    headers = ["Content-Type: application/json"]
    if config.api_key is not None or config.api_key_file is not None:
        headers.append("Authorization: Bearer YOUR_KEY")
    flags = " ".join(f"-H {shlex.quote(header)}" for header in headers)
    return f"  curl {url}{endpoint} {flags} \\\n    -d {shlex.quote(body)}"
