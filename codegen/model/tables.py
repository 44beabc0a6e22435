"""The tensors that the text of a model names: roles, sizes, and the parts a role is made of.

A role is an array of the packed model. A checkpoint may hold the parts of a role apart (q, k, v) or
some of them together; `sandwich.models` has the names that it gives them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from codegen.spec import HeadNorm, ModelShape, NormPlace


@dataclass(frozen=True)
class Matrix:
    """A linear map of the rows of a step.

    parts: (name, outputs) of the matrices that it is made of, in order. k: inputs. in_halves: its
    two parts meet output by output, so that they lie side by side. num_heads: its inputs are those
    of so many heads, which have room for whole vectors each; 0 for inputs without heads.
    in_layers: every layer has one; else it is applied once, to the rows that want logits.
    num_experts: so many of them in a layer, of which each token meets `per_token`; 0 for one that
    all tokens meet. is_plain: it is never quantised.
    """

    role: str
    parts: tuple[tuple[str, int], ...]
    k: int
    has_bias: bool = False
    in_halves: bool = False
    num_heads: int = 0
    in_layers: bool = True
    num_experts: int = 0
    per_token: int = 1
    is_plain: bool = False

    @property
    def n(self) -> int:
        """Outputs of all parts."""
        return sum(rows for _, rows in self.parts)

    def num_read(self, num_tokens: int) -> float:
        """Matrices of a layer that so many tokens meet: on average, if experts are chosen evenly
        and each token by itself.
        """
        if not self.num_experts:
            return 1.0
        return self.num_experts * (1 - (1 - self.per_token / self.num_experts) ** num_tokens)


@dataclass(frozen=True)
class Norm:
    """The weights of an RMSNorm of `size` values."""

    role: str
    size: int
    in_layers: bool = True


def matrices(shape: ModelShape) -> tuple[Matrix, ...]:
    """The matrices of a model, in the order in which a token meets them."""
    hidden = shape.hidden_size
    query, key = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    return (
        Matrix("qkv", (("q", query), ("k", key), ("v", key)), hidden, shape.qkv_bias),
        Matrix("o", (("o", hidden),), query, shape.o_bias, num_heads=shape.num_heads),
        *_mlp_matrices(shape),
        Matrix("lm_head", (("lm_head", shape.vocab_size),), hidden, in_layers=False),
    )


def _mlp_matrices(shape: ModelShape) -> tuple[Matrix, ...]:
    hidden, bias, experts = shape.hidden_size, shape.mlp_bias, shape.traits.experts
    inner = experts.size if experts else shape.intermediate_size
    both = (
        Matrix("gate_up", (("gate", inner), ("up", inner)), hidden, bias, in_halves=True),
        Matrix("down", (("down", hidden),), inner, bias),
    )
    if experts is None:
        return both
    router = Matrix("router", (("router", experts.count),), hidden, is_plain=True)
    count, per_token = experts.count, experts.per_token
    return (router, *(replace(m, num_experts=count, per_token=per_token) for m in both))


@dataclass(frozen=True)
class HeadNorms:
    """The norm `role` of `size` columns at a time, `count` times side by side."""

    role: str
    count: int
    size: int


def head_norms(shape: ModelShape) -> tuple[HeadNorms, ...]:
    """The norms of queries and keys, in the order of their columns; none if the model has none."""
    heads = (("q_norm", shape.num_heads), ("k_norm", shape.num_kv_heads))
    match shape.traits.head_norm:
        case HeadNorm.HEAD:
            return tuple(HeadNorms(role, count, shape.head_dim) for role, count in heads)
        case HeadNorm.ROW:
            return tuple(HeadNorms(role, 1, count * shape.head_dim) for role, count in heads)
    return ()


def norms(shape: ModelShape) -> tuple[Norm, ...]:
    """The norms of a model."""
    hidden = shape.hidden_size
    roles: tuple[str, ...]
    match shape.traits.norms:
        case NormPlace.BEFORE:
            roles = ("input_norm", "post_attention_norm")
        case NormPlace.AFTER:
            roles = ("post_attention_norm", "post_mlp_norm")
        case NormPlace.AROUND:
            roles = ("input_norm", "post_attention_norm", "pre_mlp_norm", "post_mlp_norm")
    return (
        *(Norm(role, hidden) for role in roles),
        *(Norm(norm.role, norm.size) for norm in head_norms(shape)),
        Norm("norm", hidden, in_layers=False),
    )


def rotation(index: int) -> tuple[str, str]:
    """The names of a model's table of rotations number `index`: cosines and sines."""
    suffix = f"_{index}" if index else ""
    return f"rope_cos{suffix}", f"rope_sin{suffix}"


def embedding(shape: ModelShape) -> str:
    """The role of the embedding: a table of its own, or the LM head where the two are tied."""
    return "lm_head" if shape.tied_embeddings else "embed_tokens"
