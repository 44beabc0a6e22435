"""The text of a model: what becomes of a token, written once and read by several interpreters.

`sandwich.executor.reference` computes it with NumPy. `codegen.step.operators` records the
operators that a compiled step consists of; programs are emitted from that record and the cost
model, the timers and the reports count with it.

Sources: LLaMA (arXiv 2302.13971), Llama 3 (arXiv 2407.21783).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from codegen.model.tables import embedding, head_norms
from codegen.spec import LayerKind, ModelShape, NormPlace

V = TypeVar("V")


class Operations(Protocol[V]):
    """What a text is written in. A V stands for the rows of a step: one for each token, or for each
    token that wants logits. Names are those of `codegen.model.tables`.
    """

    @property
    def shape(self) -> ModelShape: ...

    def embed(self, role: str) -> V:
        """The rows of the step's tokens in an embedding, times its scale."""

    def layers(self, x: V, layer: Callable[[LayerKind, V], V]) -> V:
        """`x` through every layer in turn."""

    def wanted(self, x: V) -> V:
        """The rows whose logits are wanted."""

    def norm(self, role: str, x: V) -> V:
        """Each row over its root mean square, times the norm's weights (arXiv 1910.07467)."""

    def linear(self, role: str, x: V) -> V:
        """The matrix times each row, plus its bias if it has one."""

    def norm_heads(self, qkv: V) -> V:
        """Queries and keys through norms of their own, values as they are."""

    def rotate_and_cache(self, kind: LayerKind, qkv: V) -> V:
        """Queries by their positions (RoPE, arXiv 2104.09864), as the layer rotates; keys, rotated
        too, and values go into the KV cache.
        """

    def attend(self, kind: LayerKind, queries: V) -> V:
        """Causal attention of each query to the keys and values of its sequence in the cache, all
        or those in the window of the layer (Longformer, arXiv 2004.05150); of scores that go
        through a soft cap if the model has one.
        """

    def gate(self, gate_up: V) -> V:
        """The first half through the activation, times the second (GLU, arXiv 2002.05202)."""

    def route(self, logits: V, x: V) -> V:
        """The rows of `x` for each expert in turn: a row for each expert that a token's logits
        choose (mixture of experts, arXiv 1701.06538).
        """

    def collect(self, y: V) -> V:
        """A row for each token: those of its experts in `y` times their shares, added up."""

    def add(self, x: V, y: V) -> V:
        """The sum of the residual stream `x` and a product."""

    def cap(self, logits: V) -> V:
        """Logits through their soft cap (Gemma 2, arXiv 2408.00118)."""

    def read(self, logits: V) -> None:
        """The step ends with logits: the token with the largest of each row, and its scores."""


def forward(m: Operations[V]) -> None:
    """A step from token ids to logits and what is read from them."""
    x = m.layers(m.embed(embedding(m.shape)), lambda kind, x: decoder_layer(m, kind, x))
    logits = m.linear("lm_head", m.norm("norm", m.wanted(x)))
    m.read(m.cap(logits) if m.shape.traits.logit_cap else logits)


def decoder_layer(m: Operations[V], kind: LayerKind, x: V) -> V:
    """Attention and a gated MLP, each added to the residual stream, with its norms."""
    match m.shape.traits.norms:
        case NormPlace.BEFORE:
            x = m.add(x, attention(m, kind, m.norm("input_norm", x)))
            return m.add(x, mlp(m, m.norm("post_attention_norm", x)))
        case NormPlace.AFTER:
            x = m.add(x, m.norm("post_attention_norm", attention(m, kind, x)))
            return m.add(x, m.norm("post_mlp_norm", mlp(m, x)))
        case NormPlace.AROUND:
            attended = attention(m, kind, m.norm("input_norm", x))
            x = m.add(x, m.norm("post_attention_norm", attended))
            return m.add(x, m.norm("post_mlp_norm", mlp(m, m.norm("pre_mlp_norm", x))))


def attention(m: Operations[V], kind: LayerKind, x: V) -> V:
    """Attention with the projections around it."""
    qkv = m.linear("qkv", x)
    if head_norms(m.shape):
        qkv = m.norm_heads(qkv)
    return m.linear("o", m.attend(kind, m.rotate_and_cache(kind, qkv)))


def mlp(m: Operations[V], x: V) -> V:
    """The MLP of all tokens, or those of the experts of each."""
    if m.shape.traits.experts:
        return m.collect(gated_mlp(m, m.route(m.linear("router", x), x)))
    return gated_mlp(m, x)


def gated_mlp(m: Operations[V], x: V) -> V:
    """The gated MLP."""
    return m.linear("down", m.gate(m.linear("gate_up", x)))
