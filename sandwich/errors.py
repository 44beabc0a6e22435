"""Every error Sandwich raises on purpose: a user's mistake or a machine's limit; bugs assert.

A message names the value, the limit and the remedy.
"""

from __future__ import annotations


class SandwichError(Exception):
    """Base of all errors a caller may want to catch; `message` is fit to be shown to a user."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ConfigError(SandwichError):
    """An option, an environment variable or a configuration file that cannot be used as it is."""


class InvalidRequestError(SandwichError):
    """The request is wrong (400): `param` names the field, `code` is the reason for machines."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ContextLengthError(InvalidRequestError):
    """Prompt and one new token can never fit in the model's length or the KV cache (400)."""

    def __init__(self, message: str, param: str | None = "prompt") -> None:
        super().__init__(message, param=param, code="context_length_exceeded")


class QueueFullError(SandwichError):
    """The bounded queue is full (429); worth another try after `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UnavailableError(SandwichError):
    """The engine is loading, draining or dead and takes no new work (503)."""


class UnsoundExecutorError(SandwichError):
    """After a failed step the executor does not compute what it did at the start; it must go."""


class ModelError(SandwichError):
    """A checkpoint is unreadable or unsupported; the message names file, key and remedy."""


class MemoryLimitError(SandwichError):
    """Something does not fit in memory; raised before it is loaded. Sizes in bytes."""

    def __init__(self, needed: int, limit: int, remedy: str, what: str = "the memory plan") -> None:
        super().__init__(
            f"{what} needs {_mebibytes(needed)} but the limit is {_mebibytes(limit)}; {remedy}"
        )
        self.needed = needed
        self.limit = limit
        self.remedy = remedy


def _mebibytes(nbytes: int) -> str:
    return f"{nbytes / 2**20:.1f} MiB ({nbytes} bytes)"
