"""Qwen2 and Qwen2.5: Llama's text with biases of queries, keys and values.

Source: "Qwen2 Technical Report" (arXiv 2407.10671).
"""

from __future__ import annotations

from typing import Final

from codegen.spec import Traits
from sandwich.checkpoint.fields import Fields
from sandwich.models.family import Family, Switches, window_kinds
from sandwich.models.llama import NAMES


def _read(fields: Fields) -> Switches:
    return Switches(qkv_bias=True, traits=Traits(window_kinds(fields, "use_sliding_window")))


FAMILY: Final = Family("Qwen2ForCausalLM", "qwen2", NAMES, _read)
