"""The last term of the bound, -log p(x | z_0), by a decoder, and the checks that all terms share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffcore import _array, _check, _streams, noise
from diffcore._array import Array
from diffcore.schedules._base import scaling_of

BLOCK = 16
"""How many bins are summed at once: a few large operations, in memory that does not grow with the number of bins."""


@dataclass(frozen=True)
class Bins:
    r"""The decoder of data that takes `count` values from `low` to `high`, (high - low) / (count - 1) apart.

        p(x_j = v | z_0) = exp(-(1/2) SNR_0 (z_0j / alpha_0 - v)^2) / sum over all values v' of the same

    Nats under it are of probabilities. 256 values from -1 to 1 are those of pictures, uint8 / 127.5 - 1.

    Args:
        count: at least 2.
        low, high: the first and the last value.

    Raises:
        TypeError: `count` is not an int, `low` or `high` not a number.
        ValueError: count < 2, or low >= high.

    Source: Kingma et al. 2021 (arXiv 2107.00630), eq. 8 and below.

    >>> Bins().width * 255
    2.0
    """

    count: int = 256
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        _check.integer("likelihood.Bins", "count", self.count, 2)
        low = _check.number("likelihood.Bins", "low", self.low)
        _check.number("likelihood.Bins", "high", self.high, low, open_low=True)

    @property
    def width(self) -> float:
        """How far apart two values are."""
        return (self.high - self.low) / (self.count - 1)


@dataclass(frozen=True)
class Density:
    r"""The decoder of continuous data: p(x | z_0) = N(x; z_0 / alpha_0, 1 / SNR_0), of which E[-log p] is known.

        E[-log p(x | z_0)] = (D/2) (1 + log(2 pi) - lambda_0),    D elements a sample

    Nats under it are of a density: `bits_per_dim` takes the width of a bin in the units of x.

    Source: Kingma et al. 2021 (arXiv 2107.00630), eq. 8, without its bins.
    """


def reconstruction(x: Array, schedule: Any, *, decoder: Bins | Density | None = Bins(), seed: Any = 0) -> Array:
    r"""Return an unbiased estimate of E[-log p(x | z_0)], in nats.

    Args:
        x: clean data, a floating array (B, ...).
        schedule: a schedule of `diffcore.schedules`; its cleanest level, t = 0, counts.
        decoder: p(x | z_0). `Bins(256, -1.0, 1.0)` for data that takes a few values, `Density()` for continuous data, or
            None for 0: the bound is then without this term.
        seed: one int, of which each sample gets its own key, or one int or key per sample, see `noise.keys`; read by `Bins` only.

    Returns:
        An array of shape (B,), at least float32. Under `Bins` near 0 where the noise at t = 0 is far below the width of
        a bin, in the memory of 16 copies of `x`, however many bins; inf for a sample with other values than
        theirs, where they cannot be read (traced, or on another device).

    Raises:
        ValueError: `x` has other values than those of `Bins`; the level at t = 0 is not finite.
        TypeError: `x` is not a floating array, `schedule` not a schedule, or `decoder` not a decoder.

    Source: Kingma et al. 2021 (arXiv 2107.00630), eq. 8 and below.

    >>> import diffcore as dc, numpy as np
    >>> schedule = dc.schedules.LinearLogSNR(log_snr_min=-20.0, log_snr_max=20.0)
    >>> reconstruction(np.ones((1, 4)), schedule).round(6) + 0.0
    array([0.])
    >>> reconstruction(np.ones((1, 4)), schedule, decoder=Density()).round(6)
    array([-34.324246])
    """
    function = "likelihood.reconstruction"
    xp = _array.check_data(function, x=x)
    scaling_of(function, "schedule", schedule)
    if decoder is not None:
        _check.instance(
            function, "decoder", decoder, (Bins, Density), "likelihood.Bins(), likelihood.Density() or None"
        )
    log_snr = float(schedule.log_snr(0.0))
    check_finite(function, np.array([log_snr]))
    wide = _array.widen(xp, x)
    if not isinstance(decoder, Bins):
        each = 0.5 * (1.0 + math.log(2.0 * math.pi) - log_snr) if decoder else 0.0
        return total(xp, xp.zeros_like(wide) + each)
    bins, low, width = decoder.count, decoder.low, decoder.width
    ratio = math.exp(-0.5 * log_snr)  # sigma / alpha
    offset = ratio * normal(wide, seed, draw=0, stream=_streams.RECONSTRUCTION)  # z / alpha - x
    # values are counted in bins, so that rounding x to float32 does no harm
    own = xp.clip(xp.round((wide - low) / width), 0.0, bins - 1.0)
    off = _off_the_values(function, decoder, x, wide - (low + width * own))
    nearest = xp.clip(xp.round(own + offset / width), 0.0, bins - 1.0)

    # With d = z / alpha - x and g = v - x, (d - g)^2 - d^2 = g (g - 2 d): no square of a large number is subtracted
    # from another. The largest term is that of the nearest value, so the sum neither over- nor underflows.
    def exponent(gap: Array, offset: Array) -> Array:
        return -0.5 * (gap / ratio) * ((gap - 2.0 * offset) / ratio)

    largest = exponent(width * (nearest - own), offset)
    own, offset, top = own[..., None], offset[..., None], largest[..., None]
    sum_of = xp.zeros_like(wide)
    for first in range(0, bins, BLOCK):
        values = _array.table_for(np.arange(first, min(first + BLOCK, bins), dtype=np.float64), wide)
        sum_of = sum_of + xp.sum(xp.exp(exponent(width * (values - own), offset) - top), axis=-1)
    return total(xp, xp.where(off, math.inf * xp.ones_like(largest), largest + xp.log(sum_of)))


def _off_the_values(function: str, decoder: Bins, x: Array, distance: Array) -> Array:
    """Return where data differs from all values by more than the rounding of its dtype; raise where the host knows it."""
    xp = _array.library(x)
    rounding = 4.0 * float(xp.finfo(x.dtype).eps) * max(abs(decoder.low), abs(decoder.high))
    off = ~(xp.abs(distance) <= 0.01 * decoder.width + rounding)  # NaN too
    found = _array.known(off)
    if found is not None and np.any(found):
        must = f"have only the {decoder.count} values from {decoder.low!r} to {decoder.high!r} of {decoder!r}"
        hint = "round to them, give the likelihood.Bins of `x`, or, for continuous data, decoder=likelihood.Density()"
        raise _check.error(ValueError, function, "x", must, float(_array.known(x)[found != 0].flat[0]), hint)
    return off


def normal(like: Array, seed: Any, *, draw: int, stream: int) -> Array:
    """Return standard normals of the shape, dtype and library of an array."""
    return noise.normal(seed, draw, tuple(like.shape), like=like, stream=stream)


def total(xp: Any, each: Array, lead: int = 1) -> Array:
    """Return the sum over all but the first `lead` axes."""
    return xp.sum(_array.flat(each, lead), axis=-1)


def check_finite(function: str, log_snr: np.ndarray[Any, Any]) -> None:
    """Raise ValueError unless all log-SNRs are finite."""
    if not np.all(np.isfinite(log_snr)):
        hint = "the bound is infinite at others; use a schedule with finite ends, such as schedules.Cosine()"
        found = log_snr[~np.isfinite(log_snr)][0]
        raise _check.error(ValueError, function, "schedule", "have finite log-SNRs at its ends", found, hint)
