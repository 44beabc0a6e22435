"""The disk cache of packed weights: the next start of a model reads what this one has packed.

A file is the packed tensors as an arena holds them, in front of them a header that says of what
they were made. Its name is a digest of everything that shapes them (`sandwich.weights.key`). It is
written under another name and put in its place when it is whole, by one process at a time; each
piece has a checksum, and a file that is cut or damaged is packed anew. The least recently used
files go when all together would exceed a limit.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

FOLDER: Final = "weights"  # in the cache's own
_SUFFIX: Final = ".packed"
_PARTIAL: Final = ".partial"
_MAGIC: Final = b"SWPACKED"
_HEADER_NBYTES: Final = 1 << 20  # room for it; a multiple of the size of a page
_PIECE_NBYTES: Final = 4 << 20  # that one thread reads and checks while it is in its caches
_NUM_THREADS: Final = 2
_SPARE_NBYTES: Final = 1 << 30  # of the disk, that stay free

Bytes = npt.NDArray[np.uint8]
Done = Callable[[int], None]  # told how many bytes were read or written

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """A file of the cache."""

    path: Path
    key: str
    model: str
    weights: str  # format, for people
    nbytes: int
    used_at: float  # seconds since 1970

    def remove(self) -> None:
        """Who reads it keeps what he has open. Raises OSError."""
        self.path.unlink(missing_ok=True)


class _DamagedError(Exception):
    """A file that is not what was written."""


class WeightCache:
    """Packed weights by key; any number of processes may share the folder.

    limit_nbytes: of all files together; 0 keeps none, and finds none. What the disk refuses costs a
    warning and the packing of the next start, nothing more.
    """

    def __init__(self, cache_dir: Path, limit_nbytes: int) -> None:
        self.folder = cache_dir / FOLDER
        self.limit_nbytes = limit_nbytes

    def entries(self) -> list[Entry]:
        """All files that are whole, the one that was used last first."""
        found = []
        for path in self.folder.glob(f"*{_SUFFIX}"):
            with suppress(OSError, _DamagedError):
                status = path.stat()
                with path.open("rb", buffering=0) as file:
                    said = _read_header(file.fileno())
                found.append(
                    Entry(
                        *(path, path.name.removesuffix(_SUFFIX), said["model"], said["weights"]),
                        *(status.st_size, status.st_mtime),
                    )
                )
        return sorted(found, key=lambda entry: -entry.used_at)

    def read(self, key: str, into: Bytes, done: Done) -> bool:
        """Fill `into`, zeros until then; False, with zeros in it, if there is no such file or it is
        damaged, which is said.
        """
        path = self._path(key)
        if not self.limit_nbytes:
            return False
        try:
            with path.open("rb", buffering=0) as file:
                said = _read_header(file.fileno())
                if said["nbytes"] != len(into) or said["key"] != key:
                    raise _DamagedError("is of other weights")
                _each_piece(len(into), _reader(file.fileno(), said["checks"], into), done)
                os.utime(file.fileno())
        except FileNotFoundError:
            return False
        except (OSError, _DamagedError) as error:
            _log.warning("packed weights %s: %s; packing the model again", path, error)
            into[:] = 0
            return False
        return True

    def write(self, key: str, data: Bytes, model: str, weights: str) -> None:
        """Keep `data`, unless it is larger than the limit or another process is writing it."""
        nbytes = len(data) + _HEADER_NBYTES
        if nbytes > self.limit_nbytes:
            return
        said = {"key": key, "model": model, "weights": weights, "nbytes": len(data)}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._make_room(nbytes)
            partial = self.folder / f"{key}{_PARTIAL}"
            with _locked(partial) as file:
                if file is None:
                    return  # somebody else is at it, or has just finished
                try:
                    _write_file(file, data, said)
                    partial.replace(self._path(key))
                except OSError:
                    partial.unlink()
                    raise
        except OSError as error:
            _log.warning(
                "packed weights cannot be kept in %s: %s; the next start packs the model again",
                self.folder,
                error.strerror or error,
            )

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"

    def _make_room(self, nbytes: int) -> None:
        """Remove what was used least recently until so many bytes more keep to the limit. OSError
        if the disk has not enough left all the same.
        """
        self.sweep()
        entries = self.entries()
        total = sum(entry.nbytes for entry in entries)
        while entries and total + nbytes > self.limit_nbytes:
            total -= entries[-1].nbytes
            entries.pop().remove()
        if shutil.disk_usage(self.folder).free < nbytes + _SPARE_NBYTES:
            raise OSError(
                errno.ENOSPC, f"the disk has less than {_SPARE_NBYTES >> 30} GiB to spare"
            )

    def sweep(self) -> None:
        """Remove what processes have left that did not live to finish it."""
        for path in self.folder.glob(f"*{_PARTIAL}"):
            with _locked(path) as file:
                if file is not None:
                    path.unlink()


@contextmanager
def _locked(path: Path) -> Iterator[int | None]:
    """The descriptor of a file, made if need be, that no other process may lock until then; None if
    one has, or has just put it in its place.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield file if _is_at(file, path) else None
    finally:
        os.close(file)


def _is_at(file: int, path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _read_header(file: int) -> dict[str, Any]:
    """What the front of a file says. Raises _DamagedError."""
    front = os.pread(file, _HEADER_NBYTES, 0)
    length = int.from_bytes(front[8:16], "little")
    text = front[20 : 20 + length]
    check = int.from_bytes(front[16:20], "little")
    if front[:8] != _MAGIC or len(text) != length or zlib.crc32(text) != check:
        raise _DamagedError("has no sound header")
    said: dict[str, Any] = json.loads(text)
    if os.fstat(file).st_size != _HEADER_NBYTES + said["nbytes"]:
        raise _DamagedError("is cut short")
    return said


def _write_file(file: int, data: Bytes, said: dict[str, Any]) -> None:
    """Header and data, down to the disk. Raises OSError, of a full disk before it writes."""
    os.ftruncate(file, 0)
    os.posix_fallocate(file, 0, _HEADER_NBYTES + len(data))
    checks = _each_piece(len(data), _writer(file, data), lambda _: None)
    text = json.dumps(said | {"checks": checks}).encode()
    front = _MAGIC + len(text).to_bytes(8, "little") + zlib.crc32(text).to_bytes(4, "little") + text
    assert len(front) <= _HEADER_NBYTES, len(front)
    os.pwrite(file, front, 0)
    os.fsync(file)


def _writer(file: int, data: Bytes) -> Callable[[int], int]:
    """Writes a piece; gives its checksum."""

    def write(at: int) -> int:
        piece = data[at : at + _PIECE_NBYTES].data
        done = 0
        while done < len(piece):
            done += os.pwrite(file, piece[done:], _HEADER_NBYTES + at + done)
        return zlib.crc32(piece)

    return write


def _reader(file: int, checks: list[int], into: Bytes) -> Callable[[int], int]:
    """Reads a piece and compares its checksum."""

    def read(at: int) -> int:
        piece = into[at : at + _PIECE_NBYTES].data
        done = 0
        while done < len(piece):
            count = os.preadv(file, [piece[done:]], _HEADER_NBYTES + at + done)
            if not count:
                raise _DamagedError("is cut short")
            done += count
        check = zlib.crc32(piece)
        if check != checks[at // _PIECE_NBYTES]:
            raise _DamagedError(f"is damaged at byte {_HEADER_NBYTES + at} or after it")
        return check

    return read


def _each_piece(nbytes: int, work: Callable[[int], int], done: Done) -> list[int]:
    """What `work` gives for every piece, in order, by threads; `done` hears of each in order."""
    results = []
    with ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="packed-weights") as threads:
        starts = range(0, nbytes, _PIECE_NBYTES)
        try:
            for start, result in zip(starts, threads.map(work, starts), strict=True):
                results.append(result)
                done(min(_PIECE_NBYTES, nbytes - start))
        finally:
            threads.shutdown(cancel_futures=True)
    return results
