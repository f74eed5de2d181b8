"""The compiled kernel of a CPU, where there is one, and threads to run it on."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from functools import lru_cache, partial
from types import ModuleType
from typing import Any

from diffcore import _philox

kernel: ModuleType | None
try:
    from diffcore.backends import cpu_kernel as kernel
except ImportError:  # installed where there was no C compiler
    kernel = None

MEMORY = 8
"""Arrays of memory that the kernel reads and writes, at most."""

ELEMENTS = 1 << 16
"""What a thread takes at a time, at least: many times what a call costs."""

TURNS = 8
"""How often a thread comes back for more, at most: often enough that none waits long for the last, and seldom for the lock."""


def count() -> int:
    """Return how many threads to use: the cores that this process may run on, or OMP_NUM_THREADS where that is fewer."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return min(cores, int(asked)) if asked.isdecimal() and int(asked) else cores


def number(shape: tuple[int, int]) -> int:
    """Return how many programs an array (samples, size) has: its samples' tiles."""
    samples, size = shape
    return samples * -(-size // (4 * _philox.TILE))


def launcher(shape: tuple[int, int]) -> Callable[..., object]:
    """Return the kernel's stage, to be called with all programs of an array: on threads, where that is worth their while."""
    launch: Callable[..., object] = kernel.stage  # type: ignore[union-attr]
    if shape[0] * shape[1] <= ELEMENTS:
        return launch
    return lambda *inputs: programs(shape, partial(launch, *inputs[:-2]))


def programs(shape: tuple[int, int], launch: Callable[[int, int], object], *, whole: bool = True) -> None:
    """Call launch(begin, end) on ranges that make up the programs of an array (samples, size): its samples' tiles, which
    are one more where they are not whole samples, but runs that begin anywhere."""
    samples, size = shape
    tile = 4 * _philox.TILE
    number = samples * -(-(size if whole else size + tile - 1) // tile)
    if samples * size <= ELEMENTS:
        if number:
            launch(0, number)
        return
    together = max(1, ELEMENTS // min(size, tile), number // (TURNS * count()))
    parts = [range(begin, min(begin + together, number)) for begin in range(0, number, together)]
    each(parts, lambda part: launch(part.start, part.stop))


def each(parts: Iterable[Any], work: Callable[[Any], object]) -> None:
    """Call work(part) on each part; every thread takes the next one that is left."""
    left = deque(parts)

    def some() -> None:
        while True:
            try:
                part = left.popleft()
            except IndexError:
                return
            work(part)  # noqa: F821 (it is there until all is done)

    threads = count()
    others = min(threads, len(left)) - 1
    if others < 1:
        some()
        return
    pool = _pool(os.getpid(), threads - 1)  # each in a copy of the caller's context, which has its numpy.errstate
    jobs: list[Future[None]] = []
    try:
        with suppress(RuntimeError):  # no threads, or no more of them while the interpreter shuts down
            jobs.extend(pool.submit(copy_context().run, some) for _ in range(others))
        some()
    finally:
        left.clear()  # where something was raised
        try:
            _finish(jobs)
        except KeyboardInterrupt:
            _finish(jobs)  # whoever called may free the memory that they work on
            raise
        del work  # threads let go of `some` a little later, but not of the arrays that are worked on


def _finish(jobs: list[Future[None]]) -> None:
    for job in jobs:
        if not job.cancel():  # what did not begin has nothing left to do
            job.result()


@lru_cache(maxsize=1)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Return the threads of this process, and after a fork new ones."""
    return ThreadPoolExecutor(threads, thread_name_prefix="diffcore")
