"""Peers that are Python packages: each in an environment of its own, timed by a small worker."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from typing import ClassVar

from bench.peers.engine import Engine, Environment, Worker
from bench.peers.work import Work
from bench.record import CHECKOUT


class PythonPeer(Engine):
    """A worker for each number of threads that is asked for; one is alive at a time."""

    packages: ClassVar[tuple[str, ...]]
    script: ClassVar[str]
    _worker: Worker | None = None
    _count = 0

    def prepare(self) -> None:
        folder = self.setup.peers_dir / self.name
        self.python = Environment(folder, self.packages, self.setup.say).python

    def seconds(self, work: Work) -> float:
        count = self.threads.of(work)
        if self._worker is None or count != self._count:
            self.close()
            self._count = count
            script = str(CHECKOUT / "bench" / "peers" / "workers" / self.script)
            command = [self.python, script, *self.arguments(count)]
            self._worker = Worker(self.name, command, self.variables(count))
        return float(self._worker.ask(work.request())["seconds"])

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def arguments(self, num_threads: int) -> Sequence[str]:
        """What the worker is started with."""
        return [str(self.setup.folder), str(num_threads)]

    def variables(self, num_threads: int) -> dict[str, str]:
        """Variables of its environment."""
        threads = {"OMP_NUM_THREADS": str(num_threads), "TOKENIZERS_PARALLELISM": "false"}
        return {**threads, "PYTHONPATH": str(CHECKOUT), "HF_HUB_OFFLINE": "1"}


class Transformers(PythonPeer):
    """transformers with torch; this environment's own, if it has them."""

    name = "transformers"
    formats = ("bf16",)
    packages = ("torch==2.13.0", "transformers==5.23.0")
    script = "transformers_engine.py"

    def prepare(self) -> None:
        if all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
            self.python = sys.executable
        else:
            super().prepare()
