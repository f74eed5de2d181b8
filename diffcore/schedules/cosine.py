"""The cosine schedule, truncated as in the video diffusion paper, and the inverse cosine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from diffcore._array import Array
from diffcore.schedules._base import Pair, Schedule, nearer, softplus


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    r"""The cosine schedule, truncated so that its log-SNR runs from log_snr_max to log_snr_min.

        lambda(t) = -2 log tan(u),  u = a t + b,  b = atan(e^{-lmax / 2}),  a = atan(e^{-lmin / 2}) - b

    Under "vp" alpha = cos u and sigma = sin u. Where u > pi / 4 it is 2 log tan(v) of the complement
    v = a (1 - t) + c = pi / 2 - u, c = atan(e^{lmin / 2}), which avoids the rounding errors of tan near its pole.

    With infinite ends it is the plain cosine, alpha = cos(pi t / 2): that of TrigFlow, whose own time is pi t / 2, and of "GVP".

    Args:
        log_snr_min: lambda at t = 1; -inf does not truncate that end.
        log_snr_max: lambda at t = 0; inf does not truncate that end.
        scaling: "vp", "ve" or "flow".

    Raises:
        ValueError: the ends are NaN or not in order, or the scaling is unknown.
        TypeError: an end is not a number.

    Source: Nichol & Dhariwal 2021 (arXiv 2102.09672), eq. 17; truncated as in Ho et al. 2022 (arXiv 2204.03458), sec.
    2.

    >>> Cosine().log_snr(1.0).round(9)
    np.float64(-20.0)
    """

    log_snr_min: float = -20.0
    log_snr_max: float = 20.0
    scaling: str = "vp"

    def __post_init__(self) -> None:
        self._check_number("log_snr_min", closed=True)
        self._check_number("log_snr_max", closed=True)
        self._check_order("log_snr_min", "log_snr_max")
        self._check_scaling()

    def _angles(self) -> tuple[float, float, float]:
        """Return a, b, c, which add up to pi / 2."""
        low, high = self.log_snr_min, self.log_snr_max
        b, c = math.atan(_exp(-0.5 * high)), math.atan(_exp(0.5 * low))
        if low > 0.0:  # entirely before pi / 4: a is the difference of two small angles
            return math.atan(_exp(-0.5 * low)) - b, b, c
        if high < 0.0:
            return math.atan(_exp(0.5 * high)) - c, b, c
        return 0.5 * math.pi - b - c, b, c

    def _log_snr(self, xp: Any, t: Array, rest: Array, /) -> Array:
        a, b, c = self._angles()
        u, v = a * t + b, a * rest + c
        distance = -2.0 * xp.log(xp.tan(xp.where(u < v, u, v)))
        return xp.where(u < v, distance, -distance)

    def _time(self, xp: Any, log_snr: Array, /) -> Pair:
        a, b, c = self._angles()
        early = log_snr > 0.0
        angle = xp.atan(xp.exp(0.5 * xp.where(early, -log_snr, log_snr)))
        return nearer(xp, early, (angle - b) / a, (angle - c) / a)

    def _slope(self, xp: Any, t: Array, rest: Array, /) -> Array:
        a, b, c = self._angles()
        u, v = a * t + b, a * rest + c
        return -4.0 * a / xp.sin(2.0 * xp.where(u < v, u, v))


@dataclass(frozen=True, kw_only=True)
class InverseCosine(Schedule):
    r"""The inverse cosine schedule: more times near pure noise and near clean data, fewer between.

        alpha^2 = arccos(2 t - 1) / pi,  lambda = log atan2(sqrt(1 - t), sqrt(t)) - log atan2(sqrt(t), sqrt(1 - t))

    lambda runs from inf to -inf. The inverse is t = (1 + cos(pi alpha^2)) / 2 = sin^2(pi sigma^2 / 2) under "vp".

    Args:
        scaling: "vp", "ve" or "flow".

    Raises:
        ValueError: an unknown scaling.

    Source: Hudson et al. 2023 (arXiv 2311.17901), the inverted cosine schedule.

    >>> InverseCosine().log_snr(0.5)
    np.float64(0.0)
    """

    scaling: str = "vp"

    def __post_init__(self) -> None:
        self._check_scaling()

    def _angles(self, xp: Any, t: Array, rest: Array) -> tuple[Array, Array]:
        """Return pi / 2 times alpha^2 and sigma^2."""
        up, down = xp.sqrt(rest), xp.sqrt(t)
        return xp.atan2(up, down), xp.atan2(down, up)

    def _log_snr(self, xp: Any, t: Array, rest: Array, /) -> Array:
        signal, noise = self._angles(xp, t, rest)
        return xp.log(signal) - xp.log(noise)

    def _time(self, xp: Any, log_snr: Array, /) -> Pair:
        signal, noise = (xp.exp(-softplus(xp, sign * log_snr)) for sign in (-1.0, 1.0))
        return xp.sin(0.5 * math.pi * noise) ** 2, xp.sin(0.5 * math.pi * signal) ** 2

    def _slope(self, xp: Any, t: Array, rest: Array, /) -> Array:
        signal, noise = self._angles(xp, t, rest)
        return (-0.25 * math.pi) / (signal * noise * xp.sqrt(t * rest))


def _exp(value: float) -> float:
    return math.exp(value) if value < 700.0 else math.inf
