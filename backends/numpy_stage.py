"""A stage of a plan on memory that NumPy sees: NumPy's own arrays, and torch's tensors on a CPU.

The operations are those of `diffcore.sampling.advance`, in its order and dtype, so that every bit is equal. What is saved
is the rest. The compiled kernel reads and writes every array once, on threads, and makes its noise in the cache. Without it
the sums are NumPy's, but which coefficients are 0 or 1 is worked out once a run, and the noise of many small stages is made
at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from diffcore._array import Array
from diffcore._threshold import Clip
from diffcore.backends import cpu_threads, numpy_noise

DTYPES = (np.dtype(np.float32), np.dtype(np.float64))
HALVES = (np.dtype(np.float16), np.dtype(np.uint16))
"""What the kernel takes besides: float16, and bfloat16 by its bits, since NumPy has none. They are computed in float32."""

TAKEN = DTYPES + HALVES

FRAME = 64
"""Elements for each level, where samples or frames have their own, from which the kernel is faster."""

Terms = list[tuple[int, int]]
"""The terms of a sum that are not 0: which coefficient of the row, or -1 for 1; and which array it multiplies."""

Transform = Callable[[Array], Array | None] | None
"""A clip, a function of x-hat whose result may not fit, or nothing."""


class Row(NamedTuple):
    """A stage's coefficients, as 0-d arrays, which meet data faster than numbers, and three sums over them."""

    values: list[Any]
    x: Terms
    z: Terms
    saved: Terms


class Table(NamedTuple):
    """The coefficients of some stages, on the host in float64: (stages, n), or (stages * samples * frames, n), where 0 for
    the last two stands for coefficients that all share; and as rows, where there is no kernel."""

    values: npt.NDArray[np.float64]
    samples: int
    frames: int
    rows: list[Row]


def table(values: npt.NDArray[np.float64], dtype: Any) -> Table:
    """Return the coefficients of stages (stages, *lead, n) for data of a dtype."""
    samples, frames = (*values.shape[1:-1], 0, 0)[:2]
    if values.ndim > 2:
        values = values.reshape(-1, values.shape[-1])
    values = np.ascontiguousarray(values, dtype=np.float64)
    return Table(values, samples, frames, [] if cpu_threads.kernel is not None else _rows(values, dtype))


def _rows(values: npt.NDArray[np.float64], dtype: Any) -> list[Row]:
    stages, width = values.shape
    cast = list(np.nditer(values.astype(dtype)))
    codes = ((values != 0.0).astype(np.uint8) + (values == 1.0)).tobytes()  # 0, 1 or 2: the few kinds of rows of a plan
    kinds: dict[bytes, tuple[Terms, Terms, Terms]] = {}
    found = []
    for first in range(0, stages * width, width):
        code = codes[first : first + width]
        if code not in kinds:
            terms = [(-1 if kind == 2 else at, at) for at, kind in enumerate(code) if kind]
            half = width // 2 + 1  # x-hat has two coefficients, each row of the update half of the rest
            kinds[code] = (
                [term for term in terms if term[1] < 2],
                [(value, at - 2) for value, at in terms if 2 <= at < half],
                [(value, at - half) for value, at in terms if at >= half],
            )
        found.append(Row(cast[first : first + width], *kinds[code]))
    return found


class Stage(NamedTuple):
    """What one stage reads, all on the host: stage `at` of the table; `keys` and `draw` make the noise where `eps` is None."""

    table: Table
    at: int
    z: Array
    saved: Array | None
    past: tuple[Array, ...]
    y: Array
    eps: Array | None
    keys: Array | None
    draw: int


After = tuple[Array, Array | None, Array | None]
"""The new z, the new saved state, and x-hat where it is kept: new memory, or without the kernel an array that came in."""


def after(stage: Stage, transform_x: Transform, keep: bool, empty: Callable[[], Array]) -> After | None:
    """Return what a stage makes; None where transform_x returns what does not fit, which the plain function may take.

    Args:
        stage: what it reads.
        transform_x: applied to x-hat.
        keep: whether x-hat is needed later.
        empty: makes memory like z.
    """
    if cpu_threads.kernel is None:
        return _by_sums(stage, transform_x)
    return _by_kernel(cpu_threads.kernel.stage, stage, transform_x, keep, empty)


def _by_kernel(
    kernel: Any, stage: Stage, transform_x: Transform, keep: bool, empty: Callable[[], Array]
) -> After | None:
    (values, samples, frames, _), at, z, saved, past, y, eps, keys, draw = stage
    size, rows = z.size // len(z), (values, at, samples, frames)
    low, high, x = -math.inf, math.inf, None
    if type(transform_x) is Clip:
        low, high = transform_x.low, transform_x.high
    elif transform_x is not None and z.dtype in HALVES:  # it expects x-hat in float32
        return None
    elif transform_x is not None:
        x = empty()
        found = partial(kernel, None, None, x, z, y, None, None, None, past, *rows, None, 0, low, high, size)
        cpu_threads.programs((len(z), size), found)
        x = transform_x(x)
        if not fits(x, z):
            return None
    new, new_saved, kept = empty(), None if saved is None else empty(), empty() if keep and x is None else None
    made = partial(kernel, new, new_saved, kept, z, y, saved, eps, x, past, *rows, keys, draw, low, high, size)
    cpu_threads.programs((len(z), size), made)
    return new, new_saved, kept if x is None else x


def _by_sums(stage: Stage, transform_x: Transform) -> After | None:
    row, z, eps = stage.table.rows[stage.at], stage.z, stage.eps
    if eps is None and stage.keys is not None:
        eps = numpy_noise.normal(stage.keys, stage.draw, z.shape, dtype=z.dtype)
    x = _sum(row.values, row.x, (z, stage.y), z)
    if x is stage.y:  # the denoiser's own memory, which it may write to again
        x = x.copy()
    if type(transform_x) is Clip:
        x = x.clip(transform_x.low, transform_x.high)
    elif transform_x is not None:
        found = transform_x(x)
        if not fits(found, z):
            return None
        x = found
    parts = (z, stage.saved, eps, x, *stage.past)
    return _sum(row.values, row.z, parts, z), None if stage.saved is None else _sum(row.values, row.saved, parts, z), x


def _sum(values: list[Any], terms: Terms, parts: Sequence[Any], like: Array) -> Array:
    """Return the sum of the terms, from left to right."""
    total: Any = None
    for value, at in terms:
        term = parts[at] if value < 0 else values[value] * parts[at]
        total = term if total is None else total + term
    return np.zeros_like(like) if total is None else total


def fits(array: Any, like: Array) -> bool:
    """Return whether an array is one of NumPy, like another one and in one aligned piece of memory."""
    if type(array) is not np.ndarray or array.dtype != like.dtype or array.shape != like.shape:
        return False
    flags = array.flags
    return bool(flags.c_contiguous and flags.aligned)


def serves(z: Any, lead: tuple[int, ...]) -> bool:
    """Return whether stages run here on a state: in one piece, not empty, of a dtype that it is computed in; and the kernel on
    levels (*lead) of samples or frames."""
    compiled = cpu_threads.kernel is not None
    if type(z) is not np.ndarray or z.ndim == 0 or z.size == 0 or z.dtype not in (TAKEN if compiled else DTYPES):
        return False
    if not fits(z, z):
        return False
    if not lead:
        return True
    many = compiled and z.size >= FRAME * math.prod(lead)
    return many and len(lead) <= z.ndim and all(n in (1, m) for n, m in zip(lead, z.shape, strict=False))
