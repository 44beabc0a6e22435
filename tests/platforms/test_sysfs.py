"""CPU lists and reading below a root."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from platforms.sysfs import Tree, format_cpu_list, parse_cpu_list


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("", ()), ("0", (0,)), ("0-3,8", (0, 1, 2, 3, 8)), ("8,0-1\n", (0, 1, 8)), ("5-5", (5,))],
)
def test_a_cpu_list_is_read_as_the_kernel_writes_it(text: str, cpus: tuple[int, ...]) -> None:
    assert parse_cpu_list(text) == cpus


@pytest.mark.parametrize("text", ["x", "1-", "-1", "3-1", "1 2", "0-3-5"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_cpu_list(text)


@given(st.sets(st.integers(0, 300)))
def test_what_is_written_is_read_back(cpus: set[int]) -> None:
    assert parse_cpu_list(format_cpu_list(cpus)) == tuple(sorted(cpus))


def test_what_is_missing_or_malformed_reads_as_nothing(tmp_path: Path) -> None:
    (tmp_path / "word").write_text("many\n")
    (tmp_path / "folder").mkdir()
    tree = Tree(str(tmp_path))
    assert tree.read("word") == "many"
    assert tree.read("absent") is None
    assert tree.read("folder") is None
    assert tree.read_int("word") is None
    assert tree.read_cpu_list("word") is None
    assert tree.list_dir("absent") == []
    assert tree.numbered("absent", "cpu") == []


def test_numbered_entries_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("cpu10", "cpu9", "cpuidle", "node3"):
        (tmp_path / name).mkdir()
    assert Tree(str(tmp_path)).numbered("", "cpu") == [9, 10]
