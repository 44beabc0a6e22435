"""In which formats the matrices of a quantised checkpoint are kept when nobody says otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from codegen.model.tables import matrices
from codegen.spec import ModelShape, WeightFormat
from sandwich.checkpoint.source import Checkpoint, StoredTensor
from sandwich.models.tensors import TensorNames, checkpoint_tensors

# What other codes become: 8 bits lose nothing that a coarser grid has not lost before.
ROUNDED: Final = WeightFormat("int8", group=32, scale_dtype="float16")
_FLOAT_BITS: Final = 16  # of a value from which on it is no code


@dataclass(frozen=True)
class StoredFormats:
    """Formats of the layers' matrices and of the LM head; None where they are floats.

    remark: which types are rounded anew, and what they take then; empty if none is.
    """

    layers: WeightFormat | None = None
    lm_head: WeightFormat | None = None
    remark: str = ""


FLOATS: Final = StoredFormats()


def stored_formats(checkpoint: Checkpoint, shape: ModelShape, names: TensorNames) -> StoredFormats:
    """Of the matrices that the checkpoint has."""
    layers: list[StoredTensor] = []
    heads: list[StoredTensor] = []
    in_layers = {matrix.role: matrix.in_layers for matrix in matrices(shape)}
    for tensor in checkpoint_tensors(shape, names):
        roles = {part.role for part in tensor.parts} & in_layers.keys()
        is_coded = len(tensor.shape) == 2 and not tensor.is_plain
        if roles and is_coded and tensor.name in checkpoint.tensors:
            found = layers if in_layers[min(roles)] else heads
            found.append(checkpoint.tensors[tensor.name])
    of_layers, one = _format(layers)
    of_head, other = _format(heads)
    return StoredFormats(of_layers, of_head, "; ".join(filter(None, (one, other))))


def _format(tensors: Sequence[StoredTensor]) -> tuple[WeightFormat | None, str]:
    """The one format that holds all codes, or 8 bits and why; inputs stay floats."""
    values = sum(tensor.num_values for tensor in tensors)
    nbytes = sum(tensor.nbytes for tensor in tensors)
    if 8 * nbytes >= _FLOAT_BITS * values:
        return None, ""
    forms = {tensor.codes for tensor in tensors}
    form = forms.pop()
    if form is not None and not forms:
        return form, ""
    types = ", ".join(sorted({tensor.dtype for tensor in tensors}))
    bits = ROUNDED.bits + 16 / ROUNDED.group
    return ROUNDED, (
        f"{types} are rounded to {ROUNDED.name}, which takes {bits * values / 2**23:.1f} MiB in "
        f"the place of {nbytes / 2**20:.1f}"
    )
