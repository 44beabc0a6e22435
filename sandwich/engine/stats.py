"""What the engine counts about itself. Written by the engine's thread, read by anyone.

Plain numbers, each written in one piece: a reader on another thread sees a recent value. Must not
know: metric names, how the numbers are shown.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

from sandwich.executor.base import StepKind
from sandwich.requests.block_store import BlockStore


@dataclass(slots=True)
class StepStats:
    """Steps of one kind since the start; of `step_seconds` the executor took `run_seconds`. Steps
    that run side by side count in full, each in its own kind.
    """

    num_steps: int = 0
    num_tokens: int = 0
    step_seconds: float = 0.0
    run_seconds: float = 0.0


# Upper ends of the classes in which plan switches are counted, in seconds; the goal is 50 us.
SWITCH_BOUNDS_S = (5e-6, 1e-5, 2e-5, 3e-5, 5e-5, 7.5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3)


@dataclass(slots=True)
class Durations:
    """A histogram: counts[i] of them were over bounds[i - 1] and up to bounds[i] seconds."""

    bounds: tuple[float, ...]
    counts: list[int] = field(init=False)
    total_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total_seconds += seconds


@dataclass(slots=True)
class EngineStats:
    """Gauges as of the last step, add or abort, and counters since the start."""

    num_blocks: int
    store: BlockStore | None = None  # counts what it saved and restored
    num_used_blocks: int = 0
    num_waiting: int = 0
    num_running: int = 0
    num_prompt_tokens: int = 0  # of requests that got as far as their first token
    num_generated_tokens: int = 0
    num_prefix_queries: int = 0  # tokens of requests that were looked up in the prefix cache
    num_prefix_hits: int = 0  # those of them that were found and not computed
    num_preemptions: int = 0
    num_phase_switches: int = 0
    # From the end of one phase's native call to the start of the other's, work being there.
    plan_switches: Durations = field(default_factory=lambda: Durations(SWITCH_BOUNDS_S))
    num_finished: Counter[str] = field(default_factory=Counter)  # by finish_reason
    steps: dict[StepKind, StepStats] = field(
        default_factory=lambda: {kind: StepStats() for kind in StepKind}
    )

    @property
    def kv_cache_usage(self) -> float:
        """Share of the blocks in use, 0 to 1."""
        return self.num_used_blocks / self.num_blocks
