"""The disk cache of compiled programs, keyed by content.

A key covers everything that shapes the code: the ProgramSpec, the ISA row, the TVM version and the
sources of the generator. A file is a SHA-256 digest followed by the object code; one that is
damaged is rebuilt, never trusted.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from platforms.isa import IsaRow

TVM_VERSION = version("apache-tvm")  # from its metadata, as importing it takes seconds
_DIGEST_BYTES = hashlib.sha256().digest_size
_log = logging.getLogger(__name__)


def source_hash(*folders: Path) -> str:
    """A digest of every source file in some folders."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


@functools.cache
def generator_hash() -> str:
    """A digest of every source file of the generator."""
    return source_hash(Path(__file__).parent)


class ProgramCache:
    """Object code by key in the files of one folder; any number of processes may share it.

    A folder that cannot be written costs a warning and a compilation, nothing more.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def key(spec: object, isa: IsaRow) -> str:
        """The key of the program that `spec` (its repr says everything) compiles to on `isa`."""
        target = repr(isa.llvm_target())
        parts = (repr(spec), repr(isa), target, TVM_VERSION, generator_hash())
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def get(self, key: str, build: Callable[[], bytes]) -> bytes:
        """The object code under `key`, from its file or else from `build`, whose result is kept."""
        path = self.folder / f"{key}.o"
        code = self._read(path)
        if code is None:
            code = build()
            self._write(path, code)
        return code

    def sizes(self) -> list[int]:
        """Bytes of each program that is kept."""
        return [path.stat().st_size for path in self.folder.glob("*.o")]

    def clear(self) -> list[int]:
        """Remove all; their sizes. Raises OSError."""
        removed = []
        for path in self.folder.glob("*.o"):
            removed.append(path.stat().st_size)
            path.unlink()
        return removed

    def _read(self, path: Path) -> bytes | None:
        try:
            content = path.read_bytes()
        except OSError:
            return None
        digest, code = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(code).digest() == digest:
            return code
        _log.warning("compiled program %s is damaged; compiling it again", path)
        return None

    def _write(self, path: Path, code: bytes) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.folder, suffix=".partial")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(hashlib.sha256(code).digest() + code)
                Path(name).replace(path)
            except OSError:
                Path(name).unlink()
                raise
        except OSError as error:
            _log.warning("compiled programs cannot be kept in %s: %s", self.folder, error)
