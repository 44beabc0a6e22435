"""From result files to pages: every table and picture, and what is wrong with the files."""

import json
from pathlib import Path
from typing import Any

import pytest

import bench.smoke
from bench.report.files import Results
from bench.report.page import markdown, write_report
from bench.report.tables import tables, tightest
from bench.smoke import cells, compare
from bench.suite import command, parts
from sandwich.cli import main
from sandwich.errors import ConfigError

MACHINE = {
    "fingerprint": "abc",
    "cpu_model": "A <CPU>",
    "arch": "x86_64",
    "isa": "avx2",
    "cpus": [0, 1],
    "huge_pages": "madvise",
}
HEAD = {"machine": MACHINE, "commit": "1234", "time": "2026-01-01T00:00:00+00:00"}
QUIET: dict[str, Any] = {"conditions": {"complaints": []}}


def run_of(ttft: float) -> dict[str, Any]:
    requests = [
        {"ttft_ms": ttft * i, "tpot_ms": 10.0 * i, "e2el_ms": 100.0 * i} for i in range(1, 11)
    ]
    return {
        "completed": 10,
        "failed": 0,
        "requests": requests,
        "output_throughput": 50.0,
        "request_goodput": 0.5,
        "median_ttft_ms": ttft * 5,
        "p99_ttft_ms": ttft * 10,
        "median_tpot_ms": 50.0,
        "p99_tpot_ms": 100.0,
    }


def served(rate: float) -> dict[str, Any]:
    return {
        **key("serve"),
        "work": f"serve at {rate}",
        "rate": rate,
        "goals": {"ttft": 1000.0, "tpot": 200.0},
        "runs": {"ours": [run_of(100.0)], "peer": [run_of(400.0)]},
        "ours_memory_bytes": 2e9,
        "peer_memory_bytes": 1e9,
        **ratio(1.0),
    }


def key(work: str) -> dict[str, Any]:
    return {"model": "m", "format": "bf16", "peer": "other", "work": work}


def ratio(value: float) -> dict[str, Any]:
    return {"ratio": value, "ratios": [value], "ratio_quartiles": [value, value]}


LATENCY = {
    **HEAD,
    "model": "m",
    "dtype": "bfloat16",
    "quantization": "none",
    "limits": {"peak_gflops": 400.0, "read_gbps": 40.0},
    "prefill": [
        {"tokens": 128, "tok_per_s": 900.0, "gflops": 300.0, "intensity": 200.0, "peak_ratio": 0.75}
    ],
    "decode": [
        {
            "batch": 1,
            "context": 128,
            "tok_per_s": 15.0,
            "gbps": 36.0,
            "intensity": 1.0,
            "bandwidth_ratio": 0.9,
            "host_overhead_ratio": 0.01,
        }
    ],
}
ATTENTION = [
    {
        "phase": phase,
        "head_dim": 64,
        "group": group,
        "context": context,
        "batch": 1,
        "limit_ratio": 0.5,
    }
    for phase in ("prefill", "decode")
    for group in (1, 4)
    for context in (128, 512)
]
FILES: dict[str, dict[str, Any]] = {
    "limits": {
        **HEAD,
        "conditions": {"complaints": ["other processes use 50% of the CPUs"]},
        "rows": [
            {
                "limit": "read",
                "unit": "GB/s",
                "num_cores": 2,
                "median": 40.0,
                "best": 41.0,
                "spread": 0.1,
            }
        ],
    },
    "latency-bf16": LATENCY,
    "attention": {**HEAD, **QUIET, "rows": ATTENTION},
    "noise": {
        **HEAD,
        "left_by_the_machine": 0.75,
        "phases": {"decode": {"kept_ratio": 0.6}},
    },
    "peers-other": {
        **HEAD,
        "rows": [
            {**key("prefill 128"), "ours_tok_per_s": 2.0, "peer_tok_per_s": 1.0, **ratio(2.0)},
            {**key("start"), "ours_seconds": [4.0], "peer_seconds": [2.0], **ratio(0.5)},
            {**key("decode 8 x 128"), "absent": "one | at a time"},
            served(0.5),
            served(1.0),
        ],
    },
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "abc"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_every_result_is_in_a_table(folder: Path) -> None:
    found = {table.title: table for table in tables(Results.read(folder))}
    assert found["Beside other engines"].rows[0][4:7] == ("2.0 tok/s", "1.0 tok/s", "2.00")
    assert found["Beside other engines"].rows[1][4:7] == ("4.00 s", "2.00 s", "0.50")
    assert found["Absent"].rows == [("m", "bf16", "other", "decode 8 x 128", "one | at a time")]
    assert found.keys() >= {"Servers under the same load", "Prefill", "Decode", "Limits"}
    assert found.keys() >= {"Attention", "Others"}
    for table in found.values():
        assert {len(row) for row in table.rows} == {len(table.columns)}


def test_the_page_has_pictures_and_says_that_the_machine_was_busy(folder: Path) -> None:
    pytest.importorskip("matplotlib")
    html, summary = (file.read_text() for file in write_report(folder))
    for title in ("goodput against rate", "attainment against SLO scale", "percentiles"):
        assert title in html
    assert html.count("<svg") == 6  # heat map, three of servers, roofline, attention
    assert "A &lt;CPU&gt;" in html
    assert "limits: other processes use 50% of the CPUs" in html
    assert "limits: other processes use 50% of the CPUs" in summary
    assert "one \\| at a time" in summary


def test_what_is_missing_leaves_no_gap(folder: Path) -> None:
    for file in folder.glob("*.json"):
        if file.stem != "limits":
            file.unlink()
    text = markdown(Results.read(folder), tables(Results.read(folder)))
    assert text.count("## ") == 1


def test_the_tightest_goals_that_nine_of_ten_keep() -> None:
    assert float(tightest(run_of(100.0), {"ttft": 900.0})) == pytest.approx(1.0)
    assert float(tightest(run_of(100.0), {"ttft": 450.0})) == pytest.approx(2.0)
    assert tightest(run_of(100.0), {"ttft": 1.0}) == "over 16"


def test_reports_of_all_machines_make_one_page(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "results.md"
    assert main(["bench", "report", str(tmp_path), "--page", str(page)]) == 0
    assert str(page) in capsys.readouterr().out
    assert "## Sandwich on A <CPU>, 2 cores, avx2" in page.read_text()


def test_no_results_or_damaged_ones_are_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="bench all"):
        Results.read(tmp_path)
    (folder / "limits.json").write_text("{")
    with pytest.raises(ConfigError, match=r"limits\.json is damaged"):
        Results.read(folder)


def test_parts_have_files_of_their_own_and_can_be_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    every = list(parts(("llama.cpp", "transformers")))
    assert len({part.name for part in every}) == len(every)
    for part in every:
        flags = command(part, tmp_path)
        assert flags[flags.index("--json") + 1] == str(tmp_path / f"{part.name}.json")
        assert ("--resume" in flags) == part.grows
    assert main(["bench", "all", "--list", "--platform-report", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "sandwich bench limits --json" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("accept", [False, True])
def test_what_got_slower_is_said_and_the_last_result_kept_unless_accepted(
    accept: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    speed = [1.0]
    monkeypatch.setattr(bench.smoke, "measured", lambda flags: {"prefill": 0.8 * speed[0]})
    flags = ["bench", "smoke", "--results", str(tmp_path), *(["--accept"] if accept else [])]
    assert main(flags) == 0
    [file] = tmp_path.glob("*/smoke.json")
    before = file.read_text()
    speed[0] = 0.85
    assert main(flags) == (0 if accept else 1)
    assert "SLOWER" in capsys.readouterr().out
    assert (file.read_text() == before) is not accept


def test_a_tenth_is_noise() -> None:
    said: list[str] = []
    before = {"a": 0.5, "b": 0.5}
    assert compare(before, {"a": 0.46, "b": 0.44, "c": 0.1}, said.append) == 1
    assert ["SLOWER" in line for line in said] == [False, True, False]


def test_the_ratios_of_a_latency_result() -> None:
    assert cells(LATENCY) == {"prefill 128": 0.75, "decode 1 x 128": 0.9}
