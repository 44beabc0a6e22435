"""What a user may set: engine and server options, their flags, and the environment variables.

Each option is one dataclass field: its default, help, unit and check stand here and nowhere else.
The command line, the YAML file of `--config` and the Python API are all made from these fields. The
objects are frozen: `auto` is resolved by whoever builds the engine, into a value that is printed.
This file must not import the engine, the server or anything slow.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from codegen.layout.kv_format import KV_DTYPES
from sandwich.errors import ConfigError
from sandwich.options import (
    EnvironmentVariable,
    check_options,
    integer_between,
    one_of,
    option,
    parse_bool,
    parse_milliseconds,
    parse_nbytes,
    parse_seconds,
)

DEFAULT_MODEL: Final = "smollm2"  # of sandwich/startup/packaged.py

DTYPES: Final = ("auto", "float32", "bfloat16")
KV_CACHE_DTYPES: Final = ("auto", *KV_DTYPES)
PLAN_SEARCHES: Final = ("estimate", "measure")
EXECUTORS: Final = ("compiled", "null", "reference")
MIXED_STEPS: Final = ("auto", "turns", "ride", "corun")
QUANTIZATIONS: Final = ("none", "int8", "int8-w8a8", "int4")
STORED: Final = ("auto", "stored-a8")  # that keep the codes of a checkpoint
QUANTIZATION_GROUPS: Final = (0, 32, 64, 128)
LOG_FORMATS: Final = ("text", "json")
_DTYPE_ALIASES: Final = {"bf16": "bfloat16", "fp32": "float32", "f32": "float32"}
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s,]+")
_CPU_BIND = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*(\|\d+(-\d+)?(,\d+(-\d+)?)*)*")


def parse_dtype(text: str) -> str:
    """One of DTYPES; "bf16" and "fp32" are understood too."""
    return one_of(_DTYPE_ALIASES.get(text, text), DTYPES)


def parse_kv_dtype(text: str) -> str:
    """One of KV_CACHE_DTYPES, spelled as `parse_dtype` has it."""
    return one_of(_DTYPE_ALIASES.get(text, text), KV_CACHE_DTYPES)


def parse_quantization_group(text: str | int) -> int:
    """One of QUANTIZATION_GROUPS."""
    return int(one_of(str(text), tuple(map(str, QUANTIZATION_GROUPS))))


def parse_cpu_bind(text: str) -> str:
    """`auto`, `nobind`, or CPU lists, one for each memory node: `0-31|32-63`."""
    if text in ("auto", "nobind") or _CPU_BIND.fullmatch(text):
        return text
    raise ConfigError(
        f"{text!r} is not a core binding; write auto, nobind or CPU lists like 0-31|32-63"
    )


def parse_origins(text: str | list[str]) -> str:
    """`*`, or origins such as https://a.example with commas between them."""
    listed = text.split(",") if isinstance(text, str) else text
    origins = [origin.strip().rstrip("/") for origin in listed]
    for origin in origins:
        if origin != "*" and _ORIGIN.fullmatch(origin) is None:
            raise ConfigError(
                f"{origin!r} is not an origin; write scheme and host, and perhaps a port, like "
                "https://chat.example.org"
            )
    return ",".join(origins)


SANDWICH_ISA: Final = EnvironmentVariable(
    "SANDWICH_ISA", "isa", str, None, "use this row of the ISA table instead of the best one"
)
SANDWICH_DEBUG: Final = EnvironmentVariable(
    "SANDWICH_DEBUG",
    "debug",
    integer_between(0, 5),
    0,
    "0 nothing, 1 machine, plan and memory, 2 each step, 3 each kernel, 4 IR, 5 assembly",
)
SANDWICH_VERIFY: Final = EnvironmentVariable(
    "SANDWICH_VERIFY", "verify", parse_bool, False, "compare every step with the slow reference"
)
SANDWICH_CACHE_DIR: Final = EnvironmentVariable(
    "SANDWICH_CACHE_DIR",
    "cache-dir",
    Path,
    Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sandwich",
    "folder of compiled programs",
)
SANDWICH_API_KEY: Final = EnvironmentVariable(
    "SANDWICH_API_KEY",
    "api-key",
    str,
    None,
    "key that clients must send as `Authorization: Bearer KEY`, or several with commas between",
    is_secret=True,
)
ENVIRONMENT: Final = (
    SANDWICH_ISA,
    SANDWICH_DEBUG,
    SANDWICH_VERIFY,
    SANDWICH_CACHE_DIR,
    SANDWICH_API_KEY,
)


_POSITIVE = integer_between(1)


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Everything an engine is built from. Raises ConfigError for a value that is out of range."""

    model: str = DEFAULT_MODEL
    dtype: str = option(
        "model",
        "type of weights and matrix inputs; auto follows the checkpoint and the CPU",
        parse_dtype,
        "auto",
        choices=DTYPES,
    )
    quantization: str = option(
        "model",
        "auto keeps the codes of a quantised checkpoint, as far as there is a form for them here, "
        "stored-a8 does so and rounds the inputs of the layers to 8 bits, which is faster, none "
        "widens the codes; others round the weights while loading: int8 (8 bits, inputs as in "
        "--dtype), int8-w8a8 (8 bits, inputs of 8 bits too), int4 (4 bits, inputs of 8 bits); the "
        "LM head has 8 bits in all of them",
        lambda text: one_of(text, (*STORED, *QUANTIZATIONS)),
        "auto",
        choices=(*STORED, *QUANTIZATIONS),
    )
    quantization_group: int | None = option(
        "model",
        "inputs of an output channel that share a scale in the layers' matrices, 0: all of them; "
        "32 loses least, 128 is smaller and faster (default: 32)",
        parse_quantization_group,
        choices=tuple(map(str, QUANTIZATION_GROUPS)),
    )
    max_model_len: int | None = option(
        "model", "longest prompt + reply, in tokens (default: the model's own limit)", _POSITIVE
    )
    served_model_name: str | None = option(
        "server",
        "name of the model in the API (default: the model's own name)",
        str,
        metavar="NAME",
    )
    chat_template: str | None = option(
        "model", "Jinja chat template: a file, or the template itself", str, metavar="FILE"
    )
    special_tokens_in_content: bool = option(
        "model",
        "read special tokens inside messages as control tokens, with which a message can end its "
        "own turn; else they are text",
        parse_bool,
        False,
    )
    random_weights: bool = option(
        "model", "fill the weights with random numbers, to measure speed", parse_bool, False
    )
    max_num_seqs: int = option(
        "scheduling", "most requests that run at the same time", _POSITIVE, 32
    )
    max_num_batched_tokens: int = option(
        "scheduling", "most prompt tokens in one prefill step", _POSITIVE, 512
    )
    slo_tpot: float | None = option(
        "scheduling",
        "milliseconds from token to token that running requests shall keep while new prompts are "
        "prefilled (default: 250 where that is possible)",
        parse_milliseconds,
        metavar="MS",
    )
    slo_ttft: float | None = option(
        "scheduling",
        "milliseconds to the first token that new requests shall keep; for its sake tokens of "
        "running requests that came early may be followed by later ones (default: none)",
        parse_milliseconds,
        metavar="MS",
    )
    mixed_steps: str = option(
        "scheduling",
        "prefill and decode at the same time: by turns, decode riding in prefill steps, side by "
        "side on cores of their own, or auto, which predicts what is best",
        lambda text: one_of(text, MIXED_STEPS),
        "auto",
        choices=MIXED_STEPS,
    )
    enable_prefix_caching: bool = option(
        "scheduling",
        "keep what was computed for a prompt and its reply, and do not compute it again for the "
        "next one that begins alike",
        parse_bool,
        True,
    )
    max_num_queued_reqs: int = option(
        "server", "most waiting requests; more are refused with status 429", _POSITIVE, 256
    )
    weights_seed: int = option("model", "seed of --random-weights", integer_between(0), 0)
    kv_cache_dtype: str = option(
        "memory",
        "type of the KV cache; auto is --dtype. int8 has a scale for each token and head",
        parse_kv_dtype,
        "auto",
        choices=KV_CACHE_DTYPES,
    )
    kv_cache_size: int | None = option(
        "memory",
        "size of the KV cache (default: 2048 tokens for each of --max-num-seqs, if they fit)",
        parse_nbytes,
        metavar="SIZE",
    )
    memory_limit: int | None = option(
        "memory",
        "most memory to use in all, e.g. 24GiB (default: what the machine and its cgroup leave)",
        parse_nbytes,
        metavar="SIZE",
    )
    kv_offload: int | None = option(
        "memory",
        "size of a second tier for blocks that the KV cache has no room for; they come back where "
        "that is cheaper than to compute them again (default: none)",
        parse_nbytes,
        metavar="SIZE",
    )
    kv_offload_dir: str | None = option(
        "memory", "folder on whose disk that tier lies (default: in memory)", str, metavar="DIR"
    )
    weight_cache_size: int = option(
        "memory",
        "largest sum of the packed weights that are kept on disk for the next start, in the folder "
        "of --cache-dir; the least recently used go first; 0 keeps none",
        parse_nbytes,
        32 << 30,
        metavar="SIZE",
    )
    cpu_bind: str = option(
        "machine",
        "cores to use: auto, nobind, or CPU lists like 0-31|32-63",
        parse_cpu_bind,
        "auto",
        metavar="CPUS",
    )
    plan_search: str = option(
        "machine",
        "how the cores of each phase are chosen: by the cost model, which `sandwich probe "
        "--measure` calibrates, or by timing steps with random weights on the best few, which "
        "takes up to half a minute for a model of 1B",
        lambda text: one_of(text, PLAN_SEARCHES),
        "estimate",
        choices=PLAN_SEARCHES,
    )
    isa: str | None = option(
        "machine",
        SANDWICH_ISA.help + " (sandwich probe lists them)",
        str,
        env=SANDWICH_ISA,
        metavar="NAME",
    )
    executor: str = option(
        "development",
        "what runs the model: compiled programs, nothing (null) or NumPy (reference)",
        lambda text: one_of(text, EXECUTORS),
        "compiled",
        choices=EXECUTORS,
    )
    cache_dir: Path = option(  # noqa: RUF009
        "development", SANDWICH_CACHE_DIR.help, Path, env=SANDWICH_CACHE_DIR, metavar="DIR"
    )
    debug: int = option(
        "development",
        "print more: " + SANDWICH_DEBUG.help,
        integer_between(0, 5),
        env=SANDWICH_DEBUG,
        metavar="0-5",
    )
    verify: bool = option("development", SANDWICH_VERIFY.help, parse_bool, env=SANDWICH_VERIFY)

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def model_name(self) -> str:
        """The name that clients use for the model."""
        if self.served_model_name:
            return self.served_model_name
        path = Path(self.model)
        if path.is_dir():
            return path.name
        return path.stem if path.is_file() else self.model


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Everything the HTTP server needs to know beside the engine it serves."""

    host: str = option(
        "server",
        "address to listen on; 0.0.0.0 is every one",
        str,
        "127.0.0.1",
        metavar="ADDRESS",
    )
    port: int = option(
        "server", "port to listen on; 0 picks a free one", integer_between(0, 65535), 8000
    )
    api_key: str | None = option(
        "server", SANDWICH_API_KEY.help, str, env=SANDWICH_API_KEY, metavar="KEY"
    )
    api_key_file: str | None = option(
        "server", "file with more such keys, one on each line", str, metavar="FILE"
    )
    ssl_certfile: str | None = option(
        "server", "certificate (chain) in PEM: serve HTTPS", str, metavar="FILE"
    )
    ssl_keyfile: str | None = option(
        "server", "its private key in PEM, if it is not in the same file", str, metavar="FILE"
    )
    otlp_traces_endpoint: str | None = option(
        "server",
        "collector of OpenTelemetry traces, such as http://127.0.0.1:4318/v1/traces; needs the "
        "extra `traces`",
        str,
        metavar="URL",
    )
    log_format: str = option(
        "server",
        "lines of the log as text, or as JSON objects",
        lambda text: one_of(text, LOG_FORMATS),
        "text",
        choices=LOG_FORMATS,
    )
    log_requests: bool = option(
        "server", "write a line for every HTTP request, without what it says", parse_bool, False
    )
    log_prompts: bool = option(
        "server", "write what clients send, prompts and all, to the log", parse_bool, False
    )
    allowed_origins: str | None = option(
        "server",
        "web origins whose pages may call this server, with commas between them, or *: all "
        "(default: none)",
        parse_origins,
        metavar="URL,URL",
    )
    shutdown_timeout: float = option(
        "server",
        "seconds that running requests may take to finish after SIGTERM",
        parse_seconds,
        30.0,
        metavar="SECONDS",
    )
    max_body_size: int = option(
        "server",
        "largest request body",
        parse_nbytes,
        16 << 20,
        metavar="SIZE",
    )

    def __post_init__(self) -> None:
        check_options(self)
