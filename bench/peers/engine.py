"""What every engine in a comparison can do, and processes that end with whoever started them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import psutil  # type: ignore[import-untyped]

from bench.peers.work import Work
from sandwich.errors import SandwichError

WORDS = 300  # characters of what a program said last that are kept
PATIENCE_S = 900.0


class AbsentError(SandwichError):
    """A peer cannot be had, refuses this CPU, or cannot do what it is asked; in its own words."""


@dataclass(frozen=True)
class Setup:
    """Where engines are kept, what they run, on how many cores, and where a line can be said."""

    cache_dir: Path
    folder: Path  # the checkpoint, in the Hugging Face layout
    format: str
    max_model_len: int
    max_batch: int
    num_threads: int  # usable cores
    say: Callable[[str], None]

    @property
    def peers_dir(self) -> Path:
        return self.cache_dir / "bench" / "peers"

    def gguf_path(self, kind: str, weights: str | None = None) -> Path:
        """Where a GGUF copy of the checkpoint is kept, in the format or in `weights`."""
        name = f"{self.folder.resolve().name}-{weights or self.format}.gguf"
        return self.cache_dir / "bench" / "models" / kind / name


@dataclass(frozen=True)
class Threads:
    """How many threads each phase has."""

    prefill: int
    decode: int

    def of(self, work: Work) -> int:
        return self.prefill if work.kind == "prefill" else self.decode


class Engine(ABC):
    """An engine with one model. `prepare` first, `close` in the end."""

    name: ClassVar[str]
    formats: ClassVar[tuple[str, ...]]
    has_server: ClassVar[bool] = False

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.threads = Threads(setup.num_threads, setup.num_threads)
        self.shared_model: Path | None = None  # a file of `prepare` that our engine reads too
        self.settings: dict[str, Any] = {}  # what was found to be best, for the record

    @abstractmethod
    def prepare(self) -> None:
        """Install or find it, and convert the model. AbsentError if that cannot be."""

    @abstractmethod
    def seconds(self, work: Work) -> float:
        """Do some work once; of a decode step if it is that. AbsentError if it cannot be done."""

    def command(self, port: int) -> tuple[list[str], dict[str, str]]:
        """How its server is started, and with which variables, on that port of 127.0.0.1."""
        raise AbsentError(f"{self.name} has no server")

    @abstractmethod
    def close(self) -> None:
        """End its processes."""


class Worker:
    """A program of bench/peers/workers, started when it is first asked."""

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str]) -> None:
        self.name = name
        self._command, self._env = list(command), dict(env)
        self._process: subprocess.Popen[str] | None = None
        self.ready_seconds = 0.0

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Its answer. AbsentError, with its last words, if it ends instead."""
        if self._process is None:
            self._start()
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # its end is noticed while reading
        answer = self._answer()
        if "error" in answer:
            raise AbsentError(f"{self.name}: {answer['error']}")
        return answer

    def rss_bytes(self) -> int:
        """Memory of its processes, shared pages counted once."""
        return 0 if self._process is None else pss_bytes(self._process.pid)

    def close(self) -> None:
        """End it."""
        if self._process is not None:
            end(self._process)
            self._process = None

    def _start(self) -> None:
        started = time.monotonic()
        self._process = spawn(
            self._command, self._env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._answer()
        self.ready_seconds = time.monotonic() - started

    def _answer(self) -> dict[str, Any]:
        """The next line that is an object; others are the library's chatter."""
        assert self._process is not None
        assert self._process.stdout is not None
        last = ""
        for line in self._process.stdout:
            if line.startswith("{"):
                try:
                    answer = json.loads(line)
                except ValueError:
                    continue
                if isinstance(answer, dict):
                    return answer
            last = line.strip() or last
        code = self._process.wait()
        self._process = None
        raise AbsentError(f"{self.name} ended with code {code}: {last[-WORDS:]}")


def spawn(command: Sequence[str], env: Mapping[str, str], **pipes: Any) -> subprocess.Popen[str]:
    """Start a program in a group of its own; what it says on standard error goes to its output."""
    try:
        return subprocess.Popen(
            command,
            env={**os.environ, **env},
            text=True,
            errors="replace",
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **pipes,
        )
    except OSError as error:
        raise AbsentError(f"{command[0]}: {error}") from error


def end(process: subprocess.Popen[str]) -> None:
    """Ask its group to end, and make it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=10)
            return
        except ProcessLookupError:
            process.wait()
            return
        except subprocess.TimeoutExpired:
            continue


def run(command: Sequence[str], env: Mapping[str, str] | None = None) -> str:
    """Run a program; its standard output. AbsentError with its last words if it fails."""
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AbsentError(f"{Path(command[0]).name}: {error}") from error
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip())[-WORDS:]
        raise AbsentError(f"{Path(command[0]).name} ended with code {done.returncode}: {said}")
    return done.stdout


def pss_bytes(pid: int) -> int:
    """Memory of a process and its children: private pages, and the shared ones in parts."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
        return sum(member.memory_full_info().pss for member in family)
    except psutil.Error:
        return 0


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass
class Environment:
    """A Python environment of its own for a peer, made when it is first asked for."""

    folder: Path
    packages: tuple[str, ...]
    say: Callable[[str], None]

    @property
    def python(self) -> str:
        """Its interpreter, with the packages installed; AbsentError with pip's words if not."""
        marker = self.folder / "installed"
        wanted = "\n".join(self.packages)
        python = str(self.folder / "bin" / "python")
        if marker.exists() and marker.read_text() == wanted:
            return python
        self.say(f"installing {', '.join(self.packages)} into {self.folder}")
        run([sys.executable, "-m", "venv", str(self.folder)])
        run([python, "-m", "pip", "install", "-q", *self.packages])
        marker.write_text(wanted)
        return python
