"""Schedules whose usual scaling is variance exploding, given by sigma / alpha at both ends; and the flow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from diffcore import levels
from diffcore._array import Array
from diffcore.schedules._base import Pair, Schedule


@dataclass(frozen=True, kw_only=True)
class Geometric(Schedule):
    r"""The schedule of the VE-SDE: sigma / alpha grows geometrically, so lambda is linear in t.

        sigma / alpha = sigma_min (sigma_max / sigma_min)^t,  lambda = -2 log(sigma / alpha)

    Args:
        sigma_min: sigma / alpha at t = 0, positive.
        sigma_max: sigma / alpha at t = 1, larger.
        scaling: "ve", "vp" or "flow".

    Raises:
        ValueError: a setting out of range or out of order, or an unknown scaling.

    Source: Song et al. 2021 (arXiv 2011.13456), app. C, eq. 30-31.

    >>> Geometric(sigma_min=0.01, sigma_max=100.0)(0.5).sigma.round(12)
    np.float64(1.0)
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    scaling: str = "ve"

    def __post_init__(self) -> None:
        self._check_number("sigma_min", 0.0)
        self._check_number("sigma_max", 0.0)
        self._check_order("sigma_min", "sigma_max")
        self._check_scaling()

    def _ends(self) -> tuple[float, float]:
        """Return lambda at t = 0 and at t = 1."""
        return -2.0 * math.log(self.sigma_min), -2.0 * math.log(self.sigma_max)

    def _log_snr(self, _xp: Any, t: Array, rest: Array, /) -> Array:
        first, last = self._ends()
        return rest * first + t * last

    def _time(self, _xp: Any, log_snr: Array, /) -> Pair:
        first, last = self._ends()
        return (first - log_snr) / (first - last), (log_snr - last) / (first - last)

    def _slope(self, xp: Any, t: Array, _rest: Array, /) -> Array:
        first, last = self._ends()
        return (last - first) * xp.ones_like(t)


@dataclass(frozen=True, kw_only=True)
class Karras(Schedule):
    r"""The noise levels of EDM: the rho-th root of sigma / alpha is linear in t.

        sigma / alpha = (sigma_min^{1/rho} + t (sigma_max^{1/rho} - sigma_min^{1/rho}))^rho
        lambda = -2 log sigma_min - 2 rho log(1 + t g),  g = (sigma_max / sigma_min)^{1/rho} - 1

    Args:
        sigma_min: sigma / alpha at t = 0, positive.
        sigma_max: sigma / alpha at t = 1, larger.
        rho: positive, at least log(sigma_max / sigma_min) / 80; EDM uses 7, and large values approach `Geometric`.
        scaling: "ve", "vp" or "flow".

    Raises:
        ValueError: a setting out of range or out of order, or an unknown scaling.

    Source: Karras et al. 2022 (arXiv 2206.00364), eq. 5; here t = 0 is the clean end.

    >>> Karras()(1.0).sigma.round(9)
    np.float64(80.0)
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    scaling: str = "ve"

    def __post_init__(self) -> None:
        self._check_number("sigma_min", 0.0)
        self._check_number("sigma_max", 0.0)
        self._check_number("rho", 0.0)
        self._check_order("sigma_min", "sigma_max")
        self._check_scaling()
        least = self._log_range() / 80.0
        if self.rho < least:
            raise ValueError(
                f"schedules.Karras: `rho` must be >= log(sigma_max / sigma_min) / 80 = {least:.3g}, got {self.rho!r}; below, "
                f"float32 overflows"
            )

    def _log_range(self) -> float:
        return math.log(self.sigma_max) - math.log(self.sigma_min)

    def _growth(self) -> float:
        return math.expm1(self._log_range() / self.rho)

    def _log_snr(self, xp: Any, t: Array, _rest: Array, /) -> Array:
        return -2.0 * math.log(self.sigma_min) - (2.0 * self.rho) * xp.log1p(t * self._growth())

    def _time(self, xp: Any, log_snr: Array, /) -> Pair:
        t = xp.expm1((-0.5 * log_snr - math.log(self.sigma_min)) / self.rho) / self._growth()
        return t, 1.0 - t

    def _slope(self, _xp: Any, t: Array, _rest: Array, /) -> Array:
        growth = self._growth()
        return (-2.0 * self.rho * growth) / (1.0 + t * growth)


@dataclass(frozen=True, kw_only=True)
class Flow(Schedule):
    r"""The straight line of flow matching: under "flow", alpha = 1 - t and sigma = t.

        lambda(t) = 2 log((1 - t) / t)

    lambda runs from inf to -inf.

    Args:
        scaling: "flow", "vp" or "ve".

    Raises:
        ValueError: an unknown scaling.

    Source: Lipman et al. 2023 (arXiv 2210.02747), eq. 20; Liu et al. 2022 (arXiv 2209.03003), eq. 1. Both let time run
    the other way.

    >>> Flow()(0.25).sigma
    np.float64(0.25)
    """

    scaling: str = "flow"

    def __post_init__(self) -> None:
        self._check_scaling()

    def _log_snr(self, xp: Any, t: Array, rest: Array, /) -> Array:
        return 2.0 * (xp.log(rest) - xp.log(t))

    def _time(self, xp: Any, log_snr: Array, /) -> Pair:
        alpha, sigma = levels.scalings()["flow"](xp, log_snr)
        return sigma, alpha

    def _slope(self, _xp: Any, t: Array, rest: Array, /) -> Array:
        return -2.0 / (t * rest)
