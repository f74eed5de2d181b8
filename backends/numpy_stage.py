"""Stages of a plan on memory that NumPy sees, by the compiled kernel: NumPy's own arrays, and torch's tensors on a CPU.

The operations are those of `diffcore.stage.advance`, in its order and dtype, so that every bit is equal. The kernel reads and
writes every array once, on threads, and makes its noise in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from diffcore._array import Array
from diffcore._threshold import Clip
from diffcore.backends import cpu_threads
from diffcore.plan import Form

HALVES = (np.dtype(np.float16), np.dtype(np.uint16))
"""float16, and bfloat16 by its bits, since NumPy has none. They are computed in float32."""

TAKEN = (np.dtype(np.float32), np.dtype(np.float64), *HALVES)
"""What the kernel takes."""

FRAME = 64
"""Elements for each level, where samples or frames have their own, from which the kernel is faster."""

SECOND = (None, "unguided", "raw")
"""What the kernel's number for a second estimate means."""

Made = tuple[Array, tuple[Array, ...], Array | None]
"""The new z, the new memory, and x-hat where it is wanted, given or remembered."""


class Stages:
    """Some stages of one form, on arrays like one array.

    Args:
        form: of the plan.
        coefficients: (stages, *lead, form.width), on the host in float64.
        like: an array that `serves` said yes to.
        clip: what x-hat is clipped to, where it is not given.
        empty: makes memory like `like`.
    """

    def __init__(
        self,
        form: Form,
        coefficients: npt.NDArray[np.float64],
        like: Array,
        clip: Clip | None,
        empty: Callable[[], Array],
    ) -> None:
        self._samples, self._frames = (*coefficients.shape[1:-1], 0, 0)[:2]  # 0 stands for coefficients that all share
        self._table = np.ascontiguousarray(coefficients, dtype=np.float64).reshape(-1, form.width)
        self._memory, self._keeps_x, self._head = form.memory, form.keeps_x, form.computed - 1
        self._made = form.computed - form.keeps_x
        self._second, self._empty = SECOND.index(form.second), empty
        self._low, self._high = (-math.inf, math.inf) if clip is None else (clip.low, clip.high)
        shape = len(like), like.size // len(like)
        self._size, self._programs = shape[1], cpu_threads.number(shape)
        self._launch = cpu_threads.launcher(shape)
        self._zero = _zero_rows(form, coefficients) if self._made else []
        some = any(map(any, self._zero))  # then one array is all rows of 0, and nothing is written over it
        self._nothing = np.zeros(like.shape, like.dtype) if some else None

    def estimate(self, at: int, z: Array, y: Array) -> Array:
        """Return x-hat of stage `at`, neither clipped nor transformed."""
        x, unread = self._empty(), (z,) * self._memory
        rows, bounds = (self._table, at, self._samples, self._frames), (-math.inf, math.inf)
        inputs = None, x, (), z, y, y, None, None, unread, *rows, None, 0, self._second, *bounds, self._size
        self._launch(*inputs, 0, self._programs)
        return x

    def after(
        self,
        at: int,
        z: Array,
        memory: tuple[Array, ...],
        y: Array,
        other: Array | None,
        eps: Array | None,
        x: Array | None,
        keys: Array | None,
        draw: int,
        wants_x: bool,
    ) -> Made:
        """Return what stage `at` makes.

        Args:
            at, z, memory, y: which stage, and what it reads.
            other: the unguided prediction, for plans that read it.
            eps: fresh noise, or None.
            x: x-hat where it is there already, or None.
            keys, draw: what makes the noise where `eps` is None; no keys, no noise.
            wants_x: whether x-hat is wanted besides.
        """
        empty = self._empty
        to_z, to_x = empty(), empty() if x is None and (wants_x or self._keeps_x) else None
        to_memory = tuple([None if zero else empty() for zero in self._zero[at]]) if self._made else ()
        # fmt: off
        self._launch(
            to_z, to_x, to_memory, z, y, other, eps, x, memory, self._table, at, self._samples, self._frames, keys, draw,
            self._second, self._low, self._high, self._size, 0, self._programs,
        )
        # fmt: on
        x = to_x if x is None else x
        if memory:
            made = to_memory
            if self._nothing is not None:
                made = tuple([self._nothing if row is None else row for row in made])
            memory = made + ((x,) if self._keeps_x else ()) + memory[self._head : -1]
        return to_z, memory, x


def _zero_rows(form: Form, coefficients: npt.NDArray[np.float64]) -> list[list[bool]]:
    """Return for each stage which of the rows of memory that are made, but x-hat, are 0: their arrays take no arithmetic."""
    made = form.computed - form.keeps_x
    alone = len(coefficients) == 1  # where it would save nothing
    if alone or coefficients.ndim > 2:  # or a sum of zeros may be -0, or not a number
        return [[False] * made] * len(coefficients)
    rows = coefficients[:, 2 + form.columns :].reshape(len(coefficients), form.memory, form.columns)
    zero: list[list[bool]] = np.all(rows[:, :made] == 0.0, axis=-1).tolist()
    return zero


def fitted(array: Any, like: Array) -> Array | None:
    """Return an array of NumPy's that is like another one, and in one aligned piece of memory: itself or a copy; None where it is
    of another type, dtype or shape."""
    if type(array) is not np.ndarray or array.dtype != like.dtype or array.shape != like.shape:
        return None
    flags = array.flags
    return array if flags.c_contiguous and flags.aligned else np.require(array, requirements=["C", "A"])


def serves(z: Any, form: Form, lead: tuple[int, ...]) -> bool:
    """Return whether the kernel is there and takes stages of a form, with levels (*lead), on a state: not empty, and of a dtype
    that it is computed in."""
    if cpu_threads.kernel is None or form.memory > cpu_threads.MEMORY:
        return False
    if type(z) is not np.ndarray or z.ndim == 0 or z.size == 0 or z.dtype not in TAKEN:
        return False
    if not lead:
        return True
    many = z.size >= FRAME * math.prod(lead)
    return many and len(lead) <= min(z.ndim, 2) and all(n in (1, m) for n, m in zip(lead, z.shape, strict=False))
