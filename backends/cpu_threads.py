"""The compiled kernel of a CPU, where there is one, and threads to run it and NumPy's passes on."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import lru_cache
from types import ModuleType
from typing import Any

from diffcore import _philox

kernel: ModuleType | None
try:
    from diffcore.backends import cpu_kernel as kernel
except ImportError:  # installed where there was no C compiler
    kernel = None

TOGETHER = 64
"""Programs of the kernel that a thread takes at a time, 65,536 elements: some 50 microseconds, many times what a call costs."""


def count() -> int:
    """Return how many threads to use: the cores that this process may run on, or OMP_NUM_THREADS where that is fewer."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return min(cores, int(asked)) if asked.isdigit() and int(asked) else cores


def programs(shape: tuple[int, int], launch: Callable[[int, int], object]) -> None:
    """Call launch(begin, end) on ranges that make up the programs of an array (samples, size): its samples' tiles."""
    samples, size = shape
    number = samples * -(-size // (4 * _philox.TILE))
    if number <= TOGETHER:
        if number:
            launch(0, number)
        return
    parts = [range(begin, min(begin + TOGETHER, number)) for begin in range(0, number, TOGETHER)]
    each(parts, lambda: lambda part: launch(part.start, part.stop))


def each(parts: Iterable[Any], worker: Callable[[], Callable[[Any], object]]) -> None:
    """Call worker()(part) on each part; every thread takes the next one that is left, and calls worker() once."""
    left = deque(parts)

    def some() -> None:
        work = worker()
        while True:
            try:
                part = left.popleft()
            except IndexError:
                return
            work(part)

    threads = count()
    others = min(threads, len(left)) - 1
    if others < 1:
        some()
        return
    pool = _pool(os.getpid(), threads - 1)  # each in a copy of the caller's context, which has its numpy.errstate
    jobs = [pool.submit(copy_context().run, some) for _ in range(others)]
    try:
        some()
    finally:
        for job in jobs:
            job.result()


@lru_cache(maxsize=1)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Return the threads of this process, and after a fork new ones."""
    return ThreadPoolExecutor(threads, thread_name_prefix="diffcore")
