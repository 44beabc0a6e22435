"""`sandwich plan --draw`: every core is in the picture with its uses; files are what they say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from platforms.machines import load_machine
from schedules.canvas import Box, Canvas, Label, PictureError
from schedules.plan_picture import MAX_WIDTH, Use, plan_picture
from schedules.topotree import TopoTree

Run = Callable[..., Any]
SVG = "{http://www.w3.org/2000/svg}"
USES = (
    Use("prefill", frozenset(range(128)), "#0000ff", "all", 0),
    Use("decode", frozenset(range(0, 128, 4)), "#ff8800", "1 core per LLC group", 1),
)


@pytest.mark.parametrize(
    ("name", "num_cores"), [("epyc-guest", 2), ("kubernetes-pod", 5), ("epyc-7h12-2s", 128)]
)
def test_every_core_has_a_stripe_for_each_use(name: str, num_cores: int) -> None:
    canvas = plan_picture("a <model> & more", TopoTree.of(load_machine(name)), USES, ["a note"])
    root = ET.fromstring(canvas.svg())
    titles = Counter(title.text for title in root.iter(f"{SVG}title"))
    assert len(titles) == num_cores
    assert set(titles.values()) == {len(USES)}
    assert sum("decode" in str(title) for title in titles) == len(
        [cpu for cpu in load_machine(name).usable_cpus() if cpu in USES[1].cpus]
    )
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {"a <model> & more", "a note", "prefill", "decode", "not used"} <= set(texts)


def test_uses_of_one_row_share_a_stripe_and_full_rows_leave_nothing_unused() -> None:
    half = {n: frozenset(range(n, 4, 2)) for n in (0, 1)}
    uses = [Use(f"part {n}", cpus, f"#{n}{n}{n}", "", 0) for n, cpus in half.items()]
    tree = TopoTree.of(load_machine("core-i7-1260p"), range(4))
    canvas = plan_picture("", tree, uses, [])
    fills = Counter(box.fill for box in canvas.shapes if isinstance(box, Box) and box.title)
    assert fills == {"#000": 2, "#111": 2}
    assert not [s for s in canvas.shapes if isinstance(s, Label) and s.text == "not used"]


@pytest.mark.parametrize("name", ["epyc-guest", "epyc-7h12-2s", "graviton3", "xeon-gold-6151-2s"])
def test_boxes_stay_inside_and_cores_do_not_overlap(name: str) -> None:
    canvas = plan_picture("a title", TopoTree.of(load_machine(name)), USES, [])
    boxes = [shape for shape in canvas.shapes if isinstance(shape, Box)]
    assert canvas.width < MAX_WIDTH + 150
    assert all(box.x + box.width <= canvas.width for box in boxes)
    assert all(box.y + box.height <= canvas.height for box in boxes)
    corners = [(box.x, box.y) for box in boxes if box.title]
    assert len(set(corners)) == len(corners)


def test_the_command_draws_what_it_has_chosen(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "plan.svg"
    run("plan", "llama-3.2-1b", "--simulate", "epyc-9655", "--draw", str(file))
    text = file.read_text()
    assert text.count("<title>CPU ") == 3 * 96  # prefill, decode, and both side by side
    assert "prefill of 512 tokens" in text
    assert "estimated from published figures" in text


def test_cores_that_are_left_out_are_drawn_too(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "plan.svg"
    run("plan", "llama-3.2-1b", "--simulate", "core-i7-1260p", "--draw", str(file))
    text = file.read_text()
    assert "12 cores (4 to be used)" in text
    assert text.count(": not used</title>") == 2 * 8


@pytest.mark.parametrize("name", ["picture.png", "picture"])
def test_other_formats_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(PictureError, match=r"\.svg"):
        Canvas(1, 1, []).write(tmp_path / name)


def test_a_place_where_nothing_can_be_written_is_a_mistake(run: Run, tmp_path: Path) -> None:
    _, err = run("plan", "tiny", "--draw", str(tmp_path / "none" / "plan.svg"), code=2)
    assert err.startswith("error: --draw ")
