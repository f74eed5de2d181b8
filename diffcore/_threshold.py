"""Thresholds of x-hat: the public names are those of `diffcore.guidance`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from diffcore import _array, _check, _layout
from diffcore._array import Array


@dataclass(frozen=True)
class Clip:
    """x -> min(max(x, low), high): what `clip` returns."""

    parts: ClassVar = ()
    low: float
    high: float

    def __call__(self, x: Array) -> Array:
        xp = _array.namespace("guidance.clip", x=x)
        return xp.clip(x, self.low, self.high)


def clip(low: float = -1.0, high: float = 1.0) -> Clip:
    """Return the static threshold, a `transform_x` for `diffcore.sample`: x -> min(max(x, low), high).

    Args:
        low, high: the range of the data, low < high, finite.

    Raises:
        ValueError: low >= high, or not finite.

    Source: Saharia et al. 2022 (arXiv 2205.11487), sec. 2.3.

    >>> import numpy as np
    >>> clip(-1.0, 1.0)(np.array([-3.0, 0.5, 2.0]))
    array([-1. ,  0.5,  1. ])
    """
    hint = "" if isinstance(low, (int, float)) else "it is called before: transform_x=guidance.clip(-1.0, 1.0)"
    low = _check.number("guidance.clip", "low", low, hint=hint)
    return Clip(low, _check.number("guidance.clip", "high", high, low, open_low=True))


@dataclass(frozen=True)
class DynamicThreshold:
    """x -> clip(x, -s, s) bound / s, s = max(bound, a quantile of |x|): what `dynamic_threshold` returns."""

    parts: ClassVar = ()
    percentile: float
    bound: float

    def __call__(self, x: Array) -> Array:
        xp = _array.namespace("guidance.dynamic_threshold", x=x)
        wide = _array.widen(xp, x)
        if math.prod(wide.shape[1:]) == 0:
            return x
        s = xp.reshape(self.limits(wide), (wide.shape[0],) + (1,) * (wide.ndim - 1))
        return xp.astype(xp.minimum(xp.maximum(wide, -s), s) * (self.bound / s), x.dtype, copy=False)

    def limits(self, x: Array) -> Array:
        """Return s of each sample, (B,), of x of at least float32."""
        xp = _array.library(x)
        s = _quantile(xp, _array.flat(xp.abs(x)), self.percentile)
        return xp.maximum(s, self.bound * xp.ones_like(s))


def dynamic_threshold(percentile: float = 0.995, *, bound: float = 1.0) -> DynamicThreshold:
    r"""Return the dynamic threshold, a `transform_x` for `diffcore.sample`, which pulls saturated pixels inwards.

        x -> clip(x, -s, s) bound / s,    s = max(bound, quantile of |x| over the sample)

    Args:
        percentile: which quantile, in [0, 1]; between two elements it is interpolated, as by numpy.quantile.
        bound: the data are in [-bound, bound].

    Raises:
        ValueError: `percentile` or `bound` is out of range.

    Source: Saharia et al. 2022 (arXiv 2205.11487), sec. 2.3 and app. E.

    >>> import numpy as np
    >>> dynamic_threshold(0.5)(np.array([[-4.0, 1.0, 2.0]]))
    array([[-1. ,  0.5,  1. ]])
    """
    function = "guidance.dynamic_threshold"
    percentile = _check.number(function, "percentile", percentile, 0, 1, hint="such as 0.995")
    return DynamicThreshold(percentile, _check.number(function, "bound", bound, 0, open_low=True))


def _quantile(xp: Any, rows: Array, q: float) -> Array:
    """Return the quantile of each row by linear interpolation, from the nearer of the two elements."""
    last = rows.shape[1] - 1
    below = min(math.floor(q * last), last)
    part = q * last - below
    largest = rows.shape[1] - below
    if _array.name(xp) == "torch" and not _layout.divided(rows) and 4 * largest <= rows.shape[1]:  # most need no order
        ordered = xp.flip(xp.topk(rows, largest, 1)[0], axis=(1,))
        below = 0
    else:
        ordered = xp.sort(rows, axis=1)
    lower, upper = ordered[:, below], ordered[:, min(below + 1, ordered.shape[1] - 1)]
    return lower + (upper - lower) * part if part < 0.5 else upper - (upper - lower) * (1.0 - part)
