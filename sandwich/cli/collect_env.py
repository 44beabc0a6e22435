"""`sandwich collect-env`: versions, machine, limits and settings, for a bug report."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import sandwich
from sandwich.config import ENVIRONMENT

_PACKAGES = (
    "apache-tvm",
    "apache-tvm-ffi",
    "numpy",
    "tokenizers",
    "safetensors",
    "Jinja2",
    "huggingface_hub",
    "aiohttp",
    "msgspec",
    "prometheus_client",
    "psutil",
    "py-libnuma",
    "torch",
    "transformers",
)
_OTHER_VARIABLES = (
    "OMP_NUM_THREADS",
    "TVM_NUM_THREADS",
    "TOKENIZERS_PARALLELISM",
    "HF_HUB_OFFLINE",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def main(args: argparse.Namespace) -> None:
    from platforms.probe import probe
    from platforms.render import render

    machine = probe()
    report = _software()
    if args.json:
        print(json.dumps(report | {"machine": json.loads(machine.to_json())}, indent=2))
        return
    for title, value in report.items():
        if isinstance(value, dict):
            print(f"\n{title}")
            for name, entry in value.items():
                print(f"  {name:18} {entry}")
        else:
            print(f"{title:20} {value if value is not None else 'unknown'}")
    print(f"\nmachine\n{render(machine)}")


def _software() -> dict[str, Any]:
    home = Path(sandwich.__file__).resolve().parent.parent
    names = [variable.name for variable in ENVIRONMENT] + list(_OTHER_VARIABLES)
    secret = {variable.name for variable in ENVIRONMENT if variable.is_secret}
    return {
        "sandwich": sandwich.__version__,
        "commit": _git_commit(home),
        "folder": str(home),
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "environment": {
            name: "(set)" if name in secret else os.environ[name]
            for name in names
            if name in os.environ
        },
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit(home: Path) -> str | None:
    """The commit of a checkout, with "+" for changed files; None for an installed package."""
    if not (home / ".git").exists():
        return None
    try:
        commit = _git(home, "rev-parse", "HEAD")
        return commit + ("+" if _git(home, "status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(home: Path, *command: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(home), *command], capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()
