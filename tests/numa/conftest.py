"""A guest with four NUMA nodes in QEMU: Debian's kernel, and an initramfs with Python and the
project.

The guest's files keep the paths they have here, so the interpreter finds its library, the linker
its shared objects and Python the project. QEMU emulates the processor: nothing here is about speed.
"""

import json
import os
import platform
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "numa"
QEMU = "qemu-system-x86_64"
REPORT = "REPORT "  # comes before the line in which the guest prints what it found
LIBRARIES = ("numpy", "numpy.libs", "psutil", "numa")
HOUSE = ("platforms", "codegen", "schedules", "sandwich", "tests/numa")
NOT_NEEDED = {"test", "tests", "site-packages", "idlelib", "tkinter", "ensurepip", "lib2to3"}

# Two sockets of two nodes of two LLC groups (dies) of two cores of two threads. Only as an Intel
# does the emulated processor tell the kernel of dies and threads.
NUM_NODES, CPUS_PER_NODE, NODE_MIB = 4, 8, 640
TOPOLOGY = "32,sockets=2,dies=4,cores=2,threads=2"
PROCESSOR = "max,vendor=GenuineIntel"
# A busy host may halt the guest's CPUs for seconds, of which the kernel need not complain.
KERNEL_OPTIONS = "console=ttyS0 quiet panic=-1 rcupdate.rcu_cpu_stall_suppress=1"


@pytest.fixture(scope="session")
def guest() -> dict[str, Any]:
    """The report of guest.py."""
    if platform.machine() != "x86_64" or not shutil.which(QEMU):
        pytest.skip(f"needs an x86-64 machine with {QEMU} (Debian: qemu-system-x86)")
    if not _libnuma():
        pytest.skip("needs libnuma (Debian: libnuma1)")
    try:
        kernel()
    except GuestError as error:
        pytest.skip(str(error))
    report = run_guest(timeout_seconds=540)
    assert "error" not in report, report["error"]
    return report


# Whatever happens, the guest reports and powers off.
INIT = """#!{python}
import ctypes, json, runpy, sys, traceback
sys.path[:0] = {path}
try:
    runpy.run_path({path}[0] + "/tests/numa/guest.py", run_name="__main__")
except BaseException:
    print("REPORT " + json.dumps({{"error": traceback.format_exc()}}), flush=True)
finally:
    ctypes.CDLL(None).reboot({reboot})
"""


class GuestError(RuntimeError):
    """The guest cannot be made here, or did not report."""


def kernel() -> Path:
    """Debian's kernel, fetched with apt at first; another with CONFIG_NUMA may stand in its place.

    Raises GuestError where there is neither.
    """
    image = CACHE / "vmlinuz"
    if image.exists():
        return image
    CACHE.mkdir(parents=True, exist_ok=True)
    try:
        depends = _output("apt-cache", "depends", "linux-image-amd64")
        (package,) = (
            w for w in depends.split() if w.startswith("linux-image-") and "amd64" in w[20:]
        )
        subprocess.run(["apt-get", "download", package], cwd=CACHE, check=True, capture_output=True)
        (archive,) = CACHE.glob("linux-image-*.deb")
        subprocess.run(["dpkg-deb", "-x", archive, CACHE / "package"], check=True)
        (found,) = (CACHE / "package" / "boot").glob("vmlinuz-*")
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise GuestError(f"no kernel for the guest ({error!r}); put one in {image}") from error
    found.rename(image)
    shutil.rmtree(CACHE / "package")
    archive.unlink()
    return image


def initramfs() -> bytes:
    """A cpio archive with the interpreter, its libraries and the project; /init is guest.py."""
    python = Path(sys.executable).resolve()
    packages = Path(find_spec("numpy").origin).parents[1]  # type: ignore[union-attr, arg-type]
    folders = [Path(os.__file__).parent, *(packages / name for name in LIBRARIES)]
    folders += [ROOT / name for name in HOUSE]
    files = {file for folder in folders for file in _files_below(folder)}
    objects = [python, *(file for file in files if ".so" in file.suffixes), *_libnuma()]
    files |= {python, *objects, *_shared_objects(objects)}
    files |= {Path("/sbin/ldconfig"), Path("/etc/ld.so.cache")}  # with which ctypes finds libnuma
    init = INIT.format(python=python, path=[str(ROOT), str(packages)], reboot=0x4321FEDC)
    archive = _Archive()
    for folder in ("dev", "proc", "sys", "tmp"):
        archive.add_folder(Path("/") / folder)
    for file in sorted(files):
        archive.add_file(file, file.read_bytes(), file.stat())
    archive.add_file(Path("/init"), init.encode(), python.stat())
    return archive.finished()


def run_guest(timeout_seconds: float) -> dict[str, Any]:
    """Boots the guest and returns its report, which is kept in build/numa/report.json.

    Raises GuestError with the console's last lines.
    """
    archive = CACHE / "initramfs.cpio"
    image = kernel()
    archive.write_bytes(initramfs())
    command = [QEMU, "-accel", "tcg", "-machine", "q35", "-cpu", PROCESSOR, "-smp", TOPOLOGY]
    command += ["-m", f"{NUM_NODES * NODE_MIB}M", "-kernel", str(image), "-initrd", str(archive)]
    command += [
        "-append",
        "console=ttyS0 quiet panic=-1 rcupdate.rcu_cpu_stall_suppress=1",
        "-nographic",
        "-no-reboot",
    ]
    command += ["-nic", "none"]
    for node in range(NUM_NODES):
        first = node * CPUS_PER_NODE
        command += ["-object", f"memory-backend-ram,id=memory{node},size={NODE_MIB}M"]
        cpus = f"{first}-{first + CPUS_PER_NODE - 1}"
        command += ["-numa", f"node,nodeid={node},memdev=memory{node},cpus={cpus}"]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=timeout_seconds, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        console = (error.stdout or b"").decode(errors="replace")
        raise GuestError(f"no report in {timeout_seconds:g} s:\n{console[-4000:]}") from error
    finally:
        archive.unlink()
    console = done.stdout.decode(errors="replace")
    _, found, text = console.partition(REPORT)
    if found:
        report: dict[str, Any] = json.loads(text.splitlines()[0])
        (CACHE / "report.json").write_text(json.dumps(report, indent=1))
        return report
    raise GuestError(f"the guest ended without a report:\n{console[-4000:]}\n{done.stderr!r}")


class _Archive:
    """A cpio archive in the "newc" format, which the kernel unpacks as its first root."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._folders: set[Path] = {Path("/")}

    def add_folder(self, folder: Path) -> None:
        if folder not in self._folders:
            self.add_folder(folder.parent)
            self._folders.add(folder)
            self._add(str(folder), b"", stat.S_IFDIR | 0o755, 0)

    def add_file(self, path: Path, data: bytes, like: os.stat_result) -> None:
        self.add_folder(path.parent)
        self._add(str(path), data, stat.S_IFREG | 0o755, int(like.st_mtime))

    def _add(self, path: str, data: bytes, mode: int, mtime: int) -> None:
        name = path.lstrip("/").encode() + b"\0"
        number = len(self._parts) + 1
        fields = (number, mode, 0, 0, 1, mtime, len(data), 0, 0, 0, 0, len(name), 0)
        head = b"070701" + b"".join(b"%08x" % field for field in fields) + name
        self._parts += [head, bytes(-len(head) % 4), data, bytes(-len(data) % 4)]

    def finished(self) -> bytes:
        self._add("TRAILER!!!", b"", 0, 0)
        return b"".join(self._parts)


def _files_below(folder: Path) -> Iterator[Path]:
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            if entry.name not in NOT_NEEDED and not entry.name.startswith("config-"):
                yield from _files_below(entry)
        elif ".opt-" not in entry.name and entry.suffix not in (".a", ".pyi"):
            yield entry


def _libnuma() -> list[Path]:
    """The library that the linker's cache names; none if it is not installed."""
    words = _output("/sbin/ldconfig", "-p").split()
    return [Path(w) for w in words if w.startswith("/") and "libnuma.so.1" in w][:1]


def _shared_objects(files: Iterable[Path]) -> set[Path]:
    words = _output("ldd", *map(str, files)).split()
    return {Path(word) for word in words if word.startswith("/") and not word.endswith(":")}


def _output(*command: str) -> str:
    """What a command prints; nothing if there is no such command."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""
