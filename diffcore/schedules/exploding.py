"""Schedules whose usual scaling is variance exploding, and the flow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from diffcore._array import Array
from diffcore.schedules._base import POSITIVE, Schedule


@dataclass(frozen=True, kw_only=True)
class Geometric(Schedule):
    r"""The schedule of the VE-SDE: sigma / alpha grows geometrically, so lambda is linear in t.

        sigma / alpha = sigma_min (sigma_max / sigma_min)^t,  lambda = -2 log(sigma / alpha)

    Args:
        sigma_min, sigma_max: sigma / alpha at t = 0 and at t = 1, positive.
        scaling: "ve", "vp" or "flow".

    Raises:
        ValueError: a setting out of range, or an unknown scaling.

    Source: Song et al. 2021 (arXiv 2011.13456), app. C, eq. 30-31.

    >>> Geometric(sigma_min=0.01, sigma_max=100.0)(0.5).sigma.round(12)
    np.float64(1.0)
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    scaling: str = "ve"

    def __post_init__(self) -> None:
        self._check(sigma_min=POSITIVE, sigma_max=POSITIVE)
        self._check_order("sigma_min", "sigma_max")

    def _log_snr(self, xp: Any, t: Array) -> Array:
        return (1.0 - t) * (-2.0 * math.log(self.sigma_min)) + t * (-2.0 * math.log(self.sigma_max))

    def _time(self, xp: Any, log_snr: Array) -> Array:
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return (-0.5 * log_snr - low) / (high - low)

    def _slope(self, xp: Any, t: Array) -> Array:
        return xp.ones_like(t) * (2.0 * math.log(self.sigma_min) - 2.0 * math.log(self.sigma_max))


@dataclass(frozen=True, kw_only=True)
class Karras(Schedule):
    r"""The noise levels of EDM: the rho-th root of sigma / alpha is linear in t.

        sigma / alpha = (sigma_min^{1/rho} + t (sigma_max^{1/rho} - sigma_min^{1/rho}))^rho

    Args:
        sigma_min, sigma_max: sigma / alpha at t = 0 and at t = 1, positive.
        rho: positive; EDM uses 7, large values approach `Geometric`.
        scaling: "ve", "vp" or "flow".

    Raises:
        ValueError: a setting out of range, or an unknown scaling.

    Source: Karras et al. 2022 (arXiv 2206.00364), eq. 5.

    >>> Karras()(1.0).sigma.round(9)
    np.float64(80.0)
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    scaling: str = "ve"

    def __post_init__(self) -> None:
        self._check(sigma_min=POSITIVE, sigma_max=POSITIVE, rho=POSITIVE)
        self._check_order("sigma_min", "sigma_max")

    def _roots(self) -> tuple[float, float]:
        return self.sigma_min ** (1.0 / self.rho), self.sigma_max ** (1.0 / self.rho)

    def _log_snr(self, xp: Any, t: Array) -> Array:
        low, high = self._roots()
        return (-2.0 * self.rho) * xp.log(low + t * (high - low))

    def _time(self, xp: Any, log_snr: Array) -> Array:
        low, high = self._roots()
        return (xp.exp(log_snr * (-0.5 / self.rho)) - low) / (high - low)

    def _slope(self, xp: Any, t: Array) -> Array:
        low, high = self._roots()
        return (-2.0 * self.rho * (high - low)) / (low + t * (high - low))


@dataclass(frozen=True, kw_only=True)
class Flow(Schedule):
    r"""The straight line of flow matching: under "flow", alpha = 1 - t and sigma = t.

        lambda(t) = 2 log((1 - t) / t)

    lambda runs from inf to -inf.

    Args:
        scaling: "flow", "vp" or "ve".

    Raises:
        ValueError: an unknown scaling.

    Source: Lipman et al. 2023 (arXiv 2210.02747), eq. 20; Liu et al. 2022 (arXiv 2209.03003), eq. 1.

    >>> Flow()(0.25).sigma
    np.float64(0.25)
    """

    scaling: str = "flow"

    def __post_init__(self) -> None:
        self._check()

    def _log_snr(self, xp: Any, t: Array) -> Array:
        return 2.0 * (xp.log1p(-t) - xp.log(t))

    def _time(self, xp: Any, log_snr: Array) -> Array:
        small = xp.exp(0.5 * xp.where(log_snr < 0, log_snr, -log_snr))
        return xp.where(log_snr < 0, 1.0 / (1.0 + small), small / (1.0 + small))

    def _slope(self, xp: Any, t: Array) -> Array:
        return -2.0 / (t * (1.0 - t))
