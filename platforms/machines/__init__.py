"""Recorded machines, one JSON file each as `sandwich probe --json` prints it, and how to read one.

Most are written by `python -m platforms.machines.make`; a record of a live machine is added by
putting its file here.
"""

from pathlib import Path

from platforms.machine import Machine
from platforms.record import RecordError

_FOLDER = Path(__file__).parent


def recorded_machines() -> tuple[str, ...]:
    """The names that `load_machine` knows, sorted."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.json")))


def machine_file(name: str) -> Path:
    """The file of a recorded machine, whether it exists or not."""
    return _FOLDER / f"{name}.json"


def load_machine(name_or_path: str) -> Machine:
    """A recorded machine by name, or the one in a file that `sandwich probe --json` wrote.

    Raises RecordError: there is neither such a name nor such a file, or it holds no machine.
    """
    names = recorded_machines()
    path = machine_file(name_or_path) if name_or_path in names else Path(name_or_path)
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(
            f"machine {name_or_path!r} is neither a recorded one nor a readable file; give a file "
            f"that `sandwich probe --json` wrote, or one of {', '.join(names)}"
        ) from error
    try:
        return Machine.from_json(text)
    except RecordError as error:
        raise RecordError(
            f"{path}: {error}; give a file that `sandwich probe --json` wrote"
        ) from error
