"""A launcher: the thread from which programs of one set of cores start, with its own pinned pool.

TVM keeps one worker pool per calling thread, so two launchers are two sets of pinned cores side by
side, and a plan switch is a step handed to the other launcher.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

from codegen.compile import pin_pool
from sandwich.executor.base import NativeTime

Job = Callable[[], Any]


class Launcher:
    """Runs jobs one at a time on a thread whose pool has a worker on each of `cpus`.

    The thread is the launcher's own until another one takes its place (`adopt`), which saves that
    one the hand-over: 15 us there and back on one CPU, some 45 between two. `is_pinned=False`
    leaves placement to the kernel. An idle launcher blocks and uses no CPU.
    """

    def __init__(self, name: str, cpus: Sequence[int], is_pinned: bool = True) -> None:
        self.cpus = tuple(cpus)
        self._is_pinned = is_pinned
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._results: SimpleQueue[NativeTime | BaseException] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name=f"sandwich-{name}", daemon=True)
        self._thread.start()
        self._thread_id = self._thread.ident
        self.wait()  # an error while the pool is made is raised here

    def start(self, job: Job) -> None:
        """Run `job` there, and return at once; `wait` must follow before the next job.

        On the launcher's own thread the job is done when this returns.
        """
        if threading.get_ident() == self._thread_id:
            self._answer(job)
        else:
            assert self._thread.is_alive(), "the launcher has been closed, or adopted elsewhere"
            self._jobs.put(job)

    def is_done(self) -> bool:
        """Whether `wait` would return at once."""
        return not self._results.empty()

    def wait(self) -> NativeTime:
        """Wait for the job that was started: its time; what it raised is raised here."""
        result = self._results.get()
        if isinstance(result, BaseException):
            raise result
        return result

    def run(self, job: Job) -> NativeTime:
        """`start` and `wait`."""
        if threading.get_ident() == self._thread_id:
            return _timed(job)
        self.start(job)
        return self.wait()

    def adopt(self) -> None:
        """Make the calling thread the launcher's, pinned as it was, in place of its own.

        From then on jobs come from this thread alone, and run without a hand-over.
        """
        if threading.get_ident() == self._thread_id:
            return
        self.close()
        self._thread_id = threading.get_ident()
        pin_pool(list(self.cpus), self._is_pinned)

    def close(self) -> None:
        """End the launcher's own thread. Again is no error."""
        self._jobs.put(None)
        self._thread.join()

    def _serve(self) -> None:
        self._answer(lambda: pin_pool(list(self.cpus), self._is_pinned))
        while (job := self._jobs.get()) is not None:
            self._answer(job)

    def _answer(self, job: Job) -> None:
        try:
            self._results.put(_timed(job))
        except BaseException as error:  # it belongs to the caller
            self._results.put(error)


def _timed(job: Job) -> NativeTime:
    started = time.perf_counter()
    job()
    return NativeTime(started, time.perf_counter())
