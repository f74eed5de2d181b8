"""Threads for the CPU's kernel: how many, what an error or an interrupt leaves behind, and where there are none."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import Future
from typing import Any

import pytest

from diffcore.backends import cpu_threads


def test_threads_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = cpu_threads.count()
    assert 1 <= cores <= (os.cpu_count() or 1)
    for value, want in [
        ("1", 1),
        ("1,2", 1),
        ("9999", cores),
        ("0", cores),
        ("", cores),
        ("many", cores),
        ("²", cores),
    ]:
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert cpu_threads.count() == want


def test_an_error_in_a_thread_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_threads, "count", lambda: 3)
    done: list[int] = []

    def work(part: int) -> None:
        if part == 5:
            raise ArithmeticError("five")
        done.append(part)

    with pytest.raises(ArithmeticError, match="five"):
        cpu_threads.each(range(20), work)
    assert 5 not in done
    cpu_threads.each(range(20, 40), work)
    assert set(range(20, 40)) <= set(done)


def test_who_interrupts_waits_for_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else they would work on memory that the caller gives up."""
    ends, begun = threading.Event(), threading.Event()
    interrupted: list[Any] = []
    result = Future.result

    def wait(job: Future[Any], timeout: float | None = None) -> Any:
        if not interrupted:
            interrupted.append(job)
            threading.Timer(0.05, ends.set).start()
            raise KeyboardInterrupt
        return result(job, timeout)

    def work(part: int) -> None:
        if threading.current_thread() is threading.main_thread():
            begun.wait(10.0)
        else:
            begun.set()
            ends.wait(10.0)

    monkeypatch.setattr(cpu_threads, "count", lambda: 2)
    monkeypatch.setattr(Future, "result", wait)
    with pytest.raises(KeyboardInterrupt):
        cpu_threads.each(range(2), work)
    assert ends.is_set()
    assert interrupted[0].done()


@pytest.mark.parametrize("when", ["start", "submit"])
def test_where_no_thread_can_be_started_the_caller_does_the_work(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As while the interpreter shuts down, or where a limit is reached."""

    def refused(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(cpu_threads, "count", lambda: 4)
    cpu_threads._pool.cache_clear()
    monkeypatch.setattr(
        "threading.Thread.start" if when == "start" else "concurrent.futures.ThreadPoolExecutor.submit", refused
    )
    done: list[int] = []
    cpu_threads.each(range(9), done.append)
    cpu_threads._pool.cache_clear()
    assert sorted(done) == list(range(9))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_threads_work_after_a_fork() -> None:
    """A child has none of its parent's threads."""
    script = """
import os, sys, warnings
import numpy as np
import diffcore as dc
from diffcore.backends import cpu_threads
cpu_threads.count = lambda: 3
want = dc.noise.normal(1, 2, (2, 300_000))
warnings.simplefilter("ignore")  # of forking with threads, which is what this is about
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(dc.noise.normal(1, 2, (2, 300_000)), want) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
