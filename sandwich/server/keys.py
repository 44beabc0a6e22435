"""Who may call: API keys, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

from sandwich.config import ServerConfig
from sandwich.errors import ConfigError


class ApiKeys:
    """The keys that open the server; without any, everybody may call."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple({_digest(key) for key in keys})

    @staticmethod
    def of(config: ServerConfig) -> ApiKeys:
        """Those of --api-key, with commas between them, and the lines of --api-key-file.

        Raises ConfigError if the file cannot be read or holds no key.
        """
        given = [] if config.api_key is None else config.api_key.split(",")
        keys = [key.strip() for key in given if key.strip()]
        if config.api_key is not None and not keys:
            raise ConfigError("--api-key has no key in it; give one, or leave it out")
        if config.api_key_file is not None:
            keys += _read(Path(config.api_key_file).expanduser())
        return ApiKeys(keys)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def allow(self, given: str) -> bool:
        """Whether `given` is one of the keys. Takes the same time whichever it is, or none."""
        digest = _digest(given)
        num_equal = sum(hmac.compare_digest(digest, each) for each in self._digests)
        return num_equal > 0


def _digest(key: str) -> bytes:
    """Of one length for all. Headers may hold bytes that are no UTF-8."""
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def _read(file: Path) -> list[str]:
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--api-key-file {file}: {error}") from error
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not keys:
        raise ConfigError(f"--api-key-file {file}: holds no key; write one on each line")
    return keys
