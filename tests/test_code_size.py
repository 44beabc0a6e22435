"""Files stay small and finished: a length limit, and no promises in place of code."""

import re
from pathlib import Path

import pytest

HOUSE = ("platforms", "codegen", "schedules", "sandwich", "bench", "tests", ".ci")
MAX_LINES = 400  # the aim is 300; a file that wants 600 has two nouns
PROMISE = re.compile(r"\b(T[O]DO|F[I]XME|X[X]X)\b")  # matches all but itself


def sources(root: Path) -> list[Path]:
    return [path for folder in HOUSE for path in sorted((root / folder).rglob("*.py"))]


def too_long(root: Path) -> list[str]:
    counts = ((path, len(path.read_text().splitlines())) for path in sources(root))
    return [f"{path.relative_to(root)}: {n} lines" for path, n in counts if n > MAX_LINES]


def promises(root: Path) -> list[str]:
    return [
        f"{path.relative_to(root)}:{number}: {line.strip()}"
        for path in sources(root)
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if PROMISE.search(line)
    ]


def test_no_file_is_longer_than_the_limit(checkout: Path) -> None:
    assert too_long(checkout) == []


def test_nothing_is_left_to_do(checkout: Path) -> None:
    assert promises(checkout) == []


@pytest.mark.parametrize(("num_lines", "num_found"), [(MAX_LINES, 0), (MAX_LINES + 1, 1)])
def test_the_limit_counts_lines(tmp_path: Path, num_lines: int, num_found: int) -> None:
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "a.py").write_text("x = 1\n" * num_lines)
    assert len(too_long(tmp_path)) == num_found


def test_a_promise_is_seen(tmp_path: Path) -> None:
    (tmp_path / "codegen").mkdir()
    (tmp_path / "codegen" / "a.py").write_text("x = 1\n# TO" + "DO: later\n")
    assert len(promises(tmp_path)) == 1
