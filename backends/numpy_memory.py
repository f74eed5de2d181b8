"""Memory that a run uses again: the system takes longer to hand out a large array than a stage takes to fill it."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

from diffcore._array import Array

LARGE = 1 << 20
"""Bytes from which a run keeps arrays: about where C libraries turn to the system for each."""


class Memory:
    """Arrays like one array, in memory that comes back when nobody holds an array, or a view of it, any more."""

    def __init__(self, like: Array) -> None:
        self._like = like
        self._free: list[memoryview] = []
        self._lent: dict[int, tuple[weakref.ref[Any], memoryview]] = {}

    def empty(self) -> Array:
        """Return an array of any content."""
        like = self._like
        held = self._free.pop() if self._free else np.empty(like.nbytes, np.uint8).data
        # A view of an array on memory that is no array's holds that very array, so that the array outlives all views of it.
        array = np.frombuffer(held, like.dtype).reshape(like.shape)
        reference = weakref.ref(array.base, self._take_back)
        self._lent[id(reference)] = reference, held
        return array

    def last(self, array: Array | None) -> Array | None:
        """Return the array to be read a last time: in memory lent by this, a view that does not hold it, so that what is
        computed element by element may be written over it as soon as nobody else does.
        """
        held = getattr(getattr(array, "base", None), "base", None)
        lent = list(self._lent.values())  # what another thread gives back in between would change the size of the dict
        if type(held) is not memoryview or not any(held.obj is memory.obj for _, memory in lent):
            return array
        return np.frombuffer(held, self._like.dtype).reshape(self._like.shape)

    def close(self) -> None:
        """Keep nothing any more; arrays that are still held stay as they are."""
        self._free.clear()
        self._lent.clear()

    def _take_back(self, reference: weakref.ref[Any]) -> None:
        if (
            found := self._lent.pop(id(reference), None)
        ) is not None:  # None: `close` came in between, on another thread
            self._free.append(found[1])
