"""`sandwich cache`: lists what is on disk, removes what is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from codegen.cache import ProgramCache
from sandwich.weights.cache import WeightCache
from tests.sandwich.cli.test_cli import Run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with two models and a program."""
    monkeypatch.setenv("SANDWICH_CACHE_DIR", str(tmp_path))
    weights = WeightCache(tmp_path, 1 << 30)
    for key, model in (("1234" * 16, "llama"), ("abcd" * 16, "qwen")):
        weights.write(key, np.zeros(3 << 20, np.uint8), model, "int4-g32 x float")
    ProgramCache(tmp_path).get("k", lambda: b"code")
    return tmp_path


def test_ls_shows_models_and_programs(run: Run, folder: Path) -> None:
    out, _ = run("cache", "ls")
    assert "123412341234 llama int4-g32 x float 4.0 MiB" in " ".join(out.split())
    assert "2 packed models, 8.0 MiB" in out
    assert "1 compiled programs" in out


@pytest.mark.parametrize("name", ["qwen", "abcd", "abcdabcdabcd"])
def test_rm_removes_what_is_named(run: Run, folder: Path, name: str) -> None:
    out, _ = run("cache", "rm", name)
    assert out.strip() == "removed abcdabcdabcd qwen, 4.0 MiB"
    assert [entry.model for entry in WeightCache(folder, 0).entries()] == ["llama"]
    assert ProgramCache(folder).sizes() != []


def test_rm_all_leaves_nothing(run: Run, folder: Path) -> None:
    (folder / "weights" / "x.partial").write_text("left by a process that died")
    run("cache", "rm", "--all")
    assert [path for path in folder.rglob("*") if path.is_file()] == []
    out, _ = run("cache", "ls")
    assert "0 packed models" in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("rm",), "name models or keys to remove, or give --all"),
        (("rm", "qwen", "--all"), "name models or keys to remove, or give --all"),
        (("rm", "gemma"), "'gemma' is no model and no key here"),
        (("rm", "abc"), "'abc' is no model and no key here"),
        (("clear",), "invalid choice: 'clear'"),
    ],
)
def test_a_wrong_call_says_what_to_do(
    run: Run, folder: Path, args: tuple[str, ...], message: str
) -> None:
    _, err = run("cache", *args, code=2)
    assert message in err
    assert len(WeightCache(folder, 0).entries()) == 2
