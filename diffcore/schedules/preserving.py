"""Schedules whose usual scaling is variance preserving."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from diffcore._array import Array
from diffcore.schedules._base import ANY, POSITIVE, Schedule


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    r"""The cosine schedule, truncated so that its log-SNR runs from log_snr_max to log_snr_min: the paper's.

        lambda(t) = -2 log tan(u),  u = a t + b,  b = atan(e^{-lmax / 2}),  a = atan(e^{-lmin / 2}) - b

    Under "vp" alpha = cos u and sigma = sin u. Past u = pi / 4 it is evaluated from the complement
    v = a (1 - t) + atan(e^{lmin / 2}) = pi / 2 - u, which keeps the digits that tan loses near its pole.

    Args:
        log_snr_min: lambda at t = 1, from -inf (no truncation) up.
        log_snr_max: lambda at t = 0, up to inf (no truncation).
        scaling: "vp", "ve" or "flow".

    Raises:
        ValueError: the ends are not in order, or the scaling is unknown.

    Source: Nichol & Dhariwal 2021 (arXiv 2102.09672), eq. 17; truncated as in Ho et al. 2022 (arXiv 2204.03458), sec.
    2.

    >>> Cosine().log_snr(1.0).round(9)
    np.float64(-20.0)
    """

    log_snr_min: float = -20.0
    log_snr_max: float = 20.0
    scaling: str = "vp"

    def __post_init__(self) -> None:
        self._check()
        self._check_order("log_snr_min", "log_snr_max")

    def _angles(self) -> tuple[float, float, float]:
        b = math.atan(_exp(-0.5 * self.log_snr_max))
        return math.atan(_exp(-0.5 * self.log_snr_min)) - b, b, math.atan(_exp(0.5 * self.log_snr_min))

    def _log_snr(self, xp: Any, t: Array) -> Array:
        a, b, c = self._angles()
        u, v = a * t + b, a * (1.0 - t) + c
        first = u < v
        return xp.where(first, -2.0, 2.0) * xp.log(xp.tan(xp.where(first, u, v)))

    def _time(self, xp: Any, log_snr: Array) -> Array:
        a, b, c = self._angles()
        tangent = xp.exp(-0.5 * xp.abs(log_snr))
        angle = xp.atan(tangent)
        return xp.where(log_snr > 0, (angle - b) / a, 1.0 - (angle - c) / a)

    def _slope(self, xp: Any, t: Array) -> Array:
        a, b, c = self._angles()
        u, v = a * t + b, a * (1.0 - t) + c
        return -4.0 * a / xp.sin(2.0 * xp.where(u < v, u, v))


@dataclass(frozen=True, kw_only=True)
class LinearBeta(Schedule):
    r"""The schedule of the VP-SDE, whose rate beta(t) grows linearly.

        alpha^2 = e^{-B},  lambda = -log(e^B - 1) = -(B + log(1 - e^{-B})),  B(t) = beta_min t + (beta_max - beta_min)
        t^2 / 2

    lambda(0) = inf.

    Args:
        beta_min, beta_max: beta(0) >= 0 and beta(1) > 0.
        scaling: "vp", "ve" or "flow".

    Raises:
        ValueError: a rate out of range, or an unknown scaling.

    Source: Song et al. 2021 (arXiv 2011.13456), app. C, eq. 32-33.

    >>> LinearBeta().log_snr(0.0)
    np.float64(inf)
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    scaling: str = "vp"

    def __post_init__(self) -> None:
        self._check(beta_min=(-1e-300, math.inf), beta_max=POSITIVE)

    def _integral(self, t: Array) -> Array:
        return t * (self.beta_min + (0.5 * (self.beta_max - self.beta_min)) * t)

    def _log_snr(self, xp: Any, t: Array) -> Array:
        integral = self._integral(t)
        return -(integral + xp.log(-xp.expm1(-integral)))

    def _time(self, xp: Any, log_snr: Array) -> Array:
        # B = log(1 + e^{-lambda}); then the root of B(t) = B, in the form without cancellation
        negative = xp.where(log_snr < 0, log_snr, -log_snr)
        integral = xp.log1p(xp.exp(negative)) + xp.where(log_snr < 0, -log_snr, xp.zeros_like(log_snr))
        root = xp.sqrt(self.beta_min**2 + 2.0 * (self.beta_max - self.beta_min) * integral)
        safe = xp.where(self.beta_min + root > 0.0, self.beta_min + root, xp.ones_like(root))
        return xp.where(self.beta_min + root > 0.0, 2.0 * integral / safe, xp.zeros_like(root))

    def _slope(self, xp: Any, t: Array) -> Array:
        rate = self.beta_min + (self.beta_max - self.beta_min) * t
        return rate / xp.expm1(-self._integral(t))


@dataclass(frozen=True, kw_only=True)
class LinearLogSNR(Schedule):
    r"""The schedule that is linear in log-SNR.

        lambda(t) = (1 - t) log_snr_max + t log_snr_min

    Args:
        log_snr_min, log_snr_max: lambda at t = 1 and at t = 0, finite.
        scaling: "vp", "ve" or "flow".

    Raises:
        ValueError: the ends are not finite or not in order, or the scaling is unknown.

    Source: Kingma et al. 2021 (arXiv 2107.00630), sec. 5 and app. H (the fixed linear schedule).

    >>> LinearLogSNR(log_snr_min=-6.0, log_snr_max=8.0).log_snr(0.5)
    np.float64(1.0)
    """

    log_snr_min: float = -10.0
    log_snr_max: float = 10.0
    scaling: str = "vp"

    def __post_init__(self) -> None:
        self._check(log_snr_min=ANY, log_snr_max=ANY)
        self._check_order("log_snr_min", "log_snr_max")

    def _log_snr(self, xp: Any, t: Array) -> Array:
        return (1.0 - t) * self.log_snr_max + t * self.log_snr_min

    def _time(self, xp: Any, log_snr: Array) -> Array:
        return (self.log_snr_max - log_snr) / (self.log_snr_max - self.log_snr_min)

    def _slope(self, xp: Any, t: Array) -> Array:
        return xp.ones_like(t) * (self.log_snr_min - self.log_snr_max)


@dataclass(frozen=True, kw_only=True)
class Sigmoid(Schedule):
    r"""The schedule whose alpha^2 is a section of a sigmoid, rescaled to run from 1 to 0.

        alpha^2 = (s(u_1) - s(u)) / (s(u_1) - s(u_0)),  u = (start + t (end - start)) / tau,  s the logistic function,
        lambda = log [ sinh((u_1 - u) / 2) / cosh(u_1 / 2) ] - log [ sinh((u - u_0) / 2) / cosh(u_0 / 2) ]

    lambda runs from inf to -inf.

    Args:
        start, end: where the section begins and ends, finite, start < end.
        tau: the temperature, positive.
        scaling: "vp", "ve" or "flow".

    Raises:
        ValueError: a setting out of range, or an unknown scaling.

    Source: Jabri et al. 2023 (arXiv 2212.11972), app. B; the second line follows from
    s(a) - s(b) = sinh((a - b) / 2) / (2 cosh(a / 2) cosh(b / 2)).

    >>> Sigmoid().log_snr(0.5).round(12)
    np.float64(0.0)
    """

    start: float = -3.0
    end: float = 3.0
    tau: float = 1.0
    scaling: str = "vp"

    def __post_init__(self) -> None:
        self._check(start=ANY, end=ANY, tau=POSITIVE)
        self._check_order("start", "end")

    def _width(self) -> float:
        return (self.end - self.start) / self.tau

    def _offset(self) -> float:
        """Return log(cosh(u_0 / 2) / cosh(u_1 / 2))."""
        return _log_cosh(0.5 * self.start / self.tau) - _log_cosh(0.5 * self.end / self.tau)

    def _log_snr(self, xp: Any, t: Array) -> Array:
        half = 0.5 * self._width()
        return _log_sinh(xp, half * (1.0 - t)) - _log_sinh(xp, half * t) + self._offset()

    def _time(self, xp: Any, log_snr: Array) -> Array:
        # sinh(h - w) / sinh(w) = R at w = atanh(sinh h / (R + cosh h)), h = width / 2; from the nearer end
        half = 0.5 * self._width()
        log_ratio = log_snr - self._offset()
        ratio = xp.exp(xp.where(log_ratio < 0, log_ratio, -log_ratio))
        near = xp.atanh(math.sinh(half) * ratio / (1.0 + ratio * math.cosh(half))) / half
        return xp.where(log_ratio < 0, 1.0 - near, near)

    def _slope(self, xp: Any, t: Array) -> Array:
        half = 0.5 * self._width()
        return -half * (1.0 / xp.tanh(half * (1.0 - t)) + 1.0 / xp.tanh(half * t))


@dataclass(frozen=True, kw_only=True)
class Laplace(Schedule):
    r"""The schedule under which uniform times have Laplace distributed log-SNRs.

        lambda(t) = mu - b log(2 t) for t < 1/2,  mu + b log(2 (1 - t)) else

    lambda runs from inf to -inf.

    Args:
        mu: the centre, finite.
        b: the width, positive.
        scaling: "vp", "ve" or "flow".

    Raises:
        ValueError: a setting out of range, or an unknown scaling.

    Source: Hang et al. 2024 (arXiv 2407.03297), table 1.

    >>> Laplace(mu=1.0).log_snr(0.5)
    np.float64(1.0)
    """

    mu: float = 0.0
    b: float = 0.5
    scaling: str = "vp"

    def __post_init__(self) -> None:
        self._check(mu=ANY, b=POSITIVE)

    def _log_snr(self, xp: Any, t: Array) -> Array:
        early = t < 0.5
        distance = -self.b * xp.log(2.0 * xp.where(early, t, 1.0 - t))
        return self.mu + xp.where(early, distance, -distance)

    def _time(self, xp: Any, log_snr: Array) -> Array:
        offset = (log_snr - self.mu) / self.b
        tail = 0.5 * xp.exp(xp.where(offset < 0, offset, -offset))
        return xp.where(offset < 0, 1.0 - tail, tail)

    def _slope(self, xp: Any, t: Array) -> Array:
        return -self.b / xp.where(t < 0.5, t, 1.0 - t)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700.0 else math.inf


def _log_cosh(value: float) -> float:
    return abs(value) + math.log1p(math.exp(-2.0 * abs(value))) - math.log(2.0)


def _log_sinh(xp: Any, value: Array) -> Array:
    """Return log(2 sinh(value)) for value >= 0, -inf at 0, without overflow."""
    return value + xp.log(-xp.expm1(-2.0 * value))
