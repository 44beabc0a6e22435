"""The order of layers as loops: which runs and periods are found, and that none is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen.model.pattern import Period, Run, pattern_of
from codegen.spec import LayerKind

LOCAL, FULL = LayerKind(window=4), LayerKind()


def layers_of(pattern: tuple[Period, ...]) -> list[LayerKind]:
    return [
        run.kind
        for period in pattern
        for _ in range(period.repeats)
        for run in period.runs
        for _ in range(run.count)
    ]


@pytest.mark.parametrize(
    ("kinds", "pattern"),
    [
        ([FULL] * 16, (Period((Run(FULL, 16),), 1),)),
        ([LOCAL, FULL] * 13, (Period((Run(LOCAL, 1), Run(FULL, 1)), 13),)),
        (
            ([LOCAL] * 5 + [FULL]) * 4 + [LOCAL] * 2,
            (Period((Run(LOCAL, 5), Run(FULL, 1)), 4), Period((Run(LOCAL, 2),), 1)),
        ),
        ([FULL] + [LOCAL] * 9, (Period((Run(FULL, 1),), 1), Period((Run(LOCAL, 9),), 1))),
    ],
    ids=["all-alike", "in-turn", "five-and-one", "the-first-is-another"],
)
def test_layers_are_runs_and_periods(kinds: list[LayerKind], pattern: tuple[Period, ...]) -> None:
    assert pattern_of(kinds) == pattern


@given(st.lists(st.sampled_from([FULL, LOCAL, LayerKind(window=9)]), max_size=40))
def test_a_pattern_has_every_layer_in_its_place(kinds: list[LayerKind]) -> None:
    assert layers_of(pattern_of(kinds)) == kinds
