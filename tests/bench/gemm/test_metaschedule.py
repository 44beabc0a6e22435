"""MetaSchedule as a peer: a result is kept by shape, and the search finds a right program."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bench.gemm.metaschedule
import codegen.gemm.metaschedule
from bench.gemm.metaschedule import cached_search
from bench.gemm.peers import DEFAULT_PEERS, PEERS
from codegen.compile import tensor
from codegen.gemm.metaschedule import FoundProgram, StaticGemm, search
from platforms.isa import IsaRow, select_isa
from platforms.memory import Arena

GEMM = StaticGemm(m=4, n=32, k=16, num_cores=1)


def test_the_result_is_kept_by_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[StaticGemm] = []

    def fake(gemm: StaticGemm, isa: IsaRow, num_trials: int, seconds_of: Any) -> FoundProgram:
        searched.append(gemm)
        return FoundProgram(b"code", 0.5, num_trials, 60.0)

    monkeypatch.setattr(codegen.gemm.metaschedule, "search", fake)
    other = StaticGemm(m=5, n=32, k=16, num_cores=1)
    results = [cached_search(gemm, tmp_path, lambda f: 1.0) for gemm in (GEMM, GEMM, other)]
    assert searched == [GEMM, other]
    assert results[0] == results[1] == results[2]
    assert results[0].num_trials == bench.gemm.metaschedule.TRIALS


def test_a_search_that_takes_minutes_is_no_default() -> None:
    assert set(PEERS) - set(DEFAULT_PEERS) == {"metaschedule"}


@pytest.mark.slow
def test_the_program_that_is_found_equals_numpy() -> None:
    arena = Arena(1 << 16, "test")
    a, w, c = (arena.array(shape, np.float32) for shape in ((4, 16), (16, 32), (4, 32)))
    rng = np.random.default_rng(0)
    a[:], w[:] = rng.standard_normal(a.shape), rng.standard_normal(w.shape)
    ran: list[Callable[..., None]] = []

    def seconds_of(function: Any) -> float:
        ran.append(function)
        return 1.0 / len(ran)

    found = search(GEMM, select_isa(), 10, seconds_of)
    assert found.num_trials == 10
    assert found.run_seconds == 1.0 / len(ran)
    found.function()(tensor(a), tensor(w), tensor(c))
    np.testing.assert_allclose(c, a @ w, rtol=1e-5, atol=1e-5)
