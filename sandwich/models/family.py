"""What a family of models is: the name of its architecture, its tensors' names, its switches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from codegen.spec import Traits
from sandwich.checkpoint.fields import Fields
from sandwich.models.tensors import TensorNames


@dataclass(frozen=True)
class Switches:
    """Which biases a model has, and in what its text differs from Llama's."""

    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    traits: Traits = field(default_factory=Traits)


@dataclass(frozen=True)
class Family:
    """A family of models.

    architecture, model_type: as config.json spells them. names: of a checkpoint's tensors. read:
    the switches out of config.json; raises ModelError for what is not supported.
    """

    architecture: str
    model_type: str
    names: TensorNames
    read: Callable[[Fields], Switches]
