"""Schedules whose usual scaling is variance preserving."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diffcore._array import Array
from diffcore.schedules._base import Pair, Schedule, nearer, softplus


@dataclass(frozen=True, kw_only=True)
class LinearBeta(Schedule):
    r"""The schedule of the VP-SDE, whose rate beta(t) is linear in t.

        alpha^2 = e^{-B},  lambda = -(B + log(1 - e^{-B})),  B(t) = beta_min t + (beta_max - beta_min) t^2 / 2

    lambda(0) = inf. The inverse has no cancellation either:

        B = log(1 + e^{-lambda}),  t = 2 B / (beta_min + sqrt(beta_min^2 + 2 (beta_max - beta_min) B))

    Args:
        beta_min, beta_max: the rate at t = 0 and at t = 1, positive, beta_min <= beta_max.
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
        self._check_number("beta_min", 0.0)
        self._check_number("beta_max", 0.0)
        self._check_scaling()
        if self.beta_min > self.beta_max:
            raise ValueError(
                f"schedules.LinearBeta: `beta_min` must be at most `beta_max`, got {self.beta_min!r} and "
                f"{self.beta_max!r}; exchange them"
            )

    def _integral(self, t: Array) -> Array:
        return t * (self.beta_min + (0.5 * (self.beta_max - self.beta_min)) * t)

    def _log_snr(self, xp: Any, t: Array, _rest: Array, /) -> Array:
        integral = self._integral(t)
        return -(integral + xp.log(-xp.expm1(-integral)))

    def _time(self, xp: Any, log_snr: Array, /) -> Pair:
        integral = softplus(xp, -log_snr)
        last = 0.5 * (self.beta_min + self.beta_max)  # B(1); an infinite B would give inf / inf below
        integral = xp.where(integral > last, last * xp.ones_like(integral), integral)
        root = xp.sqrt(self.beta_min**2 + 2.0 * (self.beta_max - self.beta_min) * integral)
        t = 2.0 * integral / (self.beta_min + root)
        return t, 1.0 - t

    def _slope(self, xp: Any, t: Array, _rest: Array, /) -> Array:
        rate = self.beta_min + (self.beta_max - self.beta_min) * t
        return -rate / (0.0 - xp.expm1(-self._integral(t)))  # 0.0 - 0.0 is 0.0 whatever the sign of the second


@dataclass(frozen=True, kw_only=True)
class LinearLogSNR(Schedule):
    r"""The schedule that is linear in log-SNR, and exact at both ends.

        lambda(t) = (1 - t) log_snr_max + t log_snr_min

    Args:
        log_snr_min: lambda at t = 1, finite.
        log_snr_max: lambda at t = 0, finite.
        scaling: "vp", "ve" or "flow".

    Raises:
        ValueError: an end out of range or out of order, or an unknown scaling.

    Source: Kingma et al. 2021 (arXiv 2107.00630), the simplest of the noise schedules compared.

    >>> LinearLogSNR().log_snr(0.25)
    np.float64(5.0)
    """

    log_snr_min: float = -10.0
    log_snr_max: float = 10.0
    scaling: str = "vp"

    def __post_init__(self) -> None:
        self._check_number("log_snr_min")
        self._check_number("log_snr_max")
        self._check_order("log_snr_min", "log_snr_max")
        self._check_scaling()

    def _log_snr(self, _xp: Any, t: Array, rest: Array, /) -> Array:
        return rest * self.log_snr_max + t * self.log_snr_min

    def _time(self, _xp: Any, log_snr: Array, /) -> Pair:
        width = self.log_snr_max - self.log_snr_min
        return (self.log_snr_max - log_snr) / width, (log_snr - self.log_snr_min) / width

    def _slope(self, xp: Any, t: Array, _rest: Array, /) -> Array:
        return (self.log_snr_min - self.log_snr_max) * xp.ones_like(t)


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

    Source: Hang et al. 2024 (arXiv 2407.03297), sec. 2.

    >>> Laplace(mu=1.0).log_snr(0.5)
    np.float64(1.0)
    """

    mu: float = 0.0
    b: float = 0.5
    scaling: str = "vp"

    def __post_init__(self) -> None:
        self._check_number("mu")
        self._check_number("b", 0.0)
        self._check_scaling()

    def _log_snr(self, xp: Any, t: Array, rest: Array, /) -> Array:
        distance = -self.b * xp.log(2.0 * xp.where(t < rest, t, rest))
        return self.mu + xp.where(t < rest, distance, -distance)

    def _time(self, xp: Any, log_snr: Array, /) -> Pair:
        offset = (log_snr - self.mu) / self.b
        early = offset > 0.0
        tail = 0.5 * xp.exp(xp.where(early, -offset, offset))
        return nearer(xp, early, tail, tail)

    def _slope(self, xp: Any, t: Array, rest: Array, /) -> Array:
        return -self.b / xp.where(t < rest, t, rest)
