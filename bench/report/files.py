"""The result files of a machine: `DIR/<fingerprint>/<part>.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandwich.errors import ConfigError


@dataclass(frozen=True)
class Results:
    """What was measured on one machine, by part; a part's name begins with its benchmark's."""

    folder: Path
    parts: dict[str, dict[str, Any]]

    @staticmethod
    def read(folder: Path) -> Results:
        """All result files of the folder; ConfigError without any, or for one that is damaged."""
        parts = {}
        for file in sorted(folder.glob("*.json")):
            try:
                content = json.loads(file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ConfigError(f"{file} is damaged ({error}); remove it") from None
            parts[file.stem] = content
        if not parts:
            raise ConfigError(
                f"{folder} has no results; make some with `sandwich bench all --platform-report`"
            )
        return Results(folder, parts)

    def of(self, benchmark: str) -> list[dict[str, Any]]:
        """The results of one benchmark, in the order of their names."""
        names = (benchmark, f"{benchmark}-")
        return [
            content
            for name, content in self.parts.items()
            if name == names[0] or name.startswith(names[1])
        ]

    def rows(self, benchmark: str) -> list[dict[str, Any]]:
        """The rows of all results of one benchmark."""
        return [row for result in self.of(benchmark) for row in result.get("rows", ())]

    @property
    def machine(self) -> dict[str, Any]:
        """As the newest result has it."""
        newest = max(
            (part for part in self.parts.values() if "machine" in part), key=lambda p: p["time"]
        )
        machine: dict[str, Any] = newest["machine"]
        return machine

    def complaints(self) -> dict[str, list[str]]:
        """Part -> what was wrong with the machine when it was measured."""
        found = {
            name: part["conditions"]["complaints"]
            for name, part in self.parts.items()
            if "conditions" in part
        }
        return {name: words for name, words in found.items() if words}
