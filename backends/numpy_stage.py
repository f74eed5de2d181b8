"""A stage of a plan on memory that NumPy sees: NumPy's own arrays, and torch's tensors on a CPU.

The operations are those of `diffcore.sampling.advance`, in its order and dtype, so that every bit is equal. What is saved
is the rest. A run works out once which coefficients are 0 or 1, and draws the noise of many small stages at once. A large
array goes through the cache in pieces, on threads: noise, x-hat and the intermediate sums of a piece never reach memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from diffcore._array import Array
from diffcore._threshold import Clip
from diffcore.backends import numpy_noise

LARGE = 1 << 15
"""Elements from which an array goes through the cache in pieces; below, a call costs more than it saves."""

PIECE = 1 << 17
"""Elements of a piece: 512 KiB a buffer in float32; see `numpy_noise.CHUNK`."""

AHEAD = 1 << 14
"""Numbers of noise that are drawn ahead."""

DTYPES = (np.dtype(np.float32), np.dtype(np.float64))

Terms = list[tuple[int, int]]
"""The terms of a sum that are not 0: which coefficient of the row, or -1 for 1; and which array it multiplies."""


class Row(NamedTuple):
    """A stage's coefficients, as 0-d arrays, which meet data faster than numbers, and three sums over them."""

    values: list[Any]
    x: Terms
    z: Terms
    saved: Terms


def rows(table: npt.NDArray[np.float64], dtype: Any) -> list[Row]:
    """Return the rows of a table (stages, n), cast to the dtype."""
    stages, width = table.shape
    cast = list(np.nditer(table.astype(dtype)))
    codes = ((table != 0.0).astype(np.uint8) + (table == 1.0)).tobytes()  # 0, 1 or 2: the few kinds of rows of a plan
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
    """What one stage reads, all on the host: `words` and `draw` make the noise where `eps` is None."""

    row: Row
    z: Array
    saved: Array | None
    past: tuple[Array, ...]
    y: Array
    eps: Array | None
    words: Array | None
    draw: int


After = tuple[Array, Array | None, Array | None]
"""The new z, the new saved state, and x-hat where it is kept. Each is new memory, or one of the arrays that came in."""


def after(stage: Stage, transform_x: Callable[[Array], Array | None] | None, keep: bool) -> After | None:
    """Return what a stage makes; None where transform_x returns what does not fit, which the plain function may take."""
    if stage.z.size >= LARGE:
        return _in_pieces(stage, transform_x, keep)
    eps = stage.eps
    if eps is None and stage.words is not None:
        eps = numpy_noise.normal(stage.words, stage.draw, stage.z.shape, dtype=stage.z.dtype)
    x = _sum(stage.row.values, stage.row.x, (stage.z, stage.y), stage.z)
    if x is stage.y:  # the denoiser's own memory, which it may write to again
        x = x.copy()
    if isinstance(transform_x, Clip):
        x = x.clip(transform_x.low, transform_x.high)
    elif transform_x is not None:
        found = transform_x(x)
        if not fits(found, stage.z):
            return None
        x = found
    parts = (stage.z, stage.saved, eps, x, *stage.past)
    z = _sum(stage.row.values, stage.row.z, parts, stage.z)
    return z, None if stage.saved is None else _sum(stage.row.values, stage.row.saved, parts, stage.z), x


def _in_pieces(stage: Stage, transform_x: Callable[[Array], Array | None] | None, keep: bool) -> After | None:
    values, for_x, for_z, for_saved = stage.row
    whole, dtype = (stage.z.shape[0], stage.z[0].size), stage.z.dtype
    z, y, saved, given, *past = map(_flat, (stage.z, stage.y, stage.saved, stage.eps, *stage.past))
    clip = transform_x if isinstance(transform_x, Clip) else None
    x: Array = None
    if transform_x is not None and clip is None:  # it may look at a sample as a whole
        x = np.empty_like(z)

        def estimate(scratch: numpy_noise.Scratch, span: numpy_noise.Span) -> None:
            for part in _pieces(span, whole[1]):
                _put(_sum(values, for_x, (z[part], y[part]), z[part], x[part]), x[part])

        numpy_noise.spread(whole, estimate)
        found = transform_x(x.reshape(stage.z.shape))
        if not fits(found, stage.z):
            return None
        x = _flat(found)
    kept = np.empty_like(z) if keep and x is None else None
    new, new_saved = np.empty_like(z), None if saved is None else np.empty_like(z)
    draw = None if given is not None or stage.words is None else numpy_noise.writer(stage.words, stage.draw)

    def advance(scratch: numpy_noise.Scratch, span: numpy_noise.Span) -> None:
        parts = list(_pieces(span, whole[1]))
        first, end = parts[0].start, parts[-1].stop
        drawn = None if draw is None else np.empty(end - first, dtype)
        if draw is not None and drawn is not None:
            draw(scratch, drawn.reshape(span.samples.stop - span.samples.start, -1), span)
        room, free = np.empty((2, min(PIECE, end - first)), dtype)
        for part in parts:
            here, spare = z[part], free[: part.stop - part.start]
            its_x = None if x is None else x[part]
            if its_x is None:
                own = room[: part.stop - part.start] if kept is None else kept[part]
                its_x = _sum(values, for_x, (here, y[part]), here, own, spare)
                if clip is not None:
                    its_x = np.clip(its_x, clip.low, clip.high, out=own)
                if kept is not None:
                    _put(its_x, own)
            eps = drawn[part.start - first : part.stop - first] if drawn is not None else _at(given, part)
            arrays = (here, _at(saved, part), eps, its_x, *(array[part] for array in past))
            _put(_sum(values, for_z, arrays, here, new[part], spare), new[part])
            if new_saved is not None:
                _put(_sum(values, for_saved, arrays, here, new_saved[part], spare), new_saved[part])

    numpy_noise.spread(whole, advance)
    shaped = (None if array is None else array.reshape(stage.z.shape) for array in (new, new_saved, x, kept))
    z, saved, x, kept = shaped
    return z, saved, kept if x is None else x


def _flat(array: Array | None) -> Any:
    return None if array is None else array.reshape(-1)


def _at(array: Array | None, part: slice) -> Any:
    return None if array is None else array[part]


def _pieces(span: numpy_noise.Span, size: int) -> Iterator[slice]:
    """Yield a span of samples of a size as pieces of the flat array."""
    start, end = span.samples.start * size + span.elements.start, (span.samples.stop - 1) * size + span.elements.stop
    for first in range(start, end, PIECE):
        yield slice(first, min(first + PIECE, end))


def _put(value: Array, to: Array) -> None:
    """Write a sum to where it belongs, unless it was computed there."""
    if value is not to and not np.may_share_memory(value, to):
        to[...] = value


def _sum(
    values: list[Any],
    terms: Terms,
    parts: Sequence[Any],
    like: Array,
    out: Array | None = None,
    free: Array | None = None,
) -> Array:
    """Return the sum of the terms, from left to right; in `out` where it is new and there is one."""
    total: Any = None
    for value, at in terms:
        if total is None:
            total = parts[at] if value < 0 else np.multiply(values[value], parts[at], out)
        else:
            total = np.add(total, parts[at] if value < 0 else np.multiply(values[value], parts[at], free), out)
    return np.zeros_like(like) if total is None else total


def fits(array: Any, like: Array) -> bool:
    """Return whether an array is one of NumPy, like another one and in one piece of memory."""
    return (
        type(array) is np.ndarray
        and array.dtype == like.dtype
        and array.shape == like.shape
        and array.flags.c_contiguous
    )


def serves(z: Any) -> bool:
    """Return whether stages run here on a state: in one piece, and of a dtype that it is computed in."""
    return type(z) is np.ndarray and z.dtype in DTYPES and z.flags.c_contiguous and z.ndim > 0
