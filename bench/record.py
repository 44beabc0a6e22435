"""What a result must carry to be believed: commit, machine, versions."""

from __future__ import annotations

import json
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from platforms.machine import Machine
from sandwich import __version__

CHECKOUT = Path(__file__).resolve().parent.parent


def provenance(machine: Machine) -> dict[str, Any]:
    """When, from which source and on what machine a result came to be."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "sandwich": __version__,
        "commit": commit(CHECKOUT),
        "python": platform.python_version(),
        "tvm": version("apache-tvm"),
        "machine": {
            "fingerprint": machine.fingerprint,
            "cpu_model": machine.cpu_model,
            "arch": machine.arch,
            "isa": machine.isa,
            "cpus": list(machine.usable_cpus()),
            "huge_pages": machine.hugepages.thp_mode,
        },
    }


def commit(folder: Path) -> str | None:
    """The commit of the checkout, with "-dirty" if tracked files differ; None outside of one."""
    git = [
        "git",
        "-C",
        str(folder),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
        "--exclude=*",
    ]
    try:
        return subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def write_json(path: str, result: dict[str, Any]) -> None:
    """Write a result; OSError if the file cannot be written."""
    Path(path).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
