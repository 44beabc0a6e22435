"""Sandwich: an LLM serving engine for CPUs that compiles one execution plan per phase.

`from sandwich import LLM, SamplingParams` is the Python API. Importing this package costs next to
nothing: both names are loaded when they are first used. This file must not import anything heavy.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sandwich.llm import LLM
    from sandwich.requests.sampling_params import SamplingParams

__version__ = "0.1.0"
__all__ = ["LLM", "SamplingParams", "__version__"]

_EXPORTS = {"LLM": "sandwich.llm", "SamplingParams": "sandwich.requests.sampling_params"}
_SIBLINGS = ("platforms", "codegen", "schedules")


def _check_siblings(home: Path, siblings: tuple[str, ...] = _SIBLINGS) -> None:
    """Raise ImportError unless every sibling package lies in `home`.

    The siblings have generic names. If another project's `platforms` came first on `sys.path`, the
    engine would fail later and far away, so it is found out here, without importing them.
    """
    for name in siblings:
        spec = importlib.util.find_spec(name)
        if spec is None:
            raise ImportError(
                f"sandwich in {home} needs its sibling package {name!r}, which is not on sys.path; "
                "install sandwich-llm again, or start Python in the folder of the checkout"
            )
        locations = [
            Path(place).resolve().parent for place in spec.submodule_search_locations or ()
        ]
        if home not in locations:
            found = ", ".join(map(str, locations)) or spec.origin
            raise ImportError(
                f"sandwich comes from {home}, but its sibling package {name!r} comes from {found}: "
                "it is hidden by another of that name; give sandwich-llm an environment of its own"
            )


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'sandwich' has no attribute {name!r}")


_check_siblings(Path(__file__).resolve().parent.parent)
