"""Shares of cores."""

import pytest

from codegen.cores.shares import share


@pytest.mark.parametrize("num_cores", [1, 2, 3, 16, 95])
@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 192, 2004])
def test_shares_follow_each_other_and_differ_by_one_at_most(num_cores: int, count: int) -> None:
    shares = [share(core, num_cores, count) for core in range(num_cores)]
    borders = [border for begin_and_end in shares for border in begin_and_end]
    assert borders[0] == 0
    assert borders[-1] == count
    assert borders[1:-1:2] == borders[2::2]
    sizes = {end - begin for begin, end in shares}
    assert sizes <= {count // num_cores, -(-count // num_cores)}


@pytest.mark.parametrize("num_cores", [1, 2, 3, 16, 95])
@pytest.mark.parametrize("count", [0, 1, 3, 16, 24])
@pytest.mark.parametrize("turns", [1, 2, 8, 61])
def test_rows_that_are_dealt_together_give_every_core_as_much(
    num_cores: int, count: int, turns: int
) -> None:
    rows = [
        [share(core, num_cores, count, turn, turns) for core in range(num_cores)]
        for turn in range(turns)
    ]
    for shares in rows:
        borders = [border for begin_and_end in shares for border in begin_and_end]
        assert (borders[0], borders[-1]) == (0, count)
        assert borders[1:-1:2] == borders[2::2]
    sizes = [[end - begin for begin, end in shares] for shares in rows]
    totals = {sum(of_core) for of_core in zip(*sizes, strict=True)}
    assert totals <= {count * turns // num_cores, -(-count * turns // num_cores)}
    assert all(max(of_core) - min(of_core) <= 1 for of_core in zip(*sizes, strict=True))


@pytest.mark.parametrize("count", [8, 17, 2004])
def test_plans_with_as_many_cores_on_each_node_agree_on_the_borders_of_nodes(count: int) -> None:
    borders = [
        [share(node * per_node, 4 * per_node, count)[0] for node in range(4)]
        for per_node in (1, 2, 24)
    ]
    assert borders[0] == borders[1] == borders[2]
