"""How much memory a model will take, decided and checked before anything is loaded.

Sizes the KV cache from what is left beside weights and workspace.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import psutil  # type: ignore[import-untyped]

from codegen.layout.model import DEFAULT_BLOCK_SIZE, KvLayout, ModelLayout
from platforms.process_limits import Limits
from sandwich.config import EngineConfig
from sandwich.errors import MemoryLimitError, ModelError
from sandwich.models.config import ModelConfig
from sandwich.options import format_nbytes

DEFAULT_CONTEXT: Final = 2048  # tokens of cache for each of --max-num-seqs, unless told otherwise
DEFAULT_SHARE: Final = 0.5  # of the memory beside weights and workspace that the cache may take
RESERVE_BYTES: Final = 256 << 20  # buffers while loading, the compiler, requests and responses
LIMIT_FLAG: Final = "--memory-limit"
# What makes weights of so many bits smaller.
_SMALLER_WEIGHTS: Final = {
    32: ", --dtype bfloat16",
    16: ", --quantization int4",
    8: ", --quantization int4",
}
MAX_SLOTS: Final = 2**31 - 1  # slots are numbered in int32


@dataclass(frozen=True)
class MemoryBudget:
    """What the whole process may take, in bytes, and how much of it is taken already."""

    limit_bytes: int
    source: str  # who says so
    process_bytes: int

    @staticmethod
    def of(limits: Limits, memory_limit: int | None, pool_bytes: int = 0) -> MemoryBudget:
        """The tighter of `--memory-limit` and what the machine and its cgroup still give.

        pool_bytes: of explicit huge pages that will be taken; they are not among the available.
        """
        process_bytes = psutil.Process().memory_info().rss
        reachable = process_bytes + limits.memory_available_bytes
        if limits.memory_limit_bytes is not None:
            reachable = min(reachable, limits.memory_limit_bytes)
        reachable += pool_bytes  # which no limit of memory counts
        if memory_limit is not None and memory_limit <= reachable:
            return MemoryBudget(memory_limit, LIMIT_FLAG, process_bytes)
        source = "available to this process"
        if limits.memory_limit_bytes is not None:
            source += f", whose cgroup is limited to {format_nbytes(limits.memory_limit_bytes)}"
        if pool_bytes:
            source += f", {format_nbytes(pool_bytes)} of it explicit huge pages"
        return MemoryBudget(reachable, source, process_bytes)

    @property
    def free_bytes(self) -> int:
        """For weights, workspace and cache."""
        return self.limit_bytes - self.process_bytes - RESERVE_BYTES


@dataclass(frozen=True)
class MemoryPlan:
    """The layouts that fit, and the sum that shows it; all sizes in bytes."""

    model_name: str
    layout: ModelLayout  # of the model with sequences of up to `max_model_len`
    kv: KvLayout
    workspace_bytes: int
    budget: MemoryBudget
    offload_bytes: int = 0  # of a second tier of the cache in memory
    notes: tuple[str, ...] = ()  # what was decided for the user, and how to decide otherwise

    @property
    def max_model_len(self) -> int:
        return self.layout.shape.max_model_len

    @property
    def kv_bytes(self) -> int:
        return self.kv.nbytes

    @property
    def num_cache_tokens(self) -> int:
        """Tokens of context that the cache holds, over all requests."""
        return self.kv.num_blocks * self.kv.block_size

    @property
    def weights(self) -> str:
        """The weights' formats, for people."""
        layers, head = self.layout.weights.name, self.layout.head.name
        return layers if layers == head else f"{layers}, LM head {head}"

    @property
    def total_bytes(self) -> int:
        needed = self.layout.weight_bytes + self.kv_bytes + self.workspace_bytes
        needed += self.offload_bytes
        return needed + self.budget.process_bytes + RESERVE_BYTES

    def render(self) -> str:
        """A few lines for the start-up print."""
        kv, budget = self.kv, self.budget
        per_token = kv.bytes_per_block / kv.block_size / 1024
        cache = f"{self.num_cache_tokens} tokens of {per_token:.4g} KiB"
        rows = (
            ("weights", self.layout.weight_bytes, f"{self.model_name}, {self.weights}"),
            ("KV cache", self.kv_bytes, f"{cache}, {kv.dtype}; {self.max_model_len} a request"),
            ("offload", self.offload_bytes, "KV blocks that the cache has no room for"),
            ("workspace", self.workspace_bytes, "activations and logits of one step"),
            (
                "process",
                budget.process_bytes + RESERVE_BYTES,
                f"{format_nbytes(RESERVE_BYTES)} in reserve",
            ),
            ("total", self.total_bytes, f"of {format_nbytes(budget.limit_bytes)}, {budget.source}"),
        )
        lines = [
            f"  {name:<10}{format_nbytes(nbytes):>12}  {what}"
            for name, nbytes, what in rows
            if nbytes
        ]
        return "\n".join(["memory plan", *lines, *(f"  note: {note}" for note in self.notes)])


def longest_context(config: ModelConfig, max_model_len: int | None) -> int:
    """The sequence length to plan for: `--max-model-len`, or all the model was made for.

    Raises ModelError if the user asks for more than the model was made for.
    """
    longest = config.max_context_len
    if max_model_len is not None and max_model_len > longest:
        raise ModelError(
            f"--max-model-len is {max_model_len}, but {config.name} was made for sequences of at "
            f"most {longest} tokens (max_position_embeddings in config.json); ask for at most that"
        )
    return max_model_len or longest


def plan_memory(
    config: ModelConfig,
    layout: ModelLayout,
    kv_dtype: str,
    workspace_bytes: int,
    engine: EngineConfig,
    limits: Limits,
    pool_bytes: int = 0,
) -> MemoryPlan:
    """Fit weights, workspace and KV cache into the limit.

    pool_bytes: of free explicit huge pages, which hold the weights if they are enough for them.
    `layout` is that of the model at `longest_context`; the plan's own may be for shorter sequences,
    if the user gave no `--max-model-len` and the cache cannot hold one of the model's longest.

    Raises:
        MemoryLimitError: it does not fit; says what would.
    """
    budget = MemoryBudget.of(
        limits,
        engine.memory_limit,
        layout.weight_bytes if layout.weight_bytes <= pool_bytes else 0,
    )
    planner = _Planner(layout, kv_dtype, workspace_bytes, engine, budget)
    planner.check_weights()
    num_blocks = planner.num_blocks()
    kv = replace(planner.kv, num_blocks=num_blocks)
    max_model_len = min(layout.shape.max_model_len, num_blocks * kv.block_size)
    notes = []
    if max_model_len < layout.shape.max_model_len:
        shape = replace(layout.shape, max_model_len=max_model_len)
        notes.append(
            f"max_model_len is {max_model_len} instead of the model's {layout.shape.max_model_len}"
            ", which is what the cache holds; --max-model-len or --kv-cache-size change it"
        )
        layout = layout.of_shape(shape)
    offload = planner.offload_bytes
    return MemoryPlan(
        config.name, layout, kv, workspace_bytes, planner.budget, offload, tuple(notes)
    )


class _Planner:
    """The numbers that the decisions share."""

    def __init__(
        self,
        layout: ModelLayout,
        kv_dtype: str,
        workspace_bytes: int,
        engine: EngineConfig,
        budget: MemoryBudget,
    ) -> None:
        shape = layout.shape
        self.engine = engine
        self.budget = budget
        self.kv = KvLayout.of_shape(shape, DEFAULT_BLOCK_SIZE, layout.lanes, kv_dtype, num_blocks=1)
        in_memory = engine.kv_offload_dir is None
        self.offload_bytes = (engine.kv_offload or 0) if in_memory else 0
        self.fixed_bytes = layout.weight_bytes + workspace_bytes + self.offload_bytes
        self.free_bytes = self.budget.free_bytes - self.fixed_bytes  # for the cache
        self.blocks_per_seq = self._blocks_of(shape.max_model_len)
        self._layout = layout
        self._workspace_bytes = workspace_bytes

    def check_weights(self) -> None:
        """Weights, workspace and the smallest cache must fit, whatever the user asks for."""
        if self.free_bytes >= self.kv.bytes_per_block:
            return
        smaller = _SMALLER_WEIGHTS.get(self._layout.weights.bits, "")
        raise self._error(
            self.fixed_bytes + self.kv.bytes_per_block,
            f"{format_nbytes(self._layout.weight_bytes)} of weights, "
            f"{format_nbytes(self._workspace_bytes + self.offload_bytes)} of workspace",
            f"take a smaller model{smaller}, less --max-num-batched-tokens, --max-num-seqs or "
            "--kv-offload",
        )

    def num_blocks(self) -> int:
        """Blocks of the cache; at least one longest sequence if the user said how long it is."""
        asked_len = self.engine.max_model_len
        num_blocks = self._asked_blocks() or self._default_blocks()
        if asked_len is not None and num_blocks < self.blocks_per_seq:
            raise MemoryLimitError(
                self._bytes_of(self.blocks_per_seq),
                self._bytes_of(num_blocks),
                f"give --max-model-len {num_blocks * self.kv.block_size} or less, a larger "
                "--kv-cache-size, or none",
                what=f"the KV cache of one sequence of {asked_len} tokens",
            )
        return num_blocks

    def _asked_blocks(self) -> int | None:
        """Of `--kv-cache-size`; None if it was not given."""
        asked = self.engine.kv_cache_size
        if asked is None:
            return None
        if asked < self.kv.bytes_per_block:
            remedy = "give a larger --kv-cache-size"
            what = f"one block of KV cache, of {self.kv.block_size} tokens,"
            raise MemoryLimitError(self.kv.bytes_per_block, asked, remedy, what)
        if asked > self.free_bytes:
            raise self._error(
                self.fixed_bytes + asked,
                f"{format_nbytes(self.fixed_bytes)} of weights and workspace, "
                f"{format_nbytes(asked)} of KV cache",
                f"give --kv-cache-size {self.free_bytes >> 20}MiB or less",
            )
        return min(asked // self.kv.bytes_per_block, MAX_SLOTS // self.kv.block_size)

    def _default_blocks(self) -> int:
        """For every sequence some context, within a share of what is free; one longest at least."""
        typical = min(DEFAULT_CONTEXT, self._layout.shape.max_model_len)
        wanted = max(self.engine.max_num_seqs * self._blocks_of(typical), self.blocks_per_seq)
        affordable = max(1, int(self.free_bytes * DEFAULT_SHARE) // self.kv.bytes_per_block)
        num_blocks = min(wanted, affordable, MAX_SLOTS // self.kv.block_size)
        if self.engine.max_model_len is None or num_blocks >= self.blocks_per_seq:
            return num_blocks
        if self._bytes_of(self.blocks_per_seq) > self.free_bytes:
            fitting = self.free_bytes // self.kv.bytes_per_block * self.kv.block_size
            raise self._error(
                self.fixed_bytes + self._bytes_of(self.blocks_per_seq),
                f"{format_nbytes(self.fixed_bytes)} of weights and workspace, the KV cache of one "
                f"sequence of {self.engine.max_model_len} tokens",
                f"give --max-model-len {fitting} or less",
            )
        return self.blocks_per_seq

    def _blocks_of(self, num_tokens: int) -> int:
        return -(-num_tokens // self.kv.block_size)

    def _bytes_of(self, num_blocks: int) -> int:
        return num_blocks * self.kv.bytes_per_block

    def _error(self, needed_bytes: int, what: str, remedy: str) -> MemoryLimitError:
        """`what` and the process itself exceed the limit; `remedy` or more memory would do."""
        budget = self.budget
        held = budget.process_bytes + RESERVE_BYTES
        more = "a higher --memory-limit" if budget.source == LIMIT_FLAG else "more memory"
        return MemoryLimitError(
            needed_bytes + held,
            budget.limit_bytes,
            f"{remedy}, or {more} (the limit is: {budget.source})",
            what=f"the sum of {what} and {format_nbytes(held)} for the process",
        )
