"""pyproject.toml, the requirement files and the tree say the same thing."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from sandwich.startup.packaged import PACKAGED

LAYERS = ("platforms", "codegen", "schedules", "sandwich", "bench")


def pins(lines: list[str]) -> dict[str, str]:
    """Normalised name -> version of `name==version` lines; anything else is an error."""
    matches = [re.fullmatch(r"([A-Za-z0-9._-]+)==([^\s;]+)", line) for line in lines]
    assert None not in matches, f"not an exact pin: {lines[matches.index(None)]}"
    return {re.sub(r"[-_.]+", "-", m[1]).lower(): m[2] for m in matches if m}


def requirements(checkout: Path, name: str) -> dict[str, str]:
    text = (checkout / "requirements" / f"{name}.txt").read_text()
    return pins([line for line in text.splitlines() if not line.startswith("#")])


@pytest.fixture(scope="module")
def pyproject(checkout: Path) -> dict[str, Any]:
    return tomllib.loads((checkout / "pyproject.toml").read_text())


def test_every_package_on_disk_is_listed_and_the_other_way_round(
    checkout: Path, pyproject: dict[str, Any]
) -> None:
    folders = {p.parent for layer in LAYERS for p in (checkout / layer).rglob("*.py")}
    found = {".".join(f.relative_to(checkout).parts) for f in folders}
    assert found == set(pyproject["tool"]["setuptools"]["packages"])
    assert [f for f in folders if not (f / "__init__.py").exists()] == []


@pytest.mark.parametrize("name", ["runtime", "traces", "test", "dev", "plot", "eval"])
def test_the_requirement_files_hold_the_pins_of_pyproject(
    checkout: Path, pyproject: dict[str, Any], name: str
) -> None:
    project = pyproject["project"]
    runtime = project["dependencies"]
    wanted = runtime if name == "runtime" else project["optional-dependencies"][name]
    locked = requirements(checkout, name)
    assert pins(wanted).items() <= locked.items(), "run `make lock`"


def test_the_models_that_can_be_named_are_the_ones_that_are_installed(checkout: Path) -> None:
    wanted = pins([model.requirement for model in PACKAGED.values()])
    assert requirements(checkout, "model") == wanted


def test_no_package_is_pinned_twice(checkout: Path) -> None:
    names = [
        n
        for f in ("runtime", "model", "traces", "test", "dev", "plot", "eval")
        for n in requirements(checkout, f)
    ]
    assert len(names) == len(set(names))


def test_the_preflight_names_what_is_missing_and_how_to_get_it(
    checkout: Path, tmp_path: Path
) -> None:
    (tmp_path / "ensurepip.py").write_text("raise ImportError('gone', name='ensurepip')")
    done = subprocess.run(
        [sys.executable, str(checkout / ".ci/preflight.py")],
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "ensurepip is missing" in done.stderr
    assert "apt install python3-venv" in done.stderr


def test_the_preflight_is_silent_where_nothing_is_missing(checkout: Path) -> None:
    run = [sys.executable, str(checkout / ".ci/preflight.py")]
    done = subprocess.run(run, check=True, capture_output=True, text=True)
    assert done.stdout + done.stderr == ""
