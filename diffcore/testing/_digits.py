"""Truth with sixty decimal digits, from the standard library alone, and the distance to it in units in the last place."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, localcontext
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

DIGITS = 60


@contextmanager
def digits() -> Iterator[None]:
    """Compute with Decimals of `DIGITS` digits and no bound on the exponent inside this context."""
    with localcontext(Context(prec=DIGITS, Emax=MAX_EMAX, Emin=MIN_EMIN)):
        yield


class Exact(NamedTuple):
    """A level in Decimals."""

    alpha: Decimal
    sigma: Decimal
    log_snr: Decimal


def level(log_snr: float, scaling: str) -> Exact:
    """Return alpha and sigma from their definitions: the condition of the scaling and alpha / sigma = e^{lambda / 2}."""
    at = Decimal(log_snr)
    if log_snr == math.inf:
        return Exact(Decimal(1), Decimal(0), at)
    if log_snr == -math.inf:
        return Exact(Decimal(1 if scaling == "ve" else 0), Decimal("inf") if scaling == "ve" else Decimal(1), at)
    ratio = (at / 2).exp()
    norm = {"vp": (1 + ratio * ratio).sqrt(), "ve": ratio, "flow": 1 + ratio}[scaling]
    return Exact(ratio / norm, 1 / norm, at)


def novelty(s: Exact, t: Exact) -> Decimal:
    """Return 1 - e^{lambda_t - lambda_s}; by its series where the difference would cost digits."""
    if s.log_snr.is_infinite() or t.log_snr.is_infinite():
        return Decimal(0 if s.log_snr == t.log_snr else 1)
    gap = t.log_snr - s.log_snr
    if abs(gap) < Decimal("1e-15"):
        return -gap * (1 + gap / 2 * (1 + gap / 3 * (1 + gap / 4)))
    return 1 - gap.exp()


def posterior(s: Exact, t: Exact) -> tuple[Decimal, Decimal, Decimal]:
    """Return (a, b, variance) of q(z_s | z_t, x), e^{l_t - l_s} (alpha_s / alpha_t) = (alpha_t sigma_s^2) / (alpha_s sigma_t^2)."""
    new = novelty(s, t)
    from_z = Decimal(0) if t.sigma.is_infinite() else t.alpha * s.sigma**2 / (s.alpha * t.sigma**2)
    return from_z, new * s.alpha, new * s.sigma**2


def ulps(found: npt.NDArray[np.floating], truth: Iterable[Decimal]) -> Float64:
    """Return |found - truth| in units in the last place of found's dtype.

    Below the smallest normal number a library may flush to zero, so an ulp is not smaller there than that number is
    wide of zero: a truth below it counts as met by anything between zero and twice that number.
    """
    info = np.finfo(found.dtype)
    tiny, largest = Decimal(float(info.smallest_normal)), Decimal(float(info.max))
    out = []
    for value, want in zip(found.ravel().tolist(), truth, strict=True):
        got = Decimal(value)
        if abs(want) < tiny:
            out.append(0.0 if abs(got) <= 2 * tiny else math.inf)
        elif abs(want) > largest:
            out.append(0.0 if got.is_infinite() and (got > 0) == (want > 0) else math.inf)
        elif not got.is_finite():
            out.append(math.inf)
        else:
            out.append(float(abs(got - want) / Decimal(float(np.spacing(found.dtype.type(abs(want)))))))
    return np.array(out).reshape(found.shape)
