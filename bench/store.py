"""A result file that grows row by row, and is gone on with after an interruption."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.record import write_json
from sandwich.errors import ConfigError


@dataclass
class Store:
    """Rows under a header. path: None keeps them in memory; keys: the fields that name a row.

    A whole file takes the place of the one before, so whoever interrupts loses a row at most.
    """

    path: Path | None
    header: dict[str, Any]
    keys: tuple[str, ...]
    rows: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def open(
        cls, path: str | Path | None, header: dict[str, Any], keys: tuple[str, ...], resume: bool
    ) -> Store:
        """A new file, or what is there already; ConfigError for one that is of another kind."""
        if path is None or not resume or not Path(path).exists():
            return cls(None if path is None else Path(path), header, keys)
        try:
            before = json.loads(Path(path).read_text(encoding="utf-8"))
            same = before["benchmark"] == header["benchmark"]
            fingerprint, rows = before["machine"]["fingerprint"], before["rows"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"--resume: {path} is no result ({error!r}); name another") from None
        if not same or fingerprint != header["machine"]["fingerprint"]:
            raise ConfigError(
                f"--resume: {path} is of another benchmark or machine; name another file"
            )
        return cls(Path(path), header, keys, rows)

    def holds(self, **key: Any) -> bool:
        """Whether there is a row with these values of all keys."""
        return any(all(row[k] == key[k] for k in self.keys) for row in self.rows)

    def add(self, row: dict[str, Any]) -> None:
        """Put a row there, in place of one with the same key, with the commit it belongs to."""
        self.drop(**{key: row[key] for key in self.keys})
        self.rows.append({**row, "commit": self.header["commit"]})
        self.write()

    def drop(self, **key: Any) -> None:
        """Forget the row with these values of all keys, if there is one."""
        self.rows = [row for row in self.rows if any(row[k] != key[k] for k in self.keys)]

    def result(self) -> dict[str, Any]:
        """Everything so far."""
        return {**self.header, "rows": self.rows}

    def write(self) -> None:
        """Write the file, if there is one; OSError if that cannot be."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f"{self.path.name}.part")
        write_json(str(part), self.result())
        part.replace(self.path)
