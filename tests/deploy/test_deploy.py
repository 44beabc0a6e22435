"""The files for operators: a systemd unit, a container file, a Grafana dashboard."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sandwich.cli.options import read_config_file
from sandwich.config import EngineConfig, ServerConfig


@pytest.fixture
def deploy(checkout: Path) -> Path:
    return checkout / "deploy"


# ---- Grafana ----


def test_panels_do_not_lie_on_each_other(deploy: Path) -> None:
    panels = json.loads((deploy / "grafana.json").read_text())["panels"]
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in panels}) == len(panels)


# ---- systemd ----


def unit_lines(deploy: Path) -> dict[str, str]:
    lines = (deploy / "sandwich.service").read_text().splitlines()
    pairs = [line.partition("=") for line in lines if not line.startswith("#")]
    return {name: value for name, equals, value in pairs if equals}


def test_the_unit_starts_a_server_and_waits_for_its_drain(deploy: Path, tmp_path: Path) -> None:
    unit = unit_lines(deploy)
    _, verb, *flags = unit["ExecStart"].split()
    assert verb == "serve"
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"model": "m", flags[2].lstrip("-"): flags[3]}))
    assert flags[0] == "--config"
    assert read_config_file(str(file), ServerConfig, EngineConfig)["log-format"] == "json"
    assert int(unit["TimeoutStopSec"]) > ServerConfig().shutdown_timeout
    assert "MemoryDenyWriteExecute" not in unit


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is missing")
def test_systemd_finds_nothing_wrong_with_the_unit(deploy: Path, tmp_path: Path) -> None:
    text = (deploy / "sandwich.service").read_text()
    unit = tmp_path / "sandwich.service"
    unit.write_text(text.replace("/opt/sandwich/bin/sandwich", sys.executable))
    run = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
    )
    if "Failed to" in run.stderr and "sandwich.service" not in run.stderr:
        pytest.skip(f"systemd-analyze cannot run here: {run.stderr.strip()}")
    assert (run.returncode, run.stderr) == (0, "")


# ---- container ----


def test_the_container_copies_what_there_is(deploy: Path, checkout: Path) -> None:
    lines = (deploy / "Containerfile").read_text().replace("\\\n", " ").splitlines()
    copied = [source for line in lines if line.startswith("COPY") for source in line.split()[1:-1]]
    assert {"platforms", "codegen", "schedules", "sandwich", "bench"} <= set(copied)
    assert [name for name in copied if not (checkout / name).exists()] == []
    [command] = [json.loads(line[4:]) for line in lines if line.startswith("CMD")]
    assert command[0] == "serve"


def test_hadolint_finds_nothing_wrong_with_the_container_file(deploy: Path) -> None:
    beside = Path(sys.executable).parent / "hadolint"
    hadolint = str(beside) if beside.exists() else shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is missing; `make check` installs it")
    run = subprocess.run(
        [hadolint, str(deploy / "Containerfile")], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout) == (0, "")
