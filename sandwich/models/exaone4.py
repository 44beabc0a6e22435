"""EXAONE 4: norms behind attention and MLP and of each head; where some layers have windows, those
without do not rotate queries and keys.

Source: "EXAONE 4.0" (arXiv 2507.11407).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from codegen.spec import HeadNorm, NormPlace, Traits
from sandwich.checkpoint.fields import Fields
from sandwich.models.family import Family, OtherRotation, Switches, window_kinds
from sandwich.models.olmo2 import NAMES

_PERIOD: Final = 4  # layers from one without a window to the next


def _read(fields: Fields) -> Switches:
    has_windows = fields.has("sliding_window")
    kinds = tuple(
        replace(kind, rotation=int(has_windows and not kind.window))
        for kind in window_kinds(fields, period=_period(fields) if has_windows else 0)
    )
    return Switches(
        traits=Traits(kinds, HeadNorm.HEAD, NormPlace.AFTER), other_rotation=OtherRotation.NONE
    )


def _period(fields: Fields) -> int:
    """Of layers with windows and one without: a number, or a text like LLLG."""
    pattern = fields.get("sliding_window_pattern")
    if not isinstance(pattern, str):
        return fields.integer("sliding_window_pattern", default=_PERIOD)
    if not pattern or pattern != "L" * (len(pattern) - 1) + "G":
        raise fields.error("sliding_window_pattern", "a number, or a text like LLLG, is needed")
    return len(pattern)


FAMILY: Final = Family("Exaone4ForCausalLM", "exaone4", NAMES, _read)
