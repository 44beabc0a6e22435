"""Resolve pyproject.toml in a throw-away environment and write requirements/*.txt (`make lock`).

The files carry names and versions, never an index: that is the installer's configuration.
"""

import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# pip freeze leaves the build back end out; an offline-capable editable install needs it.
BUILD_BACKEND = "setuptools"
HEADER = "# Written by `make lock` from pyproject.toml; do not edit.\n"


def frozen(python: Path) -> dict[str, str]:
    """Name -> version of everything installed; a local version (`+cpu`) is the machine's affair."""
    run = [str(python), "-m", "pip", "list", "--format=freeze", "--exclude=pip"]
    lines = subprocess.run(run, check=True, capture_output=True, text=True).stdout.split()
    pairs = (line.split("==") for line in lines)
    return {name: version.split("+")[0] for name, version in pairs}


def main() -> None:
    """Install the sets one after the other; each file holds what its set added."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    sets = {
        "runtime": [*project["dependencies"], BUILD_BACKEND],
        "traces": extras["traces"],
        "test": extras["test"],
        "dev": extras["dev"],
        "plot": extras["plot"],
        "eval": extras["eval"],
    }
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin" / "python"
        known: dict[str, str] = {}
        for name, wanted in sets.items():
            constraints = Path(folder) / "constraints.txt"
            constraints.write_text("".join(f"{n}=={v}\n" for n, v in known.items()))
            install = [str(python), "-m", "pip", "install", "--quiet", "--upgrade"]
            subprocess.run([*install, "-c", str(constraints), *wanted], check=True)
            now = frozen(python)
            lines = [
                f"{n}=={v}\n"
                for n, v in sorted(now.items(), key=lambda p: p[0].lower())
                if n not in known
            ]
            (ROOT / "requirements" / f"{name}.txt").write_text(HEADER + "".join(lines))
            known = now
            print(f"requirements/{name}.txt: {len(lines)} packages", file=sys.stderr)


if __name__ == "__main__":
    main()
