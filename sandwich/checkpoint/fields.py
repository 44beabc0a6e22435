"""Checked reading of a model's JSON files: a refusal names file, key, value and what is taken."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sandwich.checkpoint.strangers import unreadable
from sandwich.errors import ModelError


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ModelError if there is none."""
    try:
        data = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{file}: there is no such file; give the folder of a Hugging Face checkpoint"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(file, f"cannot be read as JSON ({error})") from error
    if not isinstance(data, dict):
        raise ModelError(f"{file}: holds a {type(data).__name__}, not an object; fetch it again")
    return data


class Fields:
    """The keys of one JSON object; `null` counts as absent, as transformers writes it."""

    def __init__(self, data: Mapping[str, Any], file: Path, prefix: str = "") -> None:
        self._data = data
        self.file = file
        self._prefix = prefix

    def error(self, key: str, supported: str) -> ModelError:
        """The error that the value of `key` is not what is supported."""
        value = repr(self._data.get(key))
        shown = value if len(value) <= 200 else value[:200] + "..."
        return ModelError(f"{self.file}: {self._prefix}{key} is {shown}; {supported}")

    def get(self, key: str) -> Any:
        return self._data.get(key)

    def has(self, key: str) -> bool:
        return self._data.get(key) is not None

    def integer(
        self, key: str, default: int | None = None, minimum: int = 1, maximum: int | None = None
    ) -> int:
        value = self._data.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise self.error(key, f"a whole number of at least {minimum} is needed")
        if maximum is not None and value > maximum:
            raise self.error(key, f"at most {maximum} is supported; is the file damaged?")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number above zero."""
        value = self._data.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf:
            return float(value)
        raise self.error(key, "a number above 0 is needed")

    def flag(self, key: str, default: bool = False) -> bool:
        value = self._data.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(key, "true or false is needed")
        return value

    def choice(self, key: str, supported: Iterable[str], default: str) -> str:
        value = self._data.get(key)
        if value is None:
            return default
        if value not in (choices := tuple(supported)):
            raise self.error(key, f"supported: {', '.join(choices)}")
        return str(value)

    def token_ids(self, key: str) -> tuple[int, ...]:
        """One id, a list of ids, or nothing."""
        value = self._data.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
            raise self.error(key, "a token id or a list of token ids is needed")
        return tuple(ids)

    def object(self, key: str) -> Fields:
        """The object of that key; one without keys if it is absent."""
        value = self._data.get(key)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise self.error(key, "an object is needed")
        return Fields(value, self.file, f"{self._prefix}{key}.")

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)
