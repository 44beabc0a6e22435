"""Say plainly what this machine lacks before anything is installed; runs on any Python 3."""

import platform
import sys


def main() -> int:
    """Print every problem; the number of problems decides the exit status."""
    problems = []
    if sys.version_info < (3, 11):
        problems.append(
            f"Python {platform.python_version()} is too old, 3.11 or newer is needed: "
            "install it and name it, as in `make serve PYTHON=python3.11`"
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError as error:
        problems.append(f"Python module {error.name} is missing: `apt install python3-venv`")
    if sys.platform != "linux":
        problems.append(f"Linux is needed (NUMA, huge pages, cgroups), this is {sys.platform}")
    for problem in problems:
        print(f"sandwich: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
