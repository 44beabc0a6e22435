"""Reads pieces of large files into the caller's memory, and leaves nothing of them in the cache."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from platforms.memory import drop_file_pages
from sandwich.errors import ModelError

# What the kernel read ahead for another thread must not be dropped, or it is read twice.
KEPT_NBYTES: Final = 32 << 20


class OpenFiles:
    """Open files by path. `read` may be called from several threads at once."""

    def __init__(self) -> None:
        self._fds: dict[Path, int] = {}

    def open(self, files: Iterable[Path]) -> None:
        """Open each file once. Raises ModelError, with none open, if one cannot be."""
        for file in dict.fromkeys(files):
            try:
                self._fds[file] = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                self.close()
                raise ModelError(f"{file}: cannot be opened ({error.strerror})") from error

    def close(self) -> None:
        """Close all and drop their pages."""
        while self._fds:
            file, fd = self._fds.popitem()
            os.close(fd)
            with suppress(OSError):  # the file may be gone, and its pages with it
                drop_file_pages(file)

    def read(self, file: Path, offset: int, buffer: npt.NDArray[np.uint8]) -> None:
        """Fill `buffer` from byte `offset` on.

        Pages well before it leave the page cache: read in the order of the file, they are done
        with. Raises ModelError if the file ends too early.
        """
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._fds[file], [buffer[done:].data], offset + done)
            except OSError as error:
                raise ModelError(f"{file}: cannot be read ({error.strerror})") from error
            if count == 0:
                raise ModelError(f"{file}: ends at byte {offset + done}; fetch it again")
            done += count
        if offset > KEPT_NBYTES:
            drop_file_pages(file, 0, offset - KEPT_NBYTES)


class ReadsFiles:
    """A checkpoint whose `files` are open while its context is."""

    files: Collection[Path]

    def __init__(self) -> None:
        self._files = OpenFiles()

    def __enter__(self) -> Self:
        self._files.open(self.files)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the context."""
        self._files.close()
