"""Reading the kernel's small text files below a root directory.

Every fact about a machine comes through a `Tree`: a recorded one is probed like the live one. A
file that is missing, unreadable or malformed reads as None: containers hide all sorts of them.
"""

import os
from collections.abc import Iterable
from typing import Annotated

# Sorted CPU (or node) numbers, each once; as text they are in the kernel's list format.
CpuList = Annotated[tuple[int, ...], "cpu list"]


class Tree:
    """The files below `root`; paths are given relative to it, as in "proc/cpuinfo"."""

    def __init__(self, root: str = "/") -> None:
        self.root = root.rstrip("/")

    def read_bytes(self, path: str) -> bytes | None:
        try:
            fd = os.open(f"{self.root}/{path}", os.O_RDONLY | os.O_CLOEXEC)
        except (OSError, ValueError):
            return None
        chunks = []
        try:
            # One read is not enough: procfs hands out at most a few pages at a time.
            while chunk := os.read(fd, 1 << 16):
                chunks.append(chunk)
        except OSError:
            return None
        finally:
            os.close(fd)
        return b"".join(chunks)

    def read(self, path: str) -> str | None:
        """The file's text without surrounding white space."""
        data = self.read_bytes(path)
        return None if data is None else data.decode("utf-8", "replace").strip("\0 \t\n")

    def read_int(self, path: str) -> int | None:
        text = self.read(path)
        try:
            return None if text is None else int(text)
        except ValueError:
            return None

    def read_cpu_list(self, path: str) -> CpuList | None:
        text = self.read(path)
        try:
            return None if text is None else parse_cpu_list(text)
        except ValueError:
            return None

    def read_fields(self, path: str) -> dict[str, str]:
        """A file of "key: value" lines; empty if there is none."""
        pairs = (line.partition(":") for line in (self.read(path) or "").splitlines())
        return {key.strip(): value.strip() for key, _, value in pairs}

    def list_dir(self, path: str) -> list[str]:
        """Sorted names in a directory; empty if there is none."""
        try:
            with os.scandir(f"{self.root}/{path}") as entries:
                return sorted(entry.name for entry in entries)
        except OSError:
            return []

    def numbered(self, path: str, prefix: str) -> list[int]:
        """The n of every entry `<prefix>n` of a directory, in order."""
        names = self.list_dir(path)
        tails = [name[len(prefix) :] for name in names if name.startswith(prefix)]
        return sorted(int(tail) for tail in tails if tail.isdecimal())


def parse_cpu_list(text: str) -> CpuList:
    """The kernel's list format, "0-3,8", as sorted numbers. Raises ValueError for anything else."""
    cpus: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, dash, last = part.partition("-")
        low = int(first)
        high = int(last) if dash else low
        if low < 0 or high < low:
            raise ValueError(f"CPU list {text!r}: {part!r} is not a range; write it like 0-3,8")
        cpus.update(range(low, high + 1))
    return tuple(sorted(cpus))


def format_cpu_list(cpus: Iterable[int]) -> str:
    """The inverse of `parse_cpu_list`: "0-3,8"; "" for no CPU at all."""
    runs: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)
