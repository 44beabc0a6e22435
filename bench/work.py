"""How much arithmetic and memory traffic a step of a model needs at the very least.

Counted from the model's own sizes, without padding, so that an engine gains nothing by wasting
work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from codegen.layout.kv_format import KvFormat
from codegen.layout.panels import PanelLayout
from codegen.model.tables import Matrix, matrices
from codegen.spec import ModelShape, WeightFormat

PLAIN = WeightFormat("bfloat16")  # of the small matrices that are never quantised


@dataclass(frozen=True)
class StepWork:
    """The work of a step of `shape` with the layers' matrices in the format `weights`, the LM head
    in `lm_head`, and a KV cache of `kv_dtype`.
    """

    shape: ModelShape
    weights: WeightFormat
    lm_head: WeightFormat
    kv_dtype: str

    @property
    def layer_matrices(self) -> tuple[Matrix, ...]:
        """The matrices of a layer."""
        return tuple(m for m in matrices(self.shape) if m.in_layers)

    @property
    def layer_weights(self) -> int:
        """Values that a token is multiplied with in all layers: those of its experts are some of
        the experts' values, all others are all.
        """
        return self.shape.num_layers * sum(m.n * m.k * m.per_token for m in self.layer_matrices)

    @property
    def lm_head_weights(self) -> int:
        """Values in the LM head: each is used once for every row that wants logits."""
        return self.shape.vocab_size * self.shape.hidden_size

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values that one token holds in the cache, over all layers."""
        s = self.shape
        return 2 * s.num_layers * s.num_kv_heads * KvFormat(self.kv_dtype).nbytes(s.head_dim)

    def weight_bytes(self, num_tokens: int) -> int:
        """Bytes of matrices with their scales that a step of so many tokens must read; of experts
        those that tokens choose on average, if they choose evenly.
        """
        layer = sum(
            _nbytes(m.n, m.k, PLAIN if m.is_plain else self.weights) * m.num_read(num_tokens)
            for m in self.layer_matrices
        )
        head = _nbytes(self.shape.vocab_size, self.shape.hidden_size, self.lm_head)
        return round(self.shape.num_layers * layer) + head

    def flops(self, contexts: Sequence[int], num_logits: int) -> int:
        """Operations of a step; `contexts` holds, for each token, how many keys it attends to.

        A multiply-add is two. A token's own key counts, so a prompt of n tokens has 1, 2, ... n.
        """
        s = self.shape
        attention = 4 * s.num_layers * s.num_heads * s.head_dim * sum(contexts)
        matrices = self.layer_weights * len(contexts) + self.lm_head_weights * num_logits
        return 2 * matrices + attention

    def prefill_flops(self, num_tokens: int) -> int:
        """Operations of a whole prompt, whose last token alone wants logits."""
        return self.flops(range(1, num_tokens + 1), num_logits=1)

    def decode_bytes(self, contexts: Sequence[int]) -> int:
        """Bytes of weights and KV cache that a step with one token per sequence must touch.

        The weights once for all sequences; each sequence's keys and values, the new ones included.
        """
        return self.weight_bytes(len(contexts)) + sum(contexts) * self.kv_bytes_per_token


def _nbytes(n: int, k: int, weights: WeightFormat) -> int:
    """Bytes of a matrix in panels of one column, which have no padding but that of K."""
    return PanelLayout(n, k, weights, panel=1, lanes=1).nbytes
