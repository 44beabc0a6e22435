"""The verifying executor: right steps pass, and each way to be wrong is named with its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codegen.layout.model import KvLayout, ModelLayout
from codegen.spec import Phase
from platforms.isa import select_isa
from sandwich.config import EngineConfig
from sandwich.engine.engine import Engine
from sandwich.executor.base import Batch, Executor, ExecutorLimits, LazyStart, StepOutput
from sandwich.executor.compiled import CompiledExecutor
from sandwich.executor.reference import ReferenceExecutor
from sandwich.executor.verify import (
    TOLERANCE,
    VerificationError,
    VerifyingExecutor,
    relative_errors,
)
from sandwich.requests.request import Request, TokenEvent
from sandwich.requests.sampling_params import SamplingParams
from sandwich.requests.want import Want
from sandwich.startup import build
from sandwich.startup.build import build_engine
from sandwich.weights.load import ModelWeights
from schedules.plan import PlanPair
from tests.sandwich.executor.conftest import LIMITS, Sequences, TinyModel, tokens

Change = Callable[[StepOutput], StepOutput]


class Changing(LazyStart):
    """An executor that changes what another one gives, and knows whether it was closed."""

    def __init__(self, executor: ReferenceExecutor, change: Change = lambda output: output) -> None:
        self.limits: ExecutorLimits = executor.limits
        self.is_closed = False
        self._executor, self._change = executor, change

    def run(self, batch: Batch) -> StepOutput:
        return self._change(self._executor.run(batch))

    def close(self) -> None:
        self.is_closed = True


def with_logit(row: int, token_id: int, change: Callable[[np.ndarray], float]) -> Change:
    """Puts `change` of the row's logits in the place of one of them."""

    def changed(output: StepOutput) -> StepOutput:
        logits = output.logits.copy()
        logits[row, token_id] = change(logits[row])
        return output._replace(logits=logits)

    return changed


def verifying(model: TinyModel, change: Change, dtype: str = "float32") -> VerifyingExecutor:
    return VerifyingExecutor(Changing(model.reference(), change), model.reference(), dtype)


@pytest.fixture
def batch(sequences: Sequences) -> Batch:
    """The last three tokens of one sequence, then five of another; logits of three rows."""
    sequences.batch(Phase.PREFILL, {0: tokens(40)})
    return sequences.batch(Phase.PREFILL, {0: tokens(3), 2: tokens(5)}, [2, 4, 7])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_right_steps_of_both_phases_pass(dtype: str, cache_dir: Path) -> None:
    model, sequences = TinyModel.make(select_isa().name, dtype), Sequences()
    compiled, alone = model.compiled(cache_dir), model.compiled(cache_dir)
    with (
        closing(VerifyingExecutor(compiled, model.reference(), dtype)) as executor,
        closing(alone),
    ):
        assert executor.limits == LIMITS
        for step in (
            sequences.batch(Phase.PREFILL, {1: tokens(40), 3: tokens(9)}),
            sequences.batch(Phase.DECODE, {3: [1], 1: [2]}),
            sequences.batch(Phase.PREFILL, {1: tokens(7), 0: [3]}, []),
            sequences.batch(Phase.DECODE, {0: [4], 1: [5]}),
        ):
            output, expected = executor.run(step), alone.run(step)
            np.testing.assert_array_equal(output.logits, expected.logits)
            assert output.argmax == expected.argmax
            assert output.native_seconds is not None


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("sign", [-1, 1])
def test_what_rounding_does_not_explain_is_named_with_its_place(
    model: TinyModel, batch: Batch, dtype: str, sign: int
) -> None:
    share = TOLERANCE[dtype] * 1.1

    def change(logits: np.ndarray) -> float:
        return float(logits[5] + sign * share * np.abs(logits).max())

    with pytest.raises(VerificationError) as raised:
        verifying(model, with_logit(1, 5, change), dtype).run(batch)
    error = raised.value
    assert (error.phase, error.row, error.position) == (Phase.PREFILL, 1, 1)
    assert error.error == pytest.approx(share, rel=0.02)
    for part in ("prefill program", "logit row 1", "of position 1", "token 5 has", "reference's"):
        assert part in error.message


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_what_rounding_explains_passes(model: TinyModel, batch: Batch, dtype: str) -> None:
    share = TOLERANCE[dtype] * 0.9

    def change(logits: np.ndarray) -> float:
        return float(logits.min() - share * np.abs(logits).max())

    lowest = int(model.reference().run(batch).logits[2].argmin())
    verifying(model, with_logit(2, lowest, change), dtype).run(batch)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_never_passes(model: TinyModel, batch: Batch, value: float) -> None:
    with pytest.raises(VerificationError) as raised:
        verifying(model, with_logit(2, 0, lambda _: value), "bfloat16").run(batch)
    assert raised.value.error == np.inf
    assert (raised.value.row, raised.value.position) == (2, 4)


def test_a_wrong_greedy_token_is_named(model: TinyModel, batch: Batch) -> None:
    def wrong(output: StepOutput) -> StepOutput:
        argmax = output.argmax.copy()
        argmax[1] = int(output.logits[1].argmin())
        return output._replace(argmax=argmax)

    with pytest.raises(VerificationError, match=r"row 1, of position 1: its largest logit is that"):
        verifying(model, wrong).run(batch)


def test_a_wrong_log_probability_is_named(model: TinyModel, sequences: Sequences) -> None:
    wants = [Want(target=token, num_top=1) for token in tokens(3, 1)]
    step = sequences.batch(Phase.PREFILL, {1: tokens(5)}, [1, 2, 4], wants)

    def wrong(output: StepOutput) -> StepOutput:
        assert output.scores is not None
        totals = [*output.scores.totals[:2], output.scores.totals[2] * 1.1]
        return output._replace(scores=output.scores._replace(totals=totals))

    verifying(model, lambda output: output).run(step)
    with pytest.raises(VerificationError, match=rf"row 2, of position 4: .* {wants[2].target} is"):
        verifying(model, wrong).run(step)


def test_errors_are_shares_of_the_largest_logit_of_their_row() -> None:
    expected = np.array([[1.0, -4.0], [0.0, 0.5], [0.0, 0.0]], np.float32)
    actual = expected + np.array([[1.0, 0.0], [0.0, 0.25], [0.0, 0.0]], np.float32)
    assert relative_errors(actual, expected).tolist() == [[0.25, 0.0], [0.0, 0.5], [0.0, 0.0]]
    assert relative_errors(actual[:0], expected[:0]).shape == (0, 2)


def test_closing_it_closes_both(model: TinyModel) -> None:
    both = Changing(model.reference()), Changing(model.reference())
    VerifyingExecutor(*both, "float32").close()
    assert [executor.is_closed for executor in both] == [True, True]


CORRUPTED = ["qkv", "o", "gate_up", "down", "lm_head"]


@pytest.fixture(scope="module")
def own_model() -> TinyModel:
    return TinyModel.make(select_isa().name, "float32")


@pytest.fixture(scope="module")
def own_compiled(own_model: TinyModel, cache_dir: Path) -> Iterator[CompiledExecutor]:
    with closing(own_model.compiled(cache_dir)) as made:
        yield made


@pytest.mark.parametrize("role", CORRUPTED)
@pytest.mark.parametrize("phase", Phase)
def test_a_weight_that_changes_in_memory_is_noticed(
    own_model: TinyModel, own_compiled: CompiledExecutor, role: str, phase: Phase
) -> None:
    # The reference has unpacked the matrices; the programs read the packed ones at every step.
    executor = VerifyingExecutor(own_compiled, own_model.reference(), "float32")
    sequences, words = Sequences(), own_model.weights.tensors[role].reshape(-1)
    executor.run(sequences.batch(Phase.PREFILL, {0: tokens(9)}))
    step = sequences.batch(phase, {0: [1]})
    at = int(np.flatnonzero(words)[7])
    before = words[at]
    words[at] = -before + 1.0
    try:
        with pytest.raises(VerificationError) as raised:
            executor.run(step)
    finally:
        words[at] = before
    assert (raised.value.phase, raised.value.row, raised.value.position) == (phase, 0, 9)


def greedy(config: EngineConfig) -> tuple[list[TokenEvent], Executor]:
    """Four tokens of an engine, and its executor."""
    parts = build_engine(config)
    prompt = parts.tokenizer.encode("def add(a, b):\n")
    with closing(parts.engine) as engine:
        engine.add_request(Request("a", prompt, SamplingParams(max_tokens=4, temperature=0.0)))
        return events_of(engine), engine.executor


def events_of(engine: Engine) -> list[TokenEvent]:
    events = []
    while engine.has_work():
        events += engine.step()
    return events


def test_the_option_makes_an_engine_verify_itself(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def in_numpy(
        plans: PlanPair,
        layout: ModelLayout,
        kv: KvLayout,
        limits: ExecutorLimits,
        load: Callable[[], ModelWeights],
        *_: object,
        **__: object,
    ) -> ReferenceExecutor:
        return ReferenceExecutor(load(), kv, limits)

    monkeypatch.setattr(build, "compiled_executor", in_numpy)
    tiny: dict[str, Any] = {"model": "tiny", "random_weights": True, "max_model_len": 64}
    assert isinstance(greedy(EngineConfig(**tiny))[1], ReferenceExecutor)
    monkeypatch.setenv("SANDWICH_VERIFY", "1")
    events, executor = greedy(EngineConfig(**tiny))
    assert isinstance(executor, VerifyingExecutor)
    assert "compared with the reference" in caplog.text
    assert [event.finish_reason for event in events] == [None, None, None, "length"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_real_model_passes_its_own_verification(dtype: str, cache_dir: Path) -> None:
    config = EngineConfig(max_model_len=64, dtype=dtype, cache_dir=cache_dir, verify=True)
    assert greedy(config)[0][-1].finish_reason == "length"


def test_a_step_that_is_wrong_ends_its_requests_with_the_reason(model: TinyModel) -> None:
    wrong = with_logit(0, 0, lambda logits: float(np.abs(logits).max() * 2))
    engine = Engine(verifying(model, wrong))
    engine.add_request(Request("a", tokens(3), SamplingParams(max_tokens=4)))
    assert [event.finish_reason for event in events_of(engine)] == ["error"]
