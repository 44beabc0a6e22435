"""The tensors of a checkpoint by the names a family gives them, and what each of them is for.

A family's table says what its checkpoints call the roles and the parts of roles that the text of
the model knows (`codegen.model.tables`). Shapes follow from the model's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from codegen.model.tables import embedding, matrices, norms
from codegen.spec import ModelShape

_OF_QUERIES_AND_KEYS: Final = ("q", "k", "q_norm", "k_norm")
# What checkpoints call the norms of queries and of keys.
HEAD_NORMS: Final = {"self_attn.q_norm": ("q_norm",), "self_attn.k_norm": ("k_norm",)}
STORED_FREQUENCIES: Final = ".rotary_emb.inv_freq"  # of the rotation, as old checkpoints hold them


@dataclass(frozen=True)
class TensorNames:
    """What checkpoints of a family call the tensors of a model, without ".weight" and ".bias".

    layer: what stands before the names inside a layer, with its number as {}. inside: by those
    names, the parts that a tensor holds, one after the other. A norm is its own part; parts that a
    model does not have are left out of it. Names of experts' matrices have their number as {}.
    norm_offset: what is added to the stored weights of every norm. head_order: where the packed
    model has each dim of a head of queries and keys, if not where the checkpoint has it.
    """

    embedding: str
    norm: str
    lm_head: str
    layer: str
    inside: dict[str, tuple[str, ...]]
    norm_offset: float = 0.0
    head_order: tuple[int, ...] = ()


@dataclass(frozen=True)
class Part:
    """So many rows of a checkpoint tensor, which are the part `name` of the role `role`.

    order: of each run of so many rows, where they lie in the role; empty if just as they are.
    """

    role: str
    name: str
    num_rows: int
    order: tuple[int, ...] = ()

    def places(self, start: int, stop: int) -> npt.NDArray[np.intp]:
        """Where rows [start, stop) lie in the role."""
        rows = np.arange(start, stop)
        if not self.order:
            return rows
        head, dim = np.divmod(rows, len(self.order))
        places: npt.NDArray[np.intp] = head * len(self.order) + np.array(self.order)[dim]
        return places


@dataclass(frozen=True)
class CheckpointTensor:
    """One tensor of a checkpoint: its name there, shape (out, in) or (n,), and what it holds.

    layer, expert: of whose matrix or norm it is, None outside. offset: what is added to its stored
    values; scale: what the sum is times. is_plain: it is never quantised.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    layer: int | None = None
    is_norm: bool = False
    offset: float = 0.0
    expert: int | None = None
    is_plain: bool = False
    scale: float = 1.0

    @property
    def num_columns(self) -> int:
        return self.shape[1] if len(self.shape) == 2 else 1

    def pieces(self, start: int, stop: int) -> Iterator[tuple[Part, int, slice]]:
        """Rows [start, stop) cut by parts: the part, the first row in it, and which of the rows."""
        first = 0
        for part in self.parts:
            begin, end = max(start, first), min(stop, first + part.num_rows)
            if begin < end:
                yield part, begin - first, slice(begin - start, end - start)
            first += part.num_rows


def checkpoint_tensors(shape: ModelShape, names: TensorNames) -> Iterator[CheckpointTensor]:
    """Every tensor the model needs, in the order a token meets them.

    Tied embeddings are one tensor, with the role of the LM head.
    """
    table, role = (shape.vocab_size, shape.hidden_size), embedding(shape)
    part = Part(role, role, shape.vocab_size)
    yield CheckpointTensor(f"{names.embedding}.weight", table, (part,))
    for layer in range(shape.num_layers):
        yield from _layer_tensors(shape, names, layer)
    (norm,) = (norm for norm in norms(shape) if not norm.in_layers)
    (head,) = (matrix for matrix in matrices(shape) if not matrix.in_layers)
    size = (norm.size,)
    part = Part(norm.role, norm.role, norm.size)
    yield CheckpointTensor(
        f"{names.norm}.weight",
        size,
        (part,),
        is_norm=True,
        offset=names.norm_offset,
        scale=shape.traits.logit_scale,
    )
    if not shape.tied_embeddings:
        part = Part(head.role, head.role, shape.vocab_size)
        yield CheckpointTensor(f"{names.lm_head}.weight", table, (part,))


def _layer_tensors(shape: ModelShape, names: TensorNames, layer: int) -> Iterator[CheckpointTensor]:
    of_norm = {norm.role: norm for norm in norms(shape) if norm.in_layers}
    of_part = {name: matrix for matrix in matrices(shape) for name, _ in matrix.parts}
    for name, parts in names.inside.items():
        full = names.layer.format(layer) + name
        if parts[0] in of_norm:
            norm = of_norm[parts[0]]
            part = Part(norm.role, norm.role, norm.size, _order(norm.role, names))
            yield CheckpointTensor(
                f"{full}.weight", (norm.size,), (part,), layer, True, names.norm_offset
            )
        elif parts[0] in of_part:
            matrix = of_part[parts[0]]
            rows = dict(matrix.parts)
            held = tuple(Part(matrix.role, p, rows[p], _order(p, names)) for p in parts)
            n = sum(part.num_rows for part in held)
            for expert in range(matrix.num_experts) if matrix.num_experts else (None,):
                here = full if expert is None else full.format(expert)
                weight = CheckpointTensor(
                    *(f"{here}.weight", (n, matrix.k), held, layer),
                    expert=expert,
                    is_plain=matrix.is_plain,
                )
                yield weight
                if matrix.has_bias:
                    yield replace(weight, name=f"{here}.bias", shape=(n,))


def _order(part: str, names: TensorNames) -> tuple[int, ...]:
    """That of the rows of a part."""
    return names.head_order if part in _OF_QUERIES_AND_KEYS else ()


def is_redundant(name: str, shape: ModelShape, names: TensorNames) -> bool:
    """Whether a checkpoint may hold this tensor though the model computes or shares it.

    A tied LM head equals the embedding: `models/tied.py` has compared them.
    """
    is_shared = shape.tied_embeddings and name == f"{names.lm_head}.weight"
    return is_shared or name.endswith(STORED_FREQUENCIES)


def without(inside: dict[str, tuple[str, ...]], *names: str) -> dict[str, tuple[str, ...]]:
    """A family's names inside a layer but for some, which others of its tensors hold."""
    return {name: parts for name, parts in inside.items() if name not in names}
