"""The processes of a run, and what each of them needs of the others; here, of one process alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from diffcore import _check
from diffcore.unet3d.training import checkpoints

Found = TypeVar("Found")


class World:
    """One process. `torch_mesh` and `jax_mesh` have those of several, with the same methods.

    Fields:
        first: whether this is the process that writes log, samples and weights.
        count: how many processes there are.
    """

    first = True
    count = 1

    def agree(self, work: Callable[[], Found]) -> Found:
        """Return in every process what `work` returns in the first, or raise there what it raises; the others wait."""
        return work()

    def any(self, flag: bool) -> bool:
        """Return whether any process gave True; of several, at the call before, so that nobody waits for the answer."""
        return flag

    def mean(self, numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the mean over the processes."""
        return numbers

    def close(self) -> None:
        """End what was begun for this run."""


class Keeper:
    """Writes the checkpoints of several processes, one after the other, while the run goes on."""

    def __init__(self, world: World, folder: Path, kept: int) -> None:
        self._world, self._folder, self._kept = world, folder, kept
        self._pool, self._last = ThreadPoolExecutor(1), None

    _last: Future[None] | None

    def keep(self, begin: Callable[[Path], Callable[[], Any]], about: dict[str, str]) -> None:
        """Write one: `begin` of a path returns when the state is copied, and its result when all of it is written."""
        self.wait()
        path = checkpoints.place(self._folder, int(about["step"]))
        self._world.agree(lambda: checkpoints.discard(path))  # one that is damaged
        self._last = self._pool.submit(self._finish, begin(path), path, about)

    def _finish(self, end: Callable[[], Any], path: Path, about: dict[str, str]) -> None:
        end()
        if self._world.first:
            checkpoints.seal(path, about, self._kept)

    def wait(self) -> None:
        """Return when the last one is whole, and raise what went wrong with it."""
        if self._last is not None:
            self._last.result()
            self._last = None

    def close(self) -> None:
        """Wait for what is being written, and leave it at that where it fails."""
        self._pool.shutdown()


def part_of(batch: int, number: int, count: int) -> tuple[int, int]:
    """Return (first, how many) of part `number` of `count` parts, as equal as they can be.

    >>> [part_of(8, number, 3) for number in range(3)]
    [(0, 2), (2, 3), (5, 3)]
    """
    first = number * batch // count
    return first, (number + 1) * batch // count - first


def check_batch(batch: int, accumulate: int, count: int, *, even: bool) -> None:
    """Raise ValueError where a batch cannot be dealt out; `even`: in equal parts."""
    parts = accumulate * count
    if batch < parts or (even and batch % parts):
        must = f"be {'a multiple of' if even else 'at least'} {parts}, {accumulate} for each of {count} devices"
        raise _check.error(ValueError, "training.train", "batch", must, batch, "or change `accumulate` or the mesh")


def ahead(read: Callable[[int], Found], numbers: Iterable[int], workers: int) -> Generator[tuple[int, Found]]:
    """Yield (number, read(number)) in order, read by so many threads, which are at most two numbers each ahead.

    >>> list(ahead(lambda number: number**2, range(4), workers=2))
    [(0, 0), (1, 1), (2, 4), (3, 9)]
    """
    if not workers:
        yield from ((number, read(number)) for number in numbers)
        return
    waiting: deque[tuple[int, Future[Found]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="diffcore-data")
    try:
        for number in numbers:
            waiting.append((number, pool.submit(read, number)))
            if len(waiting) > 2 * workers:
                due, found = waiting.popleft()
                yield due, found.result()
        for due, found in waiting:
            yield due, found.result()
    finally:
        pool.shutdown(cancel_futures=True)
