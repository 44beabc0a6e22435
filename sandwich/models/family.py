"""What a family of models is: the name of its architecture, its tensors' names, its switches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from codegen.spec import Activation, Experts, LayerKind, Traits
from sandwich.checkpoint.fields import Fields
from sandwich.models.tensors import TensorNames


class OtherRotation(StrEnum):
    """What layers that do not rotate by the first table rotate by."""

    OF_WINDOWS = "of windows"  # the parameters of layers with windows
    NONE = "none"  # nothing


@dataclass(frozen=True)
class Switches:
    """Which biases a model has, and in what its text differs from Llama's.

    residual_scale: what attention and MLP give is times it before it is added. partial_rotary:
    share of a head's dims that are rotated where config.json does not say. is_interleaved: the
    partners of a rotated pair lie side by side. other_rotation: what the second table of rotations
    is, if there is one.
    """

    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    traits: Traits = field(default_factory=Traits)
    residual_scale: float = 1.0
    partial_rotary: float = 1.0
    is_interleaved: bool = False
    other_rotation: OtherRotation = OtherRotation.OF_WINDOWS
    local_theta: float = 0.0  # base of the table for windows, 0 for that of the first


# How config.json spells what the gate of an MLP goes through.
ACTIVATIONS: Final = {
    Activation.SILU: ("silu", "swish"),
    Activation.GELU_TANH: ("gelu_pytorch_tanh",),
}


def refuse_windows(fields: Fields) -> None:
    """ModelError if a config.json of a family without windows asks for them."""
    if fields.has("sliding_window") and fields.get("use_sliding_window") is not False:
        raise fields.error("sliding_window", "only full attention is supported (null)")


def window_kinds(
    fields: Fields, switch: str = "", period: int = 0, rotation: int = 0
) -> tuple[LayerKind, ...]:
    """The kinds of layers by `sliding_window` and, where only some layers have the window, by
    `layer_types`. switch: the key that must be true for any window. period: without `layer_types`,
    the last layer of so many has no window; 0 for windows in all. rotation: the table of rotations
    of layers with windows. Raises ModelError for types that are not supported.
    """
    if not fields.has("sliding_window") or (switch and not fields.flag(switch)):
        return (LayerKind(),)
    window = LayerKind(fields.integer("sliding_window"), rotation)
    types = fields.get("layer_types")
    if types is None:
        return (*[window] * (period - 1), LayerKind()) if period else (window,)
    by_type = {"sliding_attention": window, "full_attention": LayerKind()}
    count = fields.integer("num_hidden_layers")
    if not isinstance(types, list) or len(types) != count or not by_type.keys() >= set(types):
        known = " or ".join(by_type)
        raise fields.error("layer_types", f"supported: for each of {count} layers {known}")
    return tuple(by_type[kind] for kind in types)


def read_experts(fields: Fields, size: int, is_normalised: bool) -> Experts:
    """The experts of a config.json, each with `size` values between its matrices. Raises ModelError
    if tokens want more experts than there are.
    """
    key = "num_experts" if fields.has("num_experts") else "num_local_experts"
    count, per_token = fields.integer(key), fields.integer("num_experts_per_tok")
    if per_token > count:
        raise fields.error("num_experts_per_tok", f"at most {key}, which is {count}, are supported")
    return Experts(count, per_token, size, is_normalised)


@dataclass(frozen=True)
class Family:
    """A family of models.

    architecture, model_type: as config.json spells them. names: of a checkpoint's tensors. read:
    the switches out of config.json; raises ModelError for what is not supported. is_tied: the LM
    head is the embedding where config.json does not say.
    """

    architecture: str
    model_type: str
    names: TensorNames
    read: Callable[[Fields], Switches]
    is_tied: bool = False
