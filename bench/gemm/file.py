"""The result file of the GEMM benchmark: written after every cell, and gone on with later."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.gemm.shapes import CellKey, position
from bench.gemm.summary import summary_of
from bench.record import write_json
from sandwich.errors import ConfigError


def key_of(cell: dict[str, Any]) -> CellKey:
    """What tells the cells of a result apart."""
    return cell["dtype"], cell["model"], cell["role"], cell["m"]


@dataclass
class ResultFile:
    """A result that grows. path: None keeps it in memory alone. header: all but what is measured.

    A whole file takes the place of the one before, so whoever interrupts loses a cell at most.
    """

    path: Path | None
    header: dict[str, Any]
    cells: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def open(cls, path: str | None, header: dict[str, Any], is_resumed: bool) -> ResultFile:
        """A new result or, if it is resumed, what `path` holds already.

        ConfigError for a file that is no result, or that of another machine.
        """
        if is_resumed and path is None:
            raise ConfigError("--resume goes on with the result in a file; name it with --json")
        file = None if path is None else Path(path)
        if file is None or not is_resumed or not file.exists():
            return cls(file, header)
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
            cells, machine, tuning = before["cells"], before["machine"], before["tuning"]
            cells.sort(key=lambda cell: position(key_of(cell)))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"--resume: {path} is no result of `sandwich bench gemm` ({error!r}); "
                "name another file, or leave out --resume to write it anew"
            ) from None
        differing = [
            name for name, value in header["machine"].items() if machine.get(name) != value
        ]
        if differing:
            raise ConfigError(
                f"--resume: {path} was measured elsewhere ({', '.join(differing)} differ); "
                "name another file, or leave out --resume to write it anew"
            )
        return cls(file, header | {"tuning": tuning}, cells)

    def holds(self, key: CellKey) -> bool:
        """Whether this cell has been measured."""
        return any(key_of(cell) == key for cell in self.cells)

    def add(self, cell: dict[str, Any]) -> None:
        """Keep a cell, with the commit it belongs to, and write the file."""
        self.cells.append({**cell, "commit": self.header["commit"]})
        self.cells.sort(key=lambda cell: position(key_of(cell)))
        self.write()

    def result(self) -> dict[str, Any]:
        """Everything so far."""
        return {**self.header, **summary_of(self.cells)}

    def write(self) -> None:
        """Write the file, if there is one; OSError if that cannot be."""
        if self.path is None or not self.cells:
            return
        if self.path.exists() and not self.path.is_file():  # a device or a pipe
            write_json(str(self.path), self.result())
            return
        part = self.path.with_name(f"{self.path.name}.part")
        write_json(str(part), self.result())
        part.replace(self.path)
