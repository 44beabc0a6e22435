"""`sandwich batch` as a process: what it says, and that a kill costs nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TINY = ("tiny", "--random-weights", "--executor", "null", "--max-num-seqs", "2")


def write(folder: Path, count: int) -> tuple[str, str]:
    lines = [
        {
            "custom_id": str(i),
            "url": "/v1/completions",
            "body": {"prompt": "x", "max_tokens": 50, "seed": 1, "temperature": 0},
        }
        for i in range(count)
    ]
    (folder / "in").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder / "in"), str(folder / "out")


def done(out: str) -> list[str]:
    return [json.loads(line)["custom_id"] for line in Path(out).read_text().splitlines()]


def test_a_batch_is_answered_and_then_done(run: Callable[..., Any], tmp_path: Path) -> None:
    files = write(tmp_path, 5)
    assert run("batch", *files, *TINY).err.endswith(
        "5 answered, 0 of them with an error; 0 were done before\n"
    )
    assert run("batch", *files, *TINY).err.endswith("all 5 requests are answered already\n")
    assert sorted(done(files[1])) == list("01234")


def test_a_line_that_is_wrong_is_told_before_a_model_is_loaded(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "in").write_text("{}\n")
    printed = run("batch", str(tmp_path / "in"), str(tmp_path / "out"), "/no/model", code=2)
    assert "in, line 1: custom_id must be" in printed.err


@pytest.mark.slow
def test_killed_again_and_again_each_request_has_its_line_once(tmp_path: Path) -> None:
    count = 3000
    files = write(tmp_path, count)
    command = [sys.executable, "-m", "sandwich", "batch", *files, *TINY]
    num_kills, num_done = 0, 0
    while num_done < count:
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        target = min(num_done + 700, count + 1)
        while process.poll() is None:
            if Path(files[1]).exists() and Path(files[1]).read_bytes().count(b"\n") >= target:
                process.send_signal(signal.SIGKILL)
                num_kills += 1
                break
        _, errors = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), errors
        num_done = Path(files[1]).read_bytes().count(b"\n")
    assert num_kills >= 2
    found = done(files[1])
    assert sorted(found) == sorted(map(str, range(count)))
