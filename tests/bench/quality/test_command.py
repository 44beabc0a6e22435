"""`sandwich eval perplexity` from flags to table and file, on a tiny random model."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.peers.checkpoint import random_checkpoint
from sandwich.checkpoint.tokenizer_files import read_tokenizer
from sandwich.cli import main

TINY = ["eval", "perplexity", "tiny", "--random-weights", "--executor", "reference"]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("quality") / "result.json"
    flags = ["--quantizations", "none,int8,int4", "--max-tokens", "200", "--window", "50"]
    assert main([*TINY, *flags, "--json", str(file)]) == 0
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def test_the_reference_comes_first_and_is_compared_with_nothing(result: dict[str, Any]) -> None:
    assert {"commit", "machine", "text", "window"} <= result.keys()
    assert (result["num_tokens"], result["window"]) == (200, 50)
    assert [row["name"] for row in result["rows"]] == ["bfloat16", "int8", "int4"]
    first = result["rows"][0]
    assert (first["perplexity_ratio"], first["top_1_agreement"]) == (1, 1)
    assert first["kl_divergence"] == 0


def test_fewer_bits_are_further_away(result: dict[str, Any]) -> None:
    bfloat16, int8, int4 = result["rows"]
    assert bfloat16["bits_per_weight"] >= 16 > int8["bits_per_weight"] > int4["bits_per_weight"] > 4
    assert 0 < int8["kl_divergence"] < int4["kl_divergence"]
    assert int4["top_1_agreement"] <= int8["top_1_agreement"] <= 1
    for row in (int8, int4):
        ratio = row["perplexity"] / bfloat16["perplexity"]
        assert row["perplexity_ratio"] == pytest.approx(ratio, rel=1e-5)
        assert row["kl_divergence"] < row["kl_divergence_p99"]
        assert row["perplexity_ratio_error"] > 0


def test_every_row_has_its_speed(result: dict[str, Any]) -> None:
    for row in result["rows"]:
        assert row["prefill_tokens_per_second"] > 0
        assert row["decode_tokens_per_second"] > 0


def test_a_model_is_no_further_from_another_one_that_is_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "result.json"
    flags = ["--against", "tiny", "--quantizations", "none", "--max-tokens", "70"]
    assert main([*TINY, *flags, "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [row["name"] for row in rows] == ["bfloat16"] * 2
    assert rows[1]["kl_divergence"] == 0
    assert (rows[1]["perplexity_ratio"], rows[1]["top_1_agreement"]) == (1, 1)
    assert "+0.00% ±0.00%" in capsys.readouterr().out


def test_stored_codes_are_rated_against_the_model_they_were_made_of(
    tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(random_checkpoint("tiny", read_tokenizer(tokenizer_folder), tmp_path))
    codes = str(tmp_path / "codes")
    assert main(["quantize", folder, codes, "--quantization", "int4"]) == 0
    file = tmp_path / "result.json"
    flags = ["--executor", "reference", "--dtype", "bfloat16", "--json", str(file)]
    flags += ["--max-tokens", "60", "--window", "40", "--skip", "9"]
    stored = ["--against", folder, "--quantizations", "auto"]
    assert main(["eval", "perplexity", codes, *stored, *flags]) == 0
    kept = json.loads(file.read_text())
    assert main(["eval", "perplexity", folder, "--quantizations", "int4", *flags]) == 0
    rounded = json.loads(file.read_text())
    assert (kept["num_tokens"], kept["skip"]) == (60, 9)
    (first, auto), (same_first, int4) = kept["rows"], rounded["rows"]
    assert (auto["name"], auto["weights"]) == (int4["weights"], int4["weights"])
    assert auto["bits_per_weight"] == int4["bits_per_weight"]
    for key in ("perplexity", "kl_divergence", "top_1_agreement"):
        assert auto[key] == pytest.approx(int4[key])
        assert first[key] == same_first[key]
    assert "windows of 40 without their first 9" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--quantizations", "none,int3"], "'int3' is not one of auto, stored-a8, none, int8,"),
        (["--quantization", "int8"], "--quantizations"),
        (["--text", "no-such-file"], "--text no-such-file"),
        (["--max-tokens", "0"], "'0' is not a whole number from 1 up"),
        (["--window", "9", "--skip", "8"], "--skip is 8"),
        (["--window", "1"], "'1' is not a whole number from 2 up"),
    ],
)
def test_a_mistake_is_one_line(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TINY, *flags]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
