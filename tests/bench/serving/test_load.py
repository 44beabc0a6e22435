"""The benchmark against a real server, and the arithmetic of its figures."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.serving.client import Answer
from bench.serving.figures import METRICS, attainment, block, figures, is_good
from bench.serving.load import Arrivals, Run
from sandwich.cli import main


def bench(url: str, folder: Path, *flags: str) -> dict[str, Any]:
    """Run the verb with these flags; the result it saved."""
    saved = ["--save-result", "--result-dir", str(folder), "--result-filename", "r.json"]
    assert main(["bench", "serve", "--base-url", url, "--ignore-eos", *saved, *flags]) == 0
    return json.loads((folder / "r.json").read_text())


def test_tokens_are_those_of_the_usage(
    server_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths = ["--random-input-len", "60", "--random-output-len", "9"]
    goals = ["--goodput", "ttft:1000000", "tpot:1000000"]
    result = bench(server_url, tmp_path, "--num-prompts", "12", *lengths, *goals)
    assert (result["completed"], result["failed"], result["without_usage"]) == (12, 0, 0)
    assert result["total_output_tokens"] == 12 * 9
    assert 12 * 57 < result["total_input_tokens"] <= 12 * 60
    assert result["good_requests"] == 12
    assert result["request_goodput"] == pytest.approx(12 / result["duration"])
    assert [row["output_len"] for row in result["requests"]] == [9] * 12
    assert result["model_id"] == "null"
    said = capsys.readouterr().out
    assert "Serving Benchmark Result" in said
    assert "Median TTFT (ms):" in said


@pytest.mark.parametrize("backend", ["openai", "openai-chat"])
def test_a_conversation_holds_all_that_was_said(
    backend: str, server_url: str, tmp_path: Path
) -> None:
    flags = ["--dataset-name", "multi-turn", "--num-turns", "3", "--backend", backend]
    lengths = ["--random-input-len", "30", "--random-output-len", "8", "--num-prompts", "3"]
    result = bench(server_url, tmp_path, *flags, *lengths, "--max-concurrency", "1")
    assert result["completed"] == 3
    first = [row["input_len"] for row in result["requests"]]
    assert first == sorted(first)
    assert first[2] > first[1] + 27
    assert result["max_concurrent_requests"] == 1


@pytest.mark.parametrize(
    "flags",
    [
        ["--dataset-name", "trace", "--trace-scale", "0.02"],
        ["--dataset-name", "prefix_repetition", "--prefix-repetition-num-prefixes", "2"],
        ["--request-rate", "200", "--burstiness", "0.3", "--random-input-len", "5"],
    ],
)
def test_other_datasets_and_rates(flags: list[str], server_url: str, tmp_path: Path) -> None:
    result = bench(server_url, tmp_path, "--num-prompts", "7", *flags)
    assert result["completed"] == 7


def test_several_rates_make_several_runs(server_url: str, tmp_path: Path) -> None:
    lengths = ["--random-input-len", "5", "--random-output-len", "2", "--num-prompts", "3"]
    result = bench(server_url, tmp_path, *lengths, "--request-rate", "100,inf")
    assert [run["request_rate"] for run in result["runs"]] == [100.0, "inf"]


def test_a_sharegpt_file_is_asked(server_url: str, tmp_path: Path) -> None:
    file = tmp_path / "sharegpt.json"
    entry = {"conversations": [{"value": "hello there"}, {"value": "good day"}]}
    file.write_text(json.dumps([entry] * 3))
    flags = ["--dataset-name", "sharegpt", "--dataset-path", str(file), "--num-warmups", "0"]
    result = bench(server_url, tmp_path, *flags, "--num-prompts", "2")
    assert result["total_output_tokens"] == 2 * len("good day")
    assert result["total_input_tokens"] == 2 * len("hello there")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--goodput", "itl:5"], "ttft:MILLISECONDS"),
        (["--goodput", "ttft:0"], "above 0"),
        (["--goodput", "ttft:1", "ttft:2"], "twice"),
        (["--request-rate", "0"], "above 0, or inf"),
        (["--request-rate", "nan"], "above 0, or inf"),
        (["--burstiness", "inf"], "above 0"),
        (["--random-range-ratio", "1.5"], "from 0 to 1"),
        (["--percentile-metrics", "p99"], "not one of"),
        (["--extra-body", "[1]"], "no JSON object"),
        (["--trace-kinds", "poems"], "not one of"),
        (["--num-prompts", "0"], "from 1 up"),
    ],
)
def test_a_mistake_is_one_line(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "serve", "--base-url", "http://127.0.0.1:9", *flags]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model", "other"], "the first request"),
        (["--dataset-name", "sharegpt"], "--dataset-path"),
        (["--random-input-len", "5000"], "--max-model-len"),
    ],
)
def test_what_the_server_cannot_do_is_one_line(
    flags: list[str], said: str, server_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "serve", "--base-url", server_url, "--num-prompts", "2", *flags]) != 0
    assert said in capsys.readouterr().err


def test_a_server_that_is_not_there_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--base-url", "http://127.0.0.1:9", "--ready-check-timeout-sec", "0"]
    assert main(["bench", "serve", *flags]) == 1
    assert "--base-url" in capsys.readouterr().err


@pytest.mark.parametrize("burstiness", [0.2, 1.0, 100.0])
def test_arrivals_have_their_rate_and_their_burstiness(burstiness: float) -> None:
    times = Arrivals(5.0, burstiness).times(4001, np.random.default_rng(0))
    assert times[0] == 0
    assert times[-1] == pytest.approx(800)
    gaps = np.diff(times)
    assert gaps.min() >= 0
    assert np.std(gaps) / np.mean(gaps) == pytest.approx(burstiness**-0.5, rel=0.15)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_all_at_once_is_at_once(count: int) -> None:
    assert Arrivals(math.inf).times(count, np.random.default_rng(0)) == [0.0] * count


def answer(sent: float, times: list[float], num_tokens: int, error: str = "") -> Answer:
    return Answer("chat", sent, times, "", 10, num_tokens, 0, True, error)


def test_the_figures_follow_from_the_times() -> None:
    answers = [
        answer(0.0, [0.5, 0.7, 0.9], 3),
        answer(1.0, [2.0], 1),
        answer(1.0, [], 0, "status 500: no"),
        answer(1.5, [1.6, 2.6], 6),  # a piece of several tokens
    ]
    result = figures(Run(answers, 4.0), (50, 99), {"ttft": 600.0, "tpot": 250.0})
    assert (result["completed"], result["failed"]) == (3, 1)
    assert result["errors"] == {"status 500: no": 1}
    assert result["total_output_tokens"] == 10
    assert result["total_input_tokens"] == 30
    assert result["output_throughput"] == 2.5
    assert result["request_throughput"] == 0.75
    assert result["request_goodput"] == 0.5
    assert result["median_ttft_ms"] == pytest.approx(500)
    assert result["mean_tpot_ms"] == pytest.approx(200)
    assert result["mean_itl_ms"] == pytest.approx((200 + 200 + 1000) / 3)
    assert result["p50_e2el_ms"] == pytest.approx(1000)
    assert result["max_concurrent_requests"] == 2
    assert [row["tpot_ms"] for row in result["requests"]] == [200, None, 200]
    assert attainment(result["requests"], {"ttft": 600.0}, 4) == 0.5
    text = block(result, tuple(METRICS), (99,))
    assert "Request goodput (req/s):                 0.50" in text
    assert {len(line) for line in text.splitlines() if line.startswith(("=", "-"))} == {50}


@pytest.mark.parametrize(
    ("goals", "good"),
    [({}, True), ({"ttft": 500.0}, True), ({"ttft": 499.0}, False), ({"e2el": 899.0}, False)],
)
def test_a_request_is_good_if_it_keeps_all_goals(goals: dict[str, float], good: bool) -> None:
    assert is_good(answer(0.0, [0.5, 0.9], 2), goals) is good


def test_nothing_answered_is_zero_and_no_error() -> None:
    result = figures(Run([answer(0.0, [], 0, "gone")], 0.0), (99,), {"ttft": 1.0})
    assert (result["completed"], result["output_throughput"], result["p99_ttft_ms"]) == (0, 0, 0)
    assert result["requests"] == []
