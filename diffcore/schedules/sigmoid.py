"""The sigmoid schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from diffcore._array import Array
from diffcore.schedules._base import Pair, Schedule, nearer, softplus


@dataclass(frozen=True, kw_only=True)
class Sigmoid(Schedule):
    r"""The schedule whose alpha^2 is a section of a falling sigmoid, rescaled to run from 1 to 0.

        alpha^2 = (s(u_1) - s(u)) / (s(u_1) - s(u_0)),  u = (start + t (end - start)) / tau,  s the logistic function,
        lambda = log [sinh((u_1 - u) / 2) / cosh(u_1 / 2)] - log [sinh((u - u_0) / 2) / cosh(u_0 / 2)]

    lambda runs from inf to -inf. The second line, from s(a) - s(b) = sinh((a - b) / 2) / (2 cosh(a / 2) cosh(b / 2)),
    avoids the cancellation of the first.

    Args:
        start, end: where the section begins and ends, finite, start < end.
        tau: the temperature, positive.
        scaling: "vp", "ve" or "flow".

    Raises:
        ValueError: a setting out of range or out of order, or an unknown scaling.

    Source: Jabri et al. 2022 (arXiv 2212.11972); Chen 2023 (arXiv 2301.10972), algorithm 1.

    >>> Sigmoid().log_snr(0.5)
    np.float64(0.0)
    """

    start: float = -3.0
    end: float = 3.0
    tau: float = 1.0
    scaling: str = "vp"

    def __post_init__(self) -> None:
        self._check_number("start")
        self._check_number("end")
        self._check_number("tau", 0.0)
        self._check_order("start", "end")
        self._check_scaling()

    def _half(self) -> float:
        return 0.5 * (self.end - self.start) / self.tau

    def _offset(self) -> float:
        """Return log(cosh(u_0 / 2) / cosh(u_1 / 2))."""
        return _log_cosh(0.5 * self.start / self.tau) - _log_cosh(0.5 * self.end / self.tau)

    def _log_snr(self, xp: Any, t: Array, rest: Array, /) -> Array:
        # log sinh w = w + log(1 - e^{-2 w}) - log 2, twice; half = (u_1 - u_0) / 2, the two w make half (rest - t)
        half = self._half()
        return (
            half * (rest - t)
            + xp.log(-xp.expm1(-2.0 * half * rest))
            - xp.log(-xp.expm1(-2.0 * half * t))
            + self._offset()
        )

    def _time(self, xp: Any, log_snr: Array, /) -> Pair:
        # sinh(half rest) / sinh(half t) = R at t = log(1 + 2 sinh(half) / (R + e^{-half})) / (2 half)
        half = self._half()
        log_ratio = log_snr - self._offset()
        early = log_ratio > 0.0
        small = xp.where(early, -log_ratio, log_ratio)
        log_sinh = half + math.log(-math.expm1(-2.0 * half))
        near = softplus(xp, small + log_sinh - xp.log1p(xp.exp(small - half))) / (2.0 * half)
        return nearer(xp, early, near, near)

    def _slope(self, xp: Any, t: Array, rest: Array, /) -> Array:
        half = self._half()
        return -half * (1.0 / xp.tanh(half * rest) + 1.0 / xp.tanh(half * t))


def _log_cosh(value: float) -> float:
    return abs(value) + math.log1p(math.exp(-2.0 * abs(value))) - math.log(2.0)
