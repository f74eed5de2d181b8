"""The last term of the bound, -log p(x | z_0) of data that takes a few values, and what all terms check."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from diffcore import _array, _streams
from diffcore._array import Array

BLOCK = 16
"""How many bins are summed at once: a few large operations, in memory that does not grow with the number of bins."""


def reconstruction(
    x: Array, schedule: Any, *, bins: int = 256, low: float = -1.0, high: float = 1.0, seed: Any = 0
) -> Array:
    r"""Return an unbiased estimate of E[-log p(x | z_0)] for data that takes `bins` values, in nats.

        p(x_j = v | z_0) = exp(-(1/2) SNR_0 (z_0j / alpha_0 - v)^2) / sum over all values v' of the same

    Args:
        x: clean data (B, ...), each element one of `bins` values from `low` to `high`, (high - low) / (bins - 1) apart;
            what lies between is taken for the nearest.
        schedule: a schedule of `diffcore.schedules`; its cleanest level, t = 0, counts.
        bins: how many values an element takes, at least 2.
        low, high: the first and the last value.
        seed: one int, of which each sample gets its own key, or one int or key per sample: see `noise.keys`.

    Returns:
        An array of shape (B,), at least float32; near 0 where the noise at t = 0 is far below the width of a bin. Takes
        the memory of 16 copies of `x`, however many bins.

    Raises:
        ValueError: bins < 2, or low >= high; the level at t = 0 is not finite.
        TypeError: `x` is no floating array.

    Source: Kingma et al. 2021 (arXiv 2107.00630), eq. 8 and below.

    >>> import diffcore as dc, numpy as np
    >>> schedule = dc.schedules.LinearLogSNR(log_snr_min=-20.0, log_snr_max=20.0)
    >>> reconstruction(np.ones((1, 4)), schedule).round(6) + 0.0
    array([0.])
    """
    function = "likelihood.reconstruction"
    xp = check_data(function, x)
    if not (isinstance(bins, int) and bins >= 2 and math.isfinite(low) and low < high < math.inf):
        raise ValueError(
            f"{function}: `bins`, `low`, `high` are {bins!r}, {low!r}, {high!r}, but take an int >= 2 and low < high"
        )
    log_snr = float(schedule.log_snr(0.0))
    check_finite(function, np.array([log_snr]))
    wide = _array.widen(xp, x)
    ratio = math.exp(-0.5 * log_snr)  # sigma / alpha
    width = (high - low) / (bins - 1)
    offset = ratio * normal(wide, seed, draw=0, stream=_streams.RECONSTRUCTION)  # z / alpha - x
    # values are counted in bins, so that rounding x to float32 does no harm
    own = xp.clip(xp.round((wide - low) / width), 0.0, bins - 1.0)
    nearest = xp.clip(xp.round(own + offset / width), 0.0, bins - 1.0)

    # With d = z / alpha - x and g = v - x, (d - g)^2 - d^2 = g (g - 2 d): no square of a large number is subtracted
    # from another. The largest term is that of the nearest value, so the sum neither over- nor underflows.
    def exponent(gap: Array, offset: Array) -> Array:
        return -0.5 * (gap / ratio) * ((gap - 2.0 * offset) / ratio)

    largest = exponent(width * (nearest - own), offset)
    own, offset, top = own[..., None], offset[..., None], largest[..., None]
    sum_of = xp.zeros_like(wide)
    for first in range(0, bins, BLOCK):
        values = xp.arange(first, min(first + BLOCK, bins), dtype=wide.dtype, device=_array.device(x))
        sum_of = sum_of + xp.sum(xp.exp(exponent(width * (values - own), offset) - top), axis=-1)
    return total(xp, largest + xp.log(sum_of))


def normal(like: Array, seed: Any, *, draw: int, stream: int) -> Array:
    """Return standard normals of the shape, dtype and library of an array."""
    from diffcore import noise

    return noise.normal(seed, draw, tuple(like.shape), like=like, stream=stream)


def total(xp: Any, each: Array) -> Array:
    """Return the sum over all axes but the first."""
    return xp.sum(xp.reshape(each, (each.shape[0], math.prod(each.shape[1:]))), axis=1)


def check_data(function: str, x: Array) -> Any:
    """Return the namespace of data (B, ...), or raise TypeError."""
    xp = _array.namespace(function, x=x)
    if _array.library(x) is None or len(x.shape) < 1:
        raise TypeError(f"{function}: `x` is a number, but takes an array (B, ...)")
    _array.check_floating(function, x=x)
    return xp


def check_finite(function: str, log_snr: np.ndarray[Any, Any]) -> None:
    """Raise ValueError unless all log-SNRs are finite."""
    if not np.all(np.isfinite(log_snr)):
        raise ValueError(
            f"{function}: `schedule` has the log-SNR {log_snr[~np.isfinite(log_snr)][0]} at an end, where the bound is "
            f"infinite; use a schedule with finite ends, such as schedules.Cosine()"
        )
