"""Files of many requests, in the format of OpenAI's Batch API, and how one is taken up again.

A line of the input is {"custom_id", "method", "url", "body"}, one of the output {"id", "custom_id",
"response": {"status_code", "request_id", "body"}, "error"}. The output is also the book of what is
done: a line is written in one go, and one that was cut off by a crash is taken away again. So each
request has exactly one line in the end, whenever the process was killed.

Source: https://platform.openai.com/docs/guides/batch
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from sandwich.errors import ConfigError

_CHUNK_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class BatchRequest:
    """One line of the input."""

    custom_id: str
    url: str
    body: dict[str, Any]


def read_requests(file: Path, urls: Collection[str]) -> Iterator[BatchRequest]:
    """The requests of a file, each checked as it comes.

    Raises ConfigError, with the number of the line, for what is no request to one of `urls`.
    """
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _request(line, f"{file}, line {number}", urls)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror or error}") from error


def _request(line: bytes, where: str, urls: Collection[str]) -> BatchRequest:
    try:
        value = msgspec.json.decode(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: must be an object with custom_id, method, url and body")
    custom_id: Any = value.get("custom_id")
    url: Any = value.get("url")
    body: Any = value.get("body")
    if not isinstance(custom_id, str) or not custom_id:
        raise ConfigError(f"{where}: custom_id must be a text that no other line has")
    if value.get("method", "POST") != "POST":
        raise ConfigError(f"{where}: method is {str(value['method'])[:50]!r} but must be POST")
    if url not in urls:
        raise ConfigError(f"{where}: url is {str(url)[:50]!r} but must be one of {', '.join(urls)}")
    if not isinstance(body, dict):
        raise ConfigError(f"{where}: body must be an object")
    if body.get("stream"):
        raise ConfigError(f"{where}: stream has no meaning in a batch; leave it out")
    return BatchRequest(custom_id, url, body)


def check_requests(file: Path, urls: Collection[str]) -> frozenset[str]:
    """The ids of all requests. Raises ConfigError as `read_requests`, and if an id stands twice."""
    seen: set[str] = set()
    for request in read_requests(file, urls):
        if request.custom_id in seen:
            raise ConfigError(
                f"{file}: custom_id {request.custom_id[:100]!r} stands twice; give each its own"
            )
        seen.add(request.custom_id)
    return frozenset(seen)


class BatchOutput:
    """The output file, open for one process alone. A context manager.

    `done` are the ids of the requests that have their line.
    """

    def __init__(self, file: Path, known: Collection[str]) -> None:
        """`known`: the ids of the input. Raises ConfigError if the file belongs to another input,
        another process, or cannot be written.
        """
        self._path = file
        try:
            self._file = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise ConfigError(f"{file}: {error.strerror}") from error
        try:
            self.done = self._take_up(known)
        except BaseException:
            os.close(self._file)
            raise

    def write(self, entry: msgspec.Struct) -> None:
        """Add a line. Raises ConfigError if the disk is full; the line is then as good as none."""
        line = msgspec.json.encode(entry) + b"\n"
        try:
            while line:
                line = line[os.write(self._file, line) :]
        except OSError as error:
            raise ConfigError(
                f"{self._path}: {error.strerror}; make room and start again, what is done is kept"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.fsync(self._file)
        os.close(self._file)

    def _take_up(self, known: Collection[str]) -> frozenset[str]:
        """Cut off a line that was not finished, and read whose lines are there."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{self._path}: another process writes to it") from None
        self._cut()
        done: set[str] = set()
        with self._path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                done.add(self._id_of(line, number, known))
        return frozenset(done)

    def _cut(self) -> None:
        """Take away what stands behind the last end of a line."""
        size = end = os.fstat(self._file).st_size
        while end:
            start = max(end - _CHUNK_BYTES, 0)
            place = os.pread(self._file, end - start, start).rfind(b"\n")
            if place >= 0:
                end = start + place + 1
                break
            end = start
        if end < size:
            os.ftruncate(self._file, end)

    def _id_of(self, line: bytes, number: int, known: Collection[str]) -> str:
        try:
            custom_id = msgspec.json.decode(line)["custom_id"]
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(
                f"{self._path}, line {number}: is no answer of a batch; choose another output"
            ) from error
        if custom_id not in known:
            raise ConfigError(
                f"{self._path}, line {number}: answers {str(custom_id)[:100]!r}, which is not in "
                "the input; choose another output"
            )
        return str(custom_id)
