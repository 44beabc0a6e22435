"""Options that users of other engines know: accepted where they change nothing, else answered.

An option of vLLM, llama.cpp or llama-cpp-python that means nothing here is taken with a warning;
one that asks for something names what does it here. The same table serves the command line, the
YAML file and the Python API.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sandwich.errors import ConfigError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ForeignOption:
    """`remedy`: what there is instead. `is_harmless`: whether a value asks for nothing else."""

    remedy: str
    is_harmless: Callable[[str], bool] = lambda value: True


def _one(value: str) -> bool:
    return value == "1"


def _among(*values: str) -> Callable[[str], bool]:
    return lambda value: value.lower() in values


_NO_GPU: Final = "there is no GPU; --memory-limit bounds the memory"
_ONE_PROCESS: Final = "one process uses every core that it may; --cpu-bind chooses cores"
_CONTEXT: Final = "the length of the context is --max-model-len"

FOREIGN_OPTIONS: Final[dict[str, ForeignOption]] = {
    "trust-remote-code": ForeignOption("code of a checkpoint is never run"),
    "tensor-parallel-size": ForeignOption(_ONE_PROCESS, _one),
    "pipeline-parallel-size": ForeignOption(_ONE_PROCESS, _one),
    "data-parallel-size": ForeignOption(_ONE_PROCESS, _one),
    "distributed-executor-backend": ForeignOption(_ONE_PROCESS),
    "gpu-memory-utilization": ForeignOption(_NO_GPU),
    "swap-space": ForeignOption(_NO_GPU),
    "cpu-offload-gb": ForeignOption(_NO_GPU),
    "n-gpu-layers": ForeignOption(_NO_GPU),
    "enforce-eager": ForeignOption("there are no CUDA graphs"),
    "max-seq-len-to-capture": ForeignOption("there are no CUDA graphs"),
    "device": ForeignOption("models run on the CPU", _among("cpu", "auto")),
    "tokenizer-mode": ForeignOption(
        "the tokenizer is that of tokenizer.json", _among("auto", "hf", "fast")
    ),
    "load-format": ForeignOption("the format is seen in the files", _among("auto", "safetensors")),
    "disable-log-stats": ForeignOption("figures are at /metrics"),
    "disable-log-requests": ForeignOption("requests are not logged unless --debug asks for it"),
    "enable-chunked-prefill": ForeignOption(
        "prefill is always in chunks, of --max-num-batched-tokens", _among("true", "none")
    ),
    "task": ForeignOption("models generate text", _among("auto", "generate")),
    "runner": ForeignOption("models generate text", _among("auto", "generate")),
    "n-ctx": ForeignOption(_CONTEXT, _among("0")),
    "ctx-size": ForeignOption(_CONTEXT, _among("0")),
    "n-threads": ForeignOption("cores are chosen with --cpu-bind", _among("none", "-1")),
    "threads": ForeignOption("cores are chosen with --cpu-bind", _among("-1")),
    "n-batch": ForeignOption("the size of a prefill step is --max-num-batched-tokens"),
    "seed": ForeignOption(
        "a seed belongs to a request's sampling parameters, --weights-seed to --random-weights",
        _among("0", "none"),
    ),
}


def without_foreign_options(
    given: Mapping[str, Any], known: Iterable[str], spelling: Callable[[str], str]
) -> dict[str, Any]:
    """`given`, by flag name with dashes or underscores, without options that mean nothing here.

    `known`: our own flags. `spelling`: how messages write a flag name, such as `--max-model-len`.
    Raises ConfigError for an option that nobody knows, or that asks for what is not done.
    """
    own, names = {}, sorted(known)
    for key, value in given.items():
        name = str(key).replace("_", "-")
        foreign = FOREIGN_OPTIONS.get(name)
        if name in names:
            own[name] = value
        elif foreign is None:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {spelling(near[0])}?" if near else ""
            raise ConfigError(f"unknown option {spelling(name)}{hint}")
        elif foreign.is_harmless(str(value).lower()):
            _log.warning("%s has no effect: %s", spelling(name), foreign.remedy)
        else:
            raise ConfigError(f"{spelling(name)} is {value!r}, but {foreign.remedy}")
    return own
