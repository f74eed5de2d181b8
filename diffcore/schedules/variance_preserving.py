"""Schedules whose usual scaling is variance preserving."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from diffcore import _array
from diffcore._array import Array
from diffcore.schedules._base import Pair, Schedule, nearer, softplus


class _LinearRate(Schedule):
    """What the SDEs with a rate beta(t) linear in t share: B(t), the integral of the rate, and its inverse."""

    beta_min: float
    beta_max: float

    def __post_init__(self) -> None:
        self._check_number("beta_min", 0.0)
        self._check_number("beta_max", 0.0)
        self._check_scaling()
        if self.beta_min > self.beta_max:
            raise ValueError(
                f"schedules.{type(self).__name__}: `beta_min` must be at most `beta_max`, got {self.beta_min!r} and "
                f"{self.beta_max!r}; exchange them"
            )

    def _rate(self, t: Array) -> Array:
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def _integral(self, t: Array) -> Array:
        return t * (self.beta_min + (0.5 * (self.beta_max - self.beta_min)) * t)

    def _time_of(self, xp: Any, integral: Array) -> Pair:
        last = 0.5 * (self.beta_min + self.beta_max)  # B(1); an infinite B would give inf / inf below
        integral = xp.where(integral > last, last * xp.ones_like(integral), integral)
        root = xp.sqrt(self.beta_min**2 + 2.0 * (self.beta_max - self.beta_min) * integral)
        t = 2.0 * integral / (self.beta_min + root)
        return t, 1.0 - t


@dataclass(frozen=True, kw_only=True)
class LinearBeta(_LinearRate):
    r"""The schedule of the VP-SDE, whose rate beta(t) is linear in t.

        alpha^2 = e^{-B},  lambda = -(B + log(1 - e^{-B})),  B(t) = beta_min t + (beta_max - beta_min) t^2 / 2

    lambda(0) = inf. The inverse has no cancellation either:

        B = log(1 + e^{-lambda}),  t = 2 B / (beta_min + sqrt(beta_min^2 + 2 (beta_max - beta_min) B))

    Equal rates give the exponential schedule, alpha^2 = e^{-beta t}.

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

    def _log_snr(self, xp: Any, t: Array, _rest: Array, /) -> Array:
        integral = self._integral(t)
        return -(integral + xp.log(-xp.expm1(-integral)))

    def _time(self, xp: Any, log_snr: Array, /) -> Pair:
        return self._time_of(xp, softplus(xp, -log_snr))

    def _slope(self, xp: Any, t: Array, _rest: Array, /) -> Array:
        return -self._rate(t) / (0.0 - xp.expm1(-self._integral(t)))  # 0.0 - 0.0 is 0.0 whatever the sign of the second


@dataclass(frozen=True, kw_only=True)
class SubVP(_LinearRate):
    r"""The log-SNRs of the sub-VP SDE, alpha^2 = e^{-B} and sigma = 1 - e^{-B}, with B(t) as in `LinearBeta`.

        lambda = -(B + 2 log(1 - e^{-B})),  B = 2 arsinh(e^{-lambda / 2} / 2)

    lambda(0) = inf. The variance of that SDE is below that of the VP-SDE, and alpha^2 + sigma^2 below 1, so it has none of
    the three scalings. Scaling the state by a number that depends on the level changes neither the ODE nor the SDE, and so
    a sampler on this schedule with any scaling draws what one of the sub-VP SDE draws. Only a network that was trained on
    sub-VP states needs care: `gain` is the factor from a "vp" state to one of its own.

    Args:
        beta_min, beta_max: the rate at t = 0 and at t = 1, positive, beta_min <= beta_max.
        scaling: "vp", "ve" or "flow".

    Raises:
        ValueError: a rate out of range, or an unknown scaling.

    Source: Song et al. 2021 (arXiv 2011.13456), eq. 14 and app. B, eq. 29.

    >>> SubVP().time(SubVP().log_snr(0.25)).round(12)
    np.float64(0.25)
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    scaling: str = "vp"

    def gain(self, log_snr: Array) -> Array:
        r"""Return sqrt(alpha^2 + sigma^2) of the sub-VP SDE at a log-SNR, in (0.86, 1]: its state is gain times the "vp" state.

            z_subvp = gain(lambda) z_vp,  gain^2 = e^{-B} + (1 - e^{-B})^2

        Args:
            log_snr: a number or a floating array of any shape, infinities included.

        Returns:
            An array of the shape, library and device of `log_snr`.

        Raises:
            TypeError: `log_snr` is an integer array, or not an array.

        >>> SubVP().gain(math.inf), SubVP().gain(-math.inf)
        (np.float64(1.0), np.float64(1.0))
        """
        xp, log_snr = _array.level_array("schedules.SubVP.gain", "log_snr", log_snr)
        with _array.quiet(xp):
            alpha_2 = xp.exp(-self._integral_of(xp, log_snr))
            return _array.scalar(xp.sqrt(alpha_2 + (1.0 - alpha_2) ** 2))

    def _integral_of(self, xp: Any, log_snr: Array) -> Array:
        return 2.0 * xp.asinh(0.5 * xp.exp(-0.5 * log_snr))

    def _log_snr(self, xp: Any, t: Array, _rest: Array, /) -> Array:
        integral = self._integral(t)
        return -(integral + 2.0 * xp.log(-xp.expm1(-integral)))

    def _time(self, xp: Any, log_snr: Array, /) -> Pair:
        return self._time_of(xp, self._integral_of(xp, log_snr))

    def _slope(self, xp: Any, t: Array, _rest: Array, /) -> Array:
        return -self._rate(t) / xp.tanh(0.5 * self._integral(t))


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


@dataclass(frozen=True, kw_only=True)
class Cauchy(Schedule):
    r"""The schedule under which uniform times have Cauchy distributed log-SNRs, cut to an interval.

        lambda(t) = mu + gamma cot(pi (a t + b)),  pi b = arccot((lmax - mu) / gamma),  pi (a + b) = arccot((lmin - mu) / gamma)

    Infinite ends are those of the paper, a t + b = t; a Cauchy distribution has such tails that lambda(1e-3) is 318 then.

    Args:
        mu: the centre, finite.
        gamma: the width, positive.
        log_snr_min: lambda at t = 1; -inf does not cut that end.
        log_snr_max: lambda at t = 0; inf does not cut that end.
        scaling: "vp", "ve" or "flow".

    Raises:
        ValueError: a setting out of range or out of order, or an unknown scaling.

    Source: Hang et al. 2024 (arXiv 2407.03297), sec. 2.

    >>> Cauchy(mu=1.0, log_snr_min=-math.inf, log_snr_max=math.inf).log_snr(0.25).round(12)
    np.float64(2.0)
    """

    mu: float = 0.0
    gamma: float = 1.0
    log_snr_min: float = -20.0
    log_snr_max: float = 20.0
    scaling: str = "vp"

    def __post_init__(self) -> None:
        self._check_number("mu")
        self._check_number("gamma", 0.0)
        self._check_number("log_snr_min", closed=True)
        self._check_number("log_snr_max", closed=True)
        self._check_order("log_snr_min", "log_snr_max")
        self._check_scaling()

    def _parts(self) -> tuple[float, float, float]:
        """Return a, b, c, which add up to 1."""
        low, high = ((end - self.mu) / self.gamma for end in (self.log_snr_min, self.log_snr_max))
        b, c = math.atan2(1.0, high) / math.pi, math.atan2(1.0, -low) / math.pi
        if low > 0.0:  # all before the centre: a is the difference of two small angles
            return math.atan2(1.0, low) / math.pi - b, b, c
        if high < 0.0:
            return math.atan2(1.0, -high) / math.pi - c, b, c
        return 1.0 - b - c, b, c

    def _angle(self, xp: Any, t: Array, rest: Array) -> tuple[Array, Array]:
        """Return where u is before the centre, and pi times the smaller of u and 1 - u."""
        a, b, c = self._parts()
        u, v = a * t + b, a * rest + c
        return u < v, math.pi * xp.where(u < v, u, v)

    def _log_snr(self, xp: Any, t: Array, rest: Array, /) -> Array:
        early, angle = self._angle(xp, t, rest)
        distance = self.gamma / xp.tan(angle)
        return self.mu + xp.where(early, distance, -distance)

    def _time(self, xp: Any, log_snr: Array, /) -> Pair:
        a, b, c = self._parts()
        offset = (log_snr - self.mu) / self.gamma
        early = offset > 0.0
        tail = xp.atan2(xp.ones_like(offset), xp.where(early, offset, -offset)) / math.pi
        return nearer(xp, early, (tail - b) / a, (tail - c) / a)

    def _slope(self, xp: Any, t: Array, rest: Array, /) -> Array:
        _, angle = self._angle(xp, t, rest)
        return (-math.pi * self.gamma * self._parts()[0]) / xp.sin(angle) ** 2
