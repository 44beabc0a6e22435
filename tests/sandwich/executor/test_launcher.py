"""Launchers: a thread and a pool of workers of their own, errors handed back, nothing done idle."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from codegen.compile import load, lower, object_code, tensor
from codegen.cores.barrier import barrier_spec
from codegen.cores.parallel import Team, each_core, parallel_region
from codegen.functions import ir_module
from codegen.kit import T
from platforms.isa import isa_row
from platforms.memory import Arena
from sandwich.executor import launcher as launcher_module
from sandwich.executor.launcher import Launcher

TASKS = Path("/proc/self/task")
CPUS = sorted(os.sched_getaffinity(0))
two_cpus = pytest.mark.skipif(len(CPUS) < 2, reason="needs two CPUs")


@pytest.fixture
def launcher() -> Iterator[Launcher]:
    with closing(Launcher("test", CPUS[:1], is_pinned=False)) as made:
        yield made


@pytest.fixture(scope="module")
def worker_ids() -> Callable[[Launcher], list[int]]:
    """Runs a parallel region of two cores; the thread that each of them ran on."""
    groups = ((2,),)
    spec = barrier_spec(groups)

    def build() -> None:
        handles = [T.arg(name, T.handle()) for name in ("ids", "state")]
        ids = T.match_buffer(handles[0], [T.int64(2)], "int32")
        state = T.match_buffer(handles[1], [T.int64(n) for n in spec.shape], "int32")
        team = Team(groups, state, isa_row("generic"))
        with parallel_region(team):
            each_core(
                team, lambda core: T.buffer_store(ids, T.call_extern("int32", "gettid"), [core])
            )

    code = object_code(lower(ir_module("who_runs", build), isa_row("generic")))
    function = load(code, "who_runs")
    arena = Arena(1 << 12, "ids")
    ids, state = arena.array((2,), np.int32), arena.array(spec.shape, spec.dtype)

    def run(launcher: Launcher) -> list[int]:
        ids[:] = 0
        launcher.run(lambda: function(tensor(ids), tensor(state)))
        return [int(i) for i in ids]

    return run


def ask(launcher: Launcher, question: Callable[[], object]) -> object:
    """What `question` answers on the launcher's thread."""
    answers: list[object] = []
    launcher.run(lambda: answers.append(question()))
    return answers[0]


def test_every_job_runs_on_the_launchers_own_thread(launcher: Launcher) -> None:
    threads = {ask(launcher, threading.get_ident) for _ in range(3)}
    assert len(threads) == 1
    assert threading.get_ident() not in threads
    assert ask(launcher, lambda: threading.current_thread().name) == "sandwich-test"


def test_a_job_reports_its_seconds(launcher: Launcher) -> None:
    assert launcher.run(lambda: None).seconds >= 0.0


@pytest.mark.parametrize("error", [ValueError("a"), MemoryError("b"), KeyboardInterrupt("c")])
def test_what_a_job_raises_is_raised_to_its_caller(
    launcher: Launcher, error: BaseException
) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error), match=str(error)) as raised:
        launcher.run(fail)
    assert raised.value is error
    assert ask(launcher, lambda: 7) == 7  # the next job is none the wiser


def test_a_pool_that_cannot_be_made_is_an_error_of_the_constructor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(cpus: list[int], is_pinned: bool) -> None:
        raise OSError(f"no thread for {cpus}, {is_pinned}")

    monkeypatch.setattr(launcher_module, "pin_pool", refuse)
    with pytest.raises(OSError, match=r"no thread for \[3\], True"):
        Launcher("nowhere", [3])


def test_a_job_that_was_started_runs_while_its_caller_goes_on(launcher: Launcher) -> None:
    go = threading.Event()
    answers: list[int] = []

    def job() -> None:
        go.wait()
        answers.append(threading.get_ident())

    launcher.start(job)
    assert not launcher.is_done()
    assert answers == []
    go.set()
    assert launcher.wait().seconds >= 0.0
    assert answers == [ask(launcher, threading.get_ident)]


def test_what_a_started_job_raises_is_raised_by_wait(launcher: Launcher) -> None:
    launcher.start(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        launcher.wait()


def in_a_thread(function: Callable[[], object]) -> object:
    """What `function` returns on a thread of its own, which ends; its error is raised here."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def test_an_adopted_launcher_runs_jobs_on_the_thread_that_took_it() -> None:
    with closing(Launcher("test", CPUS[-1:])) as launcher:
        own = ask(launcher, threading.current_thread)

        def take() -> None:
            launcher.adopt()
            launcher.adopt()  # again is no error
            assert ask(launcher, threading.get_ident) == threading.get_ident()
            assert os.sched_getaffinity(0) == {CPUS[-1]}
            launcher.start(lambda: None)
            assert launcher.is_done()
            assert launcher.wait().seconds >= 0.0
            with pytest.raises(ZeroDivisionError):
                launcher.run(lambda: 1 // 0)

        in_a_thread(take)
        assert isinstance(own, threading.Thread)
        assert not own.is_alive()
        with pytest.raises(AssertionError, match="adopted elsewhere"):
            launcher.run(lambda: None)


@two_cpus
def test_an_adopted_launcher_has_its_workers(worker_ids: Callable[[Launcher], list[int]]) -> None:
    with closing(Launcher("test", CPUS[:2])) as launcher:

        def take() -> list[set[int]]:
            launcher.adopt()
            return [os.sched_getaffinity(i) for i in worker_ids(launcher)]

        assert in_a_thread(take) == [{cpu} for cpu in CPUS[:2]]


def test_a_pinned_launcher_runs_on_its_first_cpu_and_nobody_else_is_moved() -> None:
    with closing(Launcher("test", CPUS[-1:])) as launcher:
        assert ask(launcher, lambda: os.sched_getaffinity(0)) == {CPUS[-1]}
    assert sorted(os.sched_getaffinity(0)) == CPUS


@two_cpus
def test_pinned_workers_have_a_cpu_each(worker_ids: Callable[[Launcher], list[int]]) -> None:
    for cpus in (CPUS[:2], CPUS[1::-1]):
        with closing(Launcher("test", cpus)) as launcher:
            assert [os.sched_getaffinity(i) for i in worker_ids(launcher)] == [{c} for c in cpus]


@two_cpus
def test_without_pinning_there_is_a_worker_for_every_cpu_and_each_may_go_anywhere(
    worker_ids: Callable[[Launcher], list[int]],
) -> None:
    with closing(Launcher("test", CPUS[:2], is_pinned=False)) as launcher:
        ids = worker_ids(launcher)
        assert len(set(ids)) == 2
        assert all(os.sched_getaffinity(i) >= set(CPUS[:2]) for i in ids)


@two_cpus
def test_two_launchers_work_side_by_side_with_different_workers(
    worker_ids: Callable[[Launcher], list[int]],
) -> None:
    with closing(Launcher("a", CPUS[:2])) as a, closing(Launcher("b", CPUS[1::-1])) as b:
        first, second = worker_ids(a), worker_ids(b)
        assert not set(first) & set(second)
        assert (worker_ids(a), worker_ids(b)) == (first, second)


@two_cpus
def test_closing_ends_the_thread_and_its_workers(
    worker_ids: Callable[[Launcher], list[int]],
) -> None:
    launcher = Launcher("test", CPUS[:2])
    ids = worker_ids(launcher)
    thread = ask(launcher, threading.current_thread)
    launcher.close()
    assert isinstance(thread, threading.Thread)
    assert not thread.is_alive()
    while any((TASKS / str(i)).exists() for i in ids):
        os.sched_yield()  # the system takes its threads back


def test_an_idle_launcher_uses_no_cpu(launcher: Launcher) -> None:
    idle = ask(launcher, lambda: time.pthread_getcpuclockid(threading.get_ident()))
    native_id = ask(launcher, threading.get_native_id)
    assert isinstance(idle, int)
    while "State:\tS" not in (TASKS / str(native_id) / "status").read_text():
        os.sched_yield()  # it is on its way back to the queue
    before = time.clock_gettime_ns(idle)
    with closing(Launcher("busy", CPUS[:1], is_pinned=False)) as busy:
        for _ in range(100):
            busy.run(lambda: None)
    assert time.clock_gettime_ns(idle) == before
