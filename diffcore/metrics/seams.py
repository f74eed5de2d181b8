"""How a long clip holds together where it was put together: its changes at seams against those elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from diffcore import _array, _check
from diffcore._array import Array


class Seams(NamedTuple):
    """What `seams` returns: the ratio, 1 where a seam is like any other place, and its standard error over clips."""

    ratio: float
    error: float


def seams(clips: Array, at: Iterable[int], *, order: int = 1, axis: int = 1) -> Seams:
    r"""Return how much more clips change across their seams than elsewhere, a ratio of mean squares.

        sum over seams of E ||D^k x||^2 / the same elsewhere,    D x_t = x_{t+1} - x_t

    A jump raises it above 1, a clip that freezes or blurs there brings it below. With k = 1 it sees jumps of what is shown, with
    k = 2 of how it moves, such as a bend or a stop. A Frechet distance of windows does not see either: a few
    frames among many, each of which looks right.

    Args:
        clips: (N, T, ...), at least 1 clip, floating.
        at: the number of the first frame after each seam, in [1, T).
        order: k, 1 or 2. A difference counts as one at a seam if it reaches over it.
        axis: that of the frames.

    Returns:
        `Seams(ratio, error)`; the error is by the delta method, and NaN for one clip.

    Raises:
        ValueError: a seam outside the clips; no difference at a seam, or none elsewhere; clips that do not change elsewhere.

    Source: this library; Blattmann et al. 2023 (arXiv 2311.15127) and others report such jumps in words.

    >>> clips = np.cumsum(np.ones((2, 8, 1)), axis=1)
    >>> clips[:, 4:] += 1.0                                             # a step of 2 in place of 1
    >>> seams(clips, [4])
    Seams(ratio=4.0, error=0.0)
    """
    function = "metrics.seams"
    _check.choice(function, "order", order, (1, 2))
    _array.check_floating(function, clips=clips)
    values = _array.to_host(clips, np.float64, function=function, argument="clips", finite=True)
    if values.ndim < 2 or not values.size:
        raise _check.error(ValueError, function, "clips", "have shape (N, T, ...)", clips)
    values = np.moveaxis(values, _check.integer(function, "axis", axis, None), 1)
    frames = values.shape[1]
    places = [_check.integer(function, "at", seam, 1, frames - 1) for seam in at]
    change = np.diff(values, n=order, axis=1).reshape(len(values), frames - order, -1)
    greatest = float(np.abs(change).max(initial=0.0)) or 1.0
    squares = np.mean((change / greatest) ** 2, axis=-1)  # a ratio has no unit, and no square overflows
    over = np.zeros(frames - order, dtype=np.bool_)
    for seam in places:
        over[max(0, seam - order) : seam] = True
    if not over.any() or over.all():
        raise _check.error(ValueError, function, "at", "leave differences at seams and elsewhere", places)
    inside, outside = squares[:, over].mean(axis=1), squares[:, ~over].mean(axis=1)
    if not outside.any():
        raise _check.error(ValueError, function, "clips", "change somewhere else than at their seams", clips)
    ratio = float(inside.mean() / outside.mean())
    if len(values) < 2:
        return Seams(ratio, math.nan)
    spread = np.std(inside - ratio * outside, ddof=1) / math.sqrt(len(values))
    return Seams(ratio, float(spread / outside.mean()))
