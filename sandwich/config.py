"""What a user may set: engine and server options, their flags, and the environment variables.

Each option is one dataclass field: its default, help, unit and check stand here and nowhere else.
The command line, the YAML file of `--config` and the Python API are all made from these fields. The
objects are frozen: `auto` is resolved by whoever builds the engine, into a value that is printed.
This file must not import the engine, the server or anything slow.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from sandwich.errors import SandwichError

EMBEDDED_NAME: Final = "embedded"
EMBEDDED_MODEL: Final = Path(__file__).resolve().parent / "embedded" / "model"

DTYPES: Final = ("auto", "float32", "bfloat16")
PLAN_SEARCHES: Final = ("estimate", "measure")
EXECUTORS: Final = ("compiled", "null", "reference")
MIXED_STEPS: Final = ("auto", "turns", "ride", "corun")
QUANTIZATIONS: Final = ("none", "int8", "int8-w8a8", "int4")
QUANTIZATION_GROUPS: Final = (0, 32, 64, 128)
_DTYPE_ALIASES: Final = {"bf16": "bfloat16", "fp32": "float32", "f32": "float32"}
_SIZE_UNITS: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12} | {
    f"{letter}i": 1 << (10 * power) for power, letter in enumerate("kmgt", start=1)
}
_CPU_BIND = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*(\|\d+(-\d+)?(,\d+(-\d+)?)*)*")


class ConfigError(SandwichError):
    """An option, an environment variable or a configuration file that cannot be used as it is."""


# ---- text -> value -------------------------------------------------------------------------


def parse_nbytes(text: str | int) -> int:
    """Bytes from "512MiB", "8G", "1.5GiB" or a plain number; `i` means powers of 1024."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", str(text).strip().lower())
    if match is None:
        raise ConfigError(
            f"{text!r} is not a size; write a number with a unit, such as 512MiB or 8GiB"
        )
    return int(float(match[1]) * _SIZE_UNITS[match[2] or ""])


def parse_dtype(text: str) -> str:
    """One of DTYPES; "bf16" and "fp32" are understood too."""
    return _one_of(_DTYPE_ALIASES.get(text, text), DTYPES)


def parse_quantization_group(text: str | int) -> int:
    """One of QUANTIZATION_GROUPS."""
    return int(_one_of(str(text), tuple(map(str, QUANTIZATION_GROUPS))))


def parse_bool(text: str | bool) -> bool:
    """True for 1, true, yes, on; False for 0, false, no, off and nothing."""
    value = str(text).strip().lower()
    if value in ("1", "true", "yes", "on"):
        return True
    if value in ("0", "false", "no", "off", ""):
        return False
    raise ConfigError(f"{text!r} is not a yes or no; write 1 or 0")


def parse_cpu_bind(text: str) -> str:
    """`auto`, `nobind`, or CPU lists, one for each memory node: `0-31|32-63`."""
    if text in ("auto", "nobind") or _CPU_BIND.fullmatch(text):
        return text
    raise ConfigError(
        f"{text!r} is not a core binding; write auto, nobind or CPU lists like 0-31|32-63"
    )


def _one_of(text: str, choices: tuple[str, ...]) -> str:
    if text not in choices:
        raise ConfigError(f"{text!r} is not one of {', '.join(choices)}")
    return text


def _integer(low: int, high: int | None = None) -> Callable[[str | int], int]:
    def integer(text: str | int) -> int:
        try:
            value = int(str(text))
        except ValueError:
            raise ConfigError(f"{text!r} is not a whole number") from None
        if value < low or (high is not None and value > high):
            bounds = f"at least {low}" if high is None else f"from {low} to {high}"
            raise ConfigError(f"{value} is out of range; it must be {bounds}")
        return value

    return integer


def _milliseconds(text: str | float) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ConfigError(f"{text!r} is not a number of milliseconds") from None
    if not 0 < value < float("inf"):
        raise ConfigError(f"{value} is not a number of milliseconds above 0")
    return value


def _seconds(text: str | float) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ConfigError(f"{text!r} is not a number of seconds") from None
    if not 0 <= value < float("inf"):
        raise ConfigError(f"{value} is not a number of seconds from 0 up")
    return value


# ---- environment ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EnvironmentVariable:
    """A variable that sets the default of the option `flag`; the flag wins over it."""

    name: str
    flag: str
    parse: Callable[[str], Any]
    default: Any
    help: str

    def read(self, environ: Mapping[str, str] = os.environ) -> Any:
        """The value, or the default if the variable is unset or empty. ConfigError if unusable."""
        text = environ.get(self.name, "")
        if not text:
            return self.default
        try:
            return self.parse(text)
        except ConfigError as error:
            raise ConfigError(f"environment variable {self.name}: {error}") from None


SANDWICH_ISA: Final = EnvironmentVariable(
    "SANDWICH_ISA", "isa", str, None, "use this row of the ISA table instead of the best one"
)
SANDWICH_DEBUG: Final = EnvironmentVariable(
    "SANDWICH_DEBUG",
    "debug",
    _integer(0, 5),
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
ENVIRONMENT: Final = (SANDWICH_ISA, SANDWICH_DEBUG, SANDWICH_VERIFY, SANDWICH_CACHE_DIR)


# ---- options -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Option:
    """How one field is spelled, explained and checked wherever a user can set it."""

    group: str
    help: str
    parse: Callable[[Any], Any]
    metavar: str | None = None
    choices: tuple[str, ...] | None = None
    flag: str | None = None  # where it is not the field's name with dashes

    def name(self, of: Field[Any]) -> str:
        return self.flag or of.name.replace("_", "-")


def _option(
    group: str,
    help: str,  # noqa: A002
    parse: Callable[[Any], Any],
    default: Any = None,
    *,
    env: EnvironmentVariable | None = None,
    is_secret: bool = False,
    **spelling: Any,
) -> Any:
    if env is not None:
        option = Option(group, f"{help} [env: {env.name}]", parse, flag=env.flag, **spelling)
        return field(default_factory=env.read, metadata={"option": option})
    option = Option(group, help, parse, **spelling)
    return field(default=default, repr=not is_secret, metadata={"option": option})


def options(config: type) -> dict[str, tuple[Field[Any], Option]]:
    """Flag name (without dashes in front) -> field and option, in the order of the fields."""
    found = [(f, f.metadata["option"]) for f in fields(config) if "option" in f.metadata]
    return {option.name(f): (f, option) for f, option in found}


def _check(config: Any) -> None:
    """Run every set field through its option's check, so that all ways of setting it are equal."""
    for name, (f, option) in options(type(config)).items():
        value = getattr(config, f.name)
        if value is None:
            continue
        try:
            object.__setattr__(config, f.name, option.parse(value))
        except ConfigError as error:
            raise ConfigError(f"--{name}: {error}") from None


_POSITIVE = _integer(1)


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Everything an engine is built from. Raises ConfigError for a value that is out of range."""

    model: str = EMBEDDED_NAME
    dtype: str = _option(
        "model",
        "type of weights and matrix inputs; auto follows the checkpoint and the CPU",
        parse_dtype,
        "auto",
        choices=DTYPES,
    )
    quantization: str = _option(
        "model",
        "round the weights while loading: int8 (8 bits, inputs as in --dtype), int8-w8a8 (8 bits, "
        "inputs of 8 bits too), int4 (4 bits, inputs of 8 bits; LM head as in int8-w8a8)",
        lambda text: _one_of(text, QUANTIZATIONS),
        "none",
        choices=QUANTIZATIONS,
    )
    quantization_group: int | None = _option(
        "model",
        "inputs of an output channel that share a scale in the layers' matrices, 0: all of them "
        "(default: 32 with int4, else 0)",
        parse_quantization_group,
        choices=tuple(map(str, QUANTIZATION_GROUPS)),
    )
    max_model_len: int | None = _option(
        "model", "longest prompt + reply, in tokens (default: the model's own limit)", _POSITIVE
    )
    served_model_name: str | None = _option(
        "server",
        "name of the model in the API (default: the model's own name)",
        str,
        metavar="NAME",
    )
    chat_template: str | None = _option(
        "model", "Jinja chat template: a file, or the template itself", str, metavar="FILE"
    )
    special_tokens_in_content: bool = _option(
        "model",
        "read special tokens inside messages as control tokens, with which a message can end its "
        "own turn; else they are text",
        parse_bool,
        False,
    )
    random_weights: bool = _option(
        "model", "fill the weights with random numbers, to measure speed", parse_bool, False
    )
    max_num_seqs: int = _option(
        "scheduling", "most requests that run at the same time", _POSITIVE, 32
    )
    max_num_batched_tokens: int = _option(
        "scheduling", "most prompt tokens in one prefill step", _POSITIVE, 512
    )
    tpot_target: float | None = _option(
        "scheduling",
        "milliseconds from token to token that running requests shall keep while a new prompt is "
        "prefilled (default: none, but at most 250 where that is possible)",
        _milliseconds,
        metavar="MS",
    )
    mixed_steps: str = _option(
        "scheduling",
        "prefill and decode at the same time: by turns, decode riding in prefill steps, side by "
        "side on cores of their own, or auto, which predicts what is best",
        lambda text: _one_of(text, MIXED_STEPS),
        "auto",
        choices=MIXED_STEPS,
    )
    max_num_queued_reqs: int = _option(
        "server", "most waiting requests; more are refused with status 429", _POSITIVE, 256
    )
    seed: int = _option("model", "seed of --random-weights", _integer(0), 0, flag="weights-seed")
    kv_cache_dtype: str = _option(
        "memory", "type of the KV cache; auto is --dtype", parse_dtype, "auto", choices=DTYPES
    )
    kv_cache_bytes: int | None = _option(
        "memory",
        "size of the KV cache (default: 2048 tokens for each of --max-num-seqs, if they fit)",
        parse_nbytes,
        metavar="SIZE",
        flag="kv-cache-size",
    )
    memory_limit: int | None = _option(
        "memory",
        "most memory to use in all, e.g. 24GiB (default: what the machine and its cgroup leave)",
        parse_nbytes,
        metavar="SIZE",
    )
    cpu_bind: str = _option(
        "machine",
        "cores to use: auto, nobind, or CPU lists like 0-31|32-63",
        parse_cpu_bind,
        "auto",
        metavar="CPUS",
    )
    plan_search: str = _option(
        "machine",
        "how the cores of each phase are chosen: by the cost model, which `sandwich probe "
        "--measure` calibrates, or by timing steps with random weights on the best few, which "
        "takes up to half a minute for a model of 1B",
        lambda text: _one_of(text, PLAN_SEARCHES),
        "estimate",
        choices=PLAN_SEARCHES,
    )
    isa: str | None = _option(
        "machine",
        SANDWICH_ISA.help + " (sandwich probe lists them)",
        str,
        env=SANDWICH_ISA,
        metavar="NAME",
    )
    executor: str = _option(
        "development",
        "what runs the model: compiled programs, nothing (null) or NumPy (reference)",
        lambda text: _one_of(text, EXECUTORS),
        "compiled",
        choices=EXECUTORS,
    )
    cache_dir: Path = _option(  # noqa: RUF009
        "development", SANDWICH_CACHE_DIR.help, Path, env=SANDWICH_CACHE_DIR, metavar="DIR"
    )
    debug: int = _option(
        "development",
        "print more: " + SANDWICH_DEBUG.help,
        _integer(0, 5),
        env=SANDWICH_DEBUG,
        metavar="0-5",
    )
    verify: bool = _option("development", SANDWICH_VERIFY.help, parse_bool, env=SANDWICH_VERIFY)

    def __post_init__(self) -> None:
        _check(self)

    @property
    def model_name(self) -> str:
        """The name that clients use for the model."""
        if self.served_model_name:
            return self.served_model_name
        return Path(self.model).name if Path(self.model).is_dir() else self.model


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Everything the HTTP server needs to know beside the engine it serves."""

    host: str = _option(
        "server",
        "address to listen on; 0.0.0.0 is every one",
        str,
        "127.0.0.1",
        metavar="ADDRESS",
    )
    port: int = _option("server", "port to listen on; 0 picks a free one", _integer(0, 65535), 8000)
    api_key: str | None = _option(
        "server",
        "key that clients must send as `Authorization: Bearer KEY`",
        str,
        metavar="KEY",
        is_secret=True,
    )
    shutdown_timeout: float = _option(
        "server",
        "seconds that running requests may take to finish after SIGTERM",
        _seconds,
        30.0,
        metavar="SECONDS",
    )
    max_body_bytes: int = _option(
        "server",
        "largest request body",
        parse_nbytes,
        16 << 20,
        metavar="SIZE",
        flag="max-body-size",
    )

    def __post_init__(self) -> None:
        _check(self)
