"""Schedules whose alpha is a power of time: as a flow, and under the variance preserving scaling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diffcore._array import Array
from diffcore.schedules._base import Pair, Schedule, softplus


@dataclass(frozen=True, kw_only=True)
class Polynomial(Schedule):
    r"""The polynomial flow: under "flow", alpha = (1 - t)^n and sigma = 1 - (1 - t)^n.

        lambda(t) = 2 (n log(1 - t) - log(1 - (1 - t)^n))

    lambda runs from inf to -inf. n = 1 is `Flow`.

    Args:
        power: n, positive.
        scaling: "flow", "vp" or "ve".

    Raises:
        ValueError: `power` is not positive, or an unknown scaling.

    Source: Lipman et al. 2024 (arXiv 2412.06264), `PolynomialConvexScheduler` of its library, whose time runs the other way.

    >>> Polynomial(power=2.0)(0.5).alpha.round(12)
    np.float64(0.25)
    """

    power: float = 2.0
    scaling: str = "flow"

    def __post_init__(self) -> None:
        self._check_number("power", 0.0)
        self._check_scaling()

    def _log_snr(self, xp: Any, t: Array, rest: Array, /) -> Array:
        log_alpha = self.power * _log(xp, rest, t)
        return 2.0 * (log_alpha - xp.log(-xp.expm1(log_alpha)))

    def _time(self, xp: Any, log_snr: Array, /) -> Pair:
        log_rest = -softplus(xp, -0.5 * log_snr) / self.power
        return 0.0 - xp.expm1(log_rest), xp.exp(log_rest)

    def _slope(self, xp: Any, t: Array, rest: Array, /) -> Array:
        return (-2.0 * self.power) / (rest * (0.0 - xp.expm1(self.power * _log(xp, rest, t))))


@dataclass(frozen=True, kw_only=True)
class PolynomialVP(Schedule):
    r"""The polynomial schedule: under "vp", alpha = 1 - t^p.

        lambda(t) = 2 log(1 - t^p) - p log t - log(2 - t^p)

    lambda runs from inf to -inf. p = 1 is LinearVP, alpha = 1 - t and sigma = sqrt(1 - alpha^2); p = 2 is "polynomial_2" of
    the E(3) diffusion of molecules, without the 1e-5 that it adds to keep its ends finite: `truncate` does that.

    Args:
        power: p, positive.
        scaling: "vp", "ve" or "flow".

    Raises:
        ValueError: `power` is not positive, or an unknown scaling.

    Source: Hoogeboom et al. 2022 (arXiv 2203.17003), the noise schedule of its appendix;
    `LinearVPScheduler` of Lipman et al. 2024 (arXiv 2412.06264).

    >>> PolynomialVP()(0.25).alpha.round(12)
    np.float64(0.75)
    """

    power: float = 1.0
    scaling: str = "vp"

    def __post_init__(self) -> None:
        self._check_number("power", 0.0)
        self._check_scaling()

    def _log_snr(self, xp: Any, t: Array, rest: Array, /) -> Array:
        log_lost = self.power * _log(xp, t, rest)
        alpha = -xp.expm1(log_lost)
        return 2.0 * xp.log(alpha) - log_lost - xp.log1p(alpha)

    def _time(self, xp: Any, log_snr: Array, /) -> Pair:
        # t^p = 1 - alpha = sigma^2 / (1 + alpha)
        alpha = xp.exp(-0.5 * softplus(xp, -log_snr))
        log_t = -(softplus(xp, log_snr) + xp.log1p(alpha)) / self.power
        return xp.exp(log_t), 0.0 - xp.expm1(log_t)

    def _slope(self, xp: Any, t: Array, rest: Array, /) -> Array:
        alpha = 0.0 - xp.expm1(self.power * _log(xp, t, rest))
        return (-2.0 * self.power) / (t * alpha * (1.0 + alpha))


def _log(xp: Any, value: Array, rest: Array) -> Array:
    """Return log(value) for value + rest = 1, to full precision; safe to differentiate at both ends."""
    far = rest > 0.25  # XLA's log1p(-0.4) in float64 is wrong in its 14th digit
    half = 0.5 * xp.ones_like(value)
    return xp.where(far, xp.log(xp.where(far, value, half)), xp.log1p(-xp.where(far, 0.0 * half, rest)))
