r"""Frequency-decoupled guidance (FDG): one weight for what is coarse, another for what is fine."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from diffcore import _array, _check, _layout
from diffcore._array import Array
from diffcore.guidance._rule import At, Rule, check_over

TAPS = (1.0 / 16.0, 4.0 / 16.0, 6.0 / 16.0, 4.0 / 16.0, 1.0 / 16.0)
"""The binomial filter of a Laplacian pyramid: 1 for a constant, 0 for what alternates."""


@dataclass(frozen=True)
class Bands(Rule):
    """Frequency-decoupled guidance: what `bands` returns, which documents the fields."""

    low: float
    high: float
    octaves: int
    over: tuple[int, ...]

    def __call__(self, at: At) -> Array:
        """Return the guided prediction."""
        coarse = at.difference
        for octave in range(self.octaves):
            for axis in self.over:
                smooth = partial(_smooth, at.xp, axis=axis % coarse.ndim, spacing=2**octave)
                coarse = _layout.mapped(smooth, coarse)
        return at.c + at.weight * (self.high * at.difference + (self.low - self.high) * coarse)


def bands(low: float = 0.5, high: float = 1.0, *, octaves: int = 1, over: int | tuple[int, ...] = (-3, -2)) -> Bands:
    r"""Return frequency-decoupled guidance, a `rule` for `classifier_free`.

        guided = c + w (low L d + high (d - L d)),    d = c - u

    L is a low-pass filter, the binomial one (1 4 6 4 1) / 16 along each axis, at spacings of 1, 2, 4, ... octave by octave; edges
    are mirrored. It is linear, so that the result is the same whatever the denoiser predicts.

    Args:
        low, high: factors of the weight for what is coarse and what is fine. The paper's w_low and w_high of scale = 1 + w are
            1 + low w and 1 + high w.
        octaves: of the low-pass filter, at least 1; each halves the band that counts as coarse.
        over: the axes of the filter: those of a picture or a video (B, T, H, W, C) by default. With frames, -4 there, all frames
            must be at one level.

    At low = high = 1 it is classifier-free guidance.

    Raises:
        ValueError: a factor that is not finite, no octave, or axis 0, the batch.

    Source: Sadat et al. 2025 (arXiv 2506.19713), alg. 1, with a filter in place of a pyramid.

    >>> import numpy as np, diffcore as dc
    >>> c = 3.0 + (-1.0) ** np.arange(6.0).reshape(1, 6)   # coarse 3, fine 1
    >>> guided = dc.guidance.classifier_free(
    ...     lambda z, l: c, lambda z, l: 0 * c, weight=2.0, rule=bands(0.0, 1.0, over=-1))
    >>> guided(np.zeros((1, 6)), 0.0)
    array([[6., 0., 6., 0., 6., 0.]])
    """
    function = "guidance.bands"
    axes = check_over(function, over)
    if axes is None or 0 in axes:
        raise _check.error(ValueError, function, "over", "be axes other than 0, the batch", over)
    factors = [_check.number(function, name, value) for name, value in (("low", low), ("high", high))]
    return Bands(factors[0], factors[1], _check.integer(function, "octaves", octaves, 1, 16), axes)


def _smooth(xp: Any, array: Array, axis: int, spacing: int) -> Array:
    """Return the binomial filter along an axis, whose edges are mirrored."""
    size = array.shape[axis]
    if size == 1:
        return array
    total = None
    for at, tap in enumerate(TAPS):
        places = np.arange(size) + spacing * (at - 2)
        places = np.abs((places + size - 1) % (2 * size - 2) - (size - 1))  # ..., 2, 1, 0, 1, 2, ..., n - 1, n - 2, ...
        part = tap * xp.take(array, xp.asarray(places, device=_array.device(array)), axis=axis)
        total = part if total is None else total + part
    return total
