"""A launcher: the thread from which one phase's programs start, with its own pinned TVM pool.

TVM keeps one worker pool per calling thread, so two launchers are two sets of pinned cores side by
side, and a plan switch is a step handed to the other launcher. It knows nothing of batches.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

from codegen.compile import pin_pool

Job = Callable[[], Any]


class Launcher:
    """Runs jobs one at a time on a thread whose pool has a worker on each of `cpus`.

    `is_pinned=False` leaves placement to the kernel. An idle launcher blocks and uses no CPU.
    """

    def __init__(self, name: str, cpus: Sequence[int], is_pinned: bool = True) -> None:
        self._cpus = list(cpus)
        self._is_pinned = is_pinned
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._results: SimpleQueue[tuple[float, BaseException | None]] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name=f"sandwich-{name}", daemon=True)
        self._thread.start()
        self._wait()  # an error while the pool is made is raised here

    def run(self, job: Job) -> float:
        """Run `job` there and return its seconds; what it raises is raised here."""
        self._jobs.put(job)
        return self._wait()

    def close(self) -> None:
        """End the thread; the last call."""
        self._jobs.put(None)
        self._thread.join()

    def _wait(self) -> float:
        seconds, error = self._results.get()
        if error is not None:
            raise error
        return seconds

    def _serve(self) -> None:
        self._timed(lambda: pin_pool(self._cpus, self._is_pinned))
        while (job := self._jobs.get()) is not None:
            self._timed(job)

    def _timed(self, job: Job) -> None:
        started = time.perf_counter()
        try:
            job()
        except BaseException as error:  # it belongs to the caller
            self._results.put((0.0, error))
        else:
            self._results.put((time.perf_counter() - started, None))
