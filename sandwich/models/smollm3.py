"""SmolLM3: Llama's text, where every fourth layer does not rotate queries and keys.

Source: "Rope to Nope and Back Again" (arXiv 2501.18795).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from codegen.spec import LayerKind, Traits
from sandwich.checkpoint.fields import Fields
from sandwich.models.family import Family, OtherRotation, Switches, window_kinds
from sandwich.models.llama import NAMES

_INTERVAL: Final = 4  # of layers that do not rotate


def _read(fields: Fields) -> Switches:
    count = fields.integer("num_hidden_layers")
    bias = fields.flag("attention_bias")
    kinds = window_kinds(fields, switch="use_sliding_window")
    kinds = tuple(
        replace(kinds[layer % len(kinds)], rotation=int(not rotates))
        for layer, rotates in enumerate(_rotating_layers(fields, count))
    )
    return Switches(
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=fields.flag("mlp_bias"),
        traits=Traits(kinds or (LayerKind(),)),
        other_rotation=OtherRotation.NONE,
    )


def _rotating_layers(fields: Fields, count: int) -> list[bool]:
    """Whether each layer rotates."""
    listed = fields.get("no_rope_layers")
    if listed is None:
        interval = fields.integer("no_rope_layer_interval", default=_INTERVAL)
        return [(layer + 1) % interval != 0 for layer in range(count)]
    if not isinstance(listed, list) or len(listed) != count or set(listed) - {0, 1}:
        raise fields.error("no_rope_layers", f"1 or 0 for each of {count} layers is needed")
    return [rotates == 1 for rotates in listed]


FAMILY: Final = Family("SmolLM3ForCausalLM", "smollm3", NAMES, _read, is_tied=True)
