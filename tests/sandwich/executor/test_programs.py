"""Programs and their launchers: who shares one, and which thread makes the steps."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from codegen.spec import Phase
from sandwich.executor.compiled import CompiledExecutor
from sandwich.executor.launcher import Launcher
from sandwich.executor.programs import PhaseProgram, phase_launchers
from sandwich.executor.specs import program_specs
from schedules.plan import PlanPair
from tests.sandwich.executor.conftest import CPUS, LIMITS, Sequences, TinyModel, tokens


@pytest.fixture
def plans(model: TinyModel) -> PlanPair:
    """Prefill on every core, decode on the first."""
    return replace(model.plans, decode=model.plans.decode.on(CPUS[:1]))


@pytest.fixture
def executor(model: TinyModel, plans: PlanPair, cache_dir: Path) -> Iterator[CompiledExecutor]:
    with closing(replace(model, plans=plans).compiled(cache_dir)) as made:
        yield made


def test_phases_on_the_same_cpus_share_a_launcher(model: TinyModel, plans: PlanPair) -> None:
    for pair, is_shared in ((model.plans, True), (plans, len(CPUS) == 1)):
        launchers = phase_launchers(pair, is_pinned=False)
        assert (launchers[Phase.PREFILL] is launchers[Phase.DECODE]) == is_shared
        assert {phase: launchers[phase].cpus for phase in Phase} == {
            phase: pair.of(phase).cpus for phase in Phase
        }
        for launcher in launchers.values():
            launcher.close()


def test_a_program_for_more_cores_than_workers_is_refused(model: TinyModel) -> None:
    specs = program_specs(model.plans, model.weights.layout, model.kv.dtype, LIMITS)
    spec = replace(specs[Phase.DECODE], groups=((3,),))
    with (
        closing(Launcher("two", CPUS[:2], is_pinned=False)) as launcher,
        pytest.raises(ValueError, match="for 3 cores, but its launcher has"),
    ):
        PhaseProgram(spec, lambda: None, launcher)


def logits_of(executor: CompiledExecutor) -> list[bytes]:
    """Of steps of both phases by turns."""
    sequences, prompt = Sequences(), tokens(30)
    return [
        executor.run(batch).logits.tobytes()
        for batch in (
            sequences.batch(Phase.PREFILL, {0: prompt[:20], 2: [7]}),
            sequences.batch(Phase.DECODE, {0: prompt[20:21]}),
            sequences.batch(Phase.DECODE, {2: [8], 0: prompt[21:22]}),
            sequences.batch(Phase.PREFILL, {0: prompt[22:]}),
            sequences.batch(Phase.DECODE, {2: [9]}),
        )
    ]


def test_steps_are_the_same_wherever_they_run(
    compiled: CompiledExecutor, executor: CompiledExecutor
) -> None:
    expected = logits_of(compiled)
    assert logits_of(executor) == expected

    def adopt() -> list[bytes]:
        executor.adopt_thread()
        return logits_of(executor)

    with ThreadPoolExecutor(1) as pool:  # as the engine's own thread does
        assert pool.submit(adopt).result() == expected
