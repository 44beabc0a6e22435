"""`sandwich tune`: what it writes, shows and carries between machines; the search is faked."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import schedules.tiles.tuning
from codegen.spec import GemmTile, Phase
from platforms.probe import probe
from sandwich.cli.tune import geometric_mean, print_summary, to_json
from schedules.records import (
    FILE_NAME,
    CpuKind,
    TileKey,
    TuningRecord,
    append_records,
    current_generator,
    read_records,
)
from schedules.tiles.tuner import Outcome, Progress, Summary, TaskLimits
from schedules.tiles.tuning import TuningJob

Run = Callable[..., Any]


def outcomes_of(job: TuningJob) -> tuple[Outcome, ...]:
    """One step of mr for each task, of double speed."""
    return tuple(
        Outcome(task, replace(task.start, mr=3), 1e-3, 2.0, TaskLimits(100.0, 10.0), num_trials=7)
        for task in job.tasks()
    )


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[TuningJob]:
    """Jobs that were run, instead of running them."""
    seen: list[TuningJob] = []

    def run(job: TuningJob, report: Callable[[Progress], None]) -> Summary:
        seen.append(job)
        outcomes = outcomes_of(job)
        report(Progress(outcomes[0].task, outcomes[0].tile, 1e-3, outcomes[0].limits))
        return Summary(outcomes, 12.5, is_interrupted=False)

    monkeypatch.setattr(schedules.tiles.tuning, "run", run)
    return seen


@pytest.fixture
def record() -> TuningRecord:
    machine = probe()
    key = TileKey(machine.isa, "bfloat16", 2048, 2048, 2, 4)
    tile, cpu = GemmTile(3), CpuKind.of(machine)
    return TuningRecord(
        machine.fingerprint, cpu, key, tile, 10.0, 1.0, 0.5, 1.5, current_generator()
    )


def test_the_job_is_what_the_flags_say(jobs: list[TuningJob], run: Run, tmp_path: Path) -> None:
    flags = ("--budget", "2m", "--roles", "o,down", "--phase", "decode", "--cache-dir", tmp_path)
    run("tune", "llama-3.2-1b", *map(str, flags))
    (job,) = jobs
    assert job.budget == 120
    assert job.roles == ("o", "down")
    assert job.phases == (Phase.DECODE,)
    assert job.records_file == tmp_path / FILE_NAME


def test_the_formats_of_a_quantisation_are_tuned(jobs: list[TuningJob], run: Run) -> None:
    run("tune", "llama-3.2-1b", "--quantization", "int4")
    names = {task.space.layout.format.name for task in jobs[0].tasks()}
    assert names == {"int4-g32-min x int8", "int8-g32 x float"}


def test_the_table_shows_what_changed_and_the_file_has_it(
    jobs: list[TuningJob], run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "tuned.json"
    out = run("tune", "llama-3.2-1b", "--json", str(file)).out
    assert "2.00 times as fast" in out
    result = json.loads(file.read_text())
    assert result["model"] == "llama-3.2-1b"
    tuning = result["tuning"]
    assert tuning["seconds"] == 12.5
    assert tuning["geometric_mean"] == pytest.approx(2.0)
    assert {(row["role"], row["phase"]) for row in tuning["roles"]} >= {
        ("qkv", "decode"),
        ("down", "prefill"),
    }
    row = tuning["roles"][0]
    assert row["tuned"]["mr"] == 3
    assert row["ratio"] == 2.0
    assert row["n"] > 0
    assert row["default"] != row["tuned"]


def test_an_interruption_and_nothing_found_are_said() -> None:
    console = Console(record=True, width=200)
    summary = Summary((), 3.0, is_interrupted=True)
    print_summary(summary, console)
    text = console.export_text()
    assert "the same command goes on" in text
    assert "give it a larger --budget" in text
    assert to_json(summary)["geometric_mean"] is None


def test_the_mean_counts_every_role(jobs: list[TuningJob], run: Run) -> None:
    run("tune", "llama-3.2-1b", "--phase", "prefill", "--roles", "qkv,o,down")
    first, *rest = outcomes_of(jobs[0])
    assert len(first.task.roles) == 2
    equal = [replace(outcome, speedup=1.0) for outcome in rest]
    num_roles = sum(len(outcome.task.roles) for outcome in (first, *rest))
    assert geometric_mean([first, *equal]) == pytest.approx(2.0 ** (2 / num_roles))


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--budget", "soon"), "'soon' is not a time"),
        (("--budget", "0s"), "is not a time above zero"),
        (("--roles", "qkv,ffn"), "'ffn' is not one of"),
        (("--phase", "both"), "invalid choice"),
    ],
)
def test_wrong_flags_are_refused(run: Run, flags: tuple[str, ...], text: str) -> None:
    assert text in run("tune", *flags, code=2).err


def test_records_go_from_machine_to_machine(run: Run, record: TuningRecord, tmp_path: Path) -> None:
    file, here, there = tmp_path / "export.jsonl", tmp_path / "here", tmp_path / "there"
    unlike = replace(record, cpu=replace(record.cpu, model="Another"))
    append_records(here / FILE_NAME, [record, unlike])
    assert "1 records" in run("tune", "--export", str(file), "--cache-dir", str(here)).out
    for new in (1, 0):
        out = run("tune", "--import", str(file), "--cache-dir", str(there)).out
        assert f"{new} new records" in out
    assert read_records(there / FILE_NAME) == [record]


def test_records_of_an_unlike_machine_are_refused_with_the_reason(
    run: Run, record: TuningRecord, tmp_path: Path
) -> None:
    file = tmp_path / "export.jsonl"
    append_records(file, [replace(record, cpu=replace(record.cpu, model="Another"))])
    error = run("tune", "--import", str(file), "--cache-dir", str(tmp_path), code=2).err
    assert "unlike CPU: model 'Another' instead of" in error


def test_nothing_to_export_says_how_to_get_it(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "export.jsonl"
    error = run("tune", "--export", str(file), "--cache-dir", str(tmp_path), code=2).err
    assert "run `sandwich tune`" in error
    assert not file.exists()
