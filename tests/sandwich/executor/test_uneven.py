"""Steps are claimed when cores wait for each other, and give the same bits then."""

from __future__ import annotations

import numpy as np
import pytest

from codegen.cores.claims import CLAIMED, MODE_LINE, STATIC, claims_spec, waited_ns
from codegen.spec import Phase
from sandwich.executor.compiled import CompiledExecutor
from sandwich.executor.uneven import CLAIMED_STEPS, UNEVEN_PART, Unevenness
from tests.codegen.conftest import same_bits
from tests.sandwich.executor.conftest import Sequences, tokens

STEP_SECONDS = 0.01
NUM_CORES = 2


def modes(waited_parts: list[float]) -> list[int]:
    """How steps go whose cores wait for such parts of their time when they are static."""
    claims = np.zeros(claims_spec(NUM_CORES).shape, np.int32)
    unevenness = Unevenness(claims, NUM_CORES)
    found = []
    for part in waited_parts:
        unevenness.before_step()
        found.append(int(claims[MODE_LINE, 0]))
        is_static = found[-1] == STATIC
        waited_ns(claims)[:] = part * STEP_SECONDS * 1e9 if is_static else 0
        unevenness.after_step(STEP_SECONDS)
    return found


def test_even_cores_stay_static() -> None:
    assert set(modes([UNEVEN_PART / 2] * 100)) == {STATIC}


def test_uneven_cores_claim_and_look_again() -> None:
    assert modes([2 * UNEVEN_PART] * (CLAIMED_STEPS + 3)) == [
        STATIC,
        *[CLAIMED] * CLAIMED_STEPS,
        STATIC,
        CLAIMED,
    ]


def test_cores_that_are_even_again_are_static_again() -> None:
    parts = [2 * UNEVEN_PART, *[0.0] * (CLAIMED_STEPS + 3)]
    assert modes(parts)[-3:] == [STATIC] * 3


@pytest.mark.parametrize("phase", Phase)
def test_claimed_steps_have_the_bits_of_static_ones(
    compiled: CompiledExecutor, phase: Phase, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = {0: tokens(37, 1), 1: tokens(5, 2)}
    replies = {0: [5], 1: [9]}
    logits = []
    for part in (9.0, -1.0):  # of which no step has more, and every step
        monkeypatch.setattr("sandwich.executor.uneven.UNEVEN_PART", part)
        for _ in range(2):  # the first of them decides about the next
            sequences = Sequences()
            steps = [compiled.run(sequences.batch(Phase.PREFILL, prompts)).logits.copy()]
            steps.append(compiled.run(sequences.batch(Phase.DECODE, replies)).logits.copy())
        logits.append(steps[phase is Phase.DECODE])
    assert same_bits(*logits)
