"""Two threads pass a line: every turn is counted, and nobody waits where there is nothing to do."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from codegen.probes.lines import LINE_WORDS, PingPongProbe
from platforms.isa import select_isa
from platforms.memory import Arena


@pytest.mark.parametrize("num_turns", [0, 1, 2, 1000])
def test_both_sides_complete_every_turn(num_turns: int) -> None:
    probe = PingPongProbe(select_isa())
    arena = Arena(1 << 12, "test")
    line, *played = (arena.array((LINE_WORDS,), np.int32) for _ in range(3))
    with ThreadPoolExecutor(2) as threads:
        for side in (0, 1):
            threads.submit(probe.play, side, num_turns, line, played[side])
    assert [words[0] for words in played] == [num_turns, num_turns]
    assert line[0] == 2 * num_turns
    assert not line[1:].any()
