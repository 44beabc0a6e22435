"""`sandwich bench plans`: errors, regrets and the table, out of times that are known."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from bench.plans import PlanTime, show, summary
from codegen.spec import Phase
from sandwich.cli import main
from schedules.cost import StepCase

DECODE, PREFILL = StepCase(Phase.DECODE, 4, 512), StepCase(Phase.PREFILL, 128)


def row(case: StepCase, num_cores: int, predicted_us: float, measured_us: float) -> PlanTime:
    cores = f"{num_cores} cores"
    return PlanTime("tiny", case, cores, num_cores, predicted_us, measured_us, 30.0, 200.0)


ROWS = [
    row(DECODE, 1, 90.0, 100.0),
    row(DECODE, 2, 80.0, 110.0),
    row(PREFILL, 1, 210.0, 200.0),
    row(PREFILL, 2, 105.0, 100.0),
]


def test_the_mean_error_counts_both_signs_alike() -> None:
    result = summary(ROWS)
    assert result["mean_error"] == pytest.approx((0.1 + 30 / 110 + 0.05 + 0.05) / 4, abs=1e-4)
    assert result["worst_error"] == pytest.approx(30 / 110, abs=1e-4)
    assert [entry["error"] for entry in result["rows"]] == [-0.1, -0.2727, 0.05, 0.05]


def test_the_regret_is_what_trusting_the_prediction_costs() -> None:
    by_case = {choice["case"]: choice for choice in summary(ROWS)["choices"]}
    decode = by_case[DECODE.name]
    assert (decode["chosen"], decode["best"]) == ("2 cores", "1 cores")
    assert decode["regret"] == pytest.approx(0.1)
    assert by_case[PREFILL.name]["regret"] == 0
    assert summary(ROWS)["worst_regret"] == pytest.approx(0.1)


def test_the_table_has_every_row_and_the_sums() -> None:
    out = io.StringIO()
    show(summary(ROWS), Console(file=out, width=160))
    text = out.getvalue()
    assert text.count("tiny") == len(ROWS)
    assert "decode 4 x 512" in text
    assert "-27.3%" in text
    assert "at most 10.0% longer than the best" in text


@pytest.mark.parametrize(
    "flags",
    [("--prefill", "513"), ("--prefill", "32,x"), ("--decode", "33x8"), ("--decode", "4")],
)
def test_a_cell_that_cannot_be_run_is_refused(
    flags: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "plans", *flags]) == 2
    assert "whole numbers from 1 to" in capsys.readouterr().err
