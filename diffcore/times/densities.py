"""Densities of times: uniform, logit-normal, and log-normal in the noise level."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from diffcore import _array, _check
from diffcore._array import Array
from diffcore._quantile import normal_quantile


@dataclass(frozen=True)
class Density(ABC):
    """A density of times on [0, 1]: calling it on uniforms gives times, `log_density` gives log p(t)."""

    @abstractmethod
    def __call__(self, u: Array) -> Array:
        """Return the times t(u), rising with u, for which uniform u give times of this density."""

    @abstractmethod
    def log_density(self, t: Array) -> Array:
        """Return log p(t), -inf outside the support; of the shape and library of `t`, at least float32."""

    def density(self, t: Array) -> Array:
        """Return p(t); divide a loss by it to keep the weight that is meant for uniform times.

        >>> Uniform(0.0, 0.5).density(0.25)
        np.float64(2.0)
        """
        log_density = self.log_density(t)
        xp, log_density = _array.level_array("times.density", "t", log_density)
        return _array.scalar(xp.exp(log_density))


class Known(Density):
    """What the densities here share: they are known by their times, and by log p(t) inside their support."""

    @abstractmethod
    def _times(self, xp: Any, u: Array) -> Array:
        """Return t(u)."""

    @abstractmethod
    def _log_density(self, xp: Any, t: Array) -> Array:
        """Return log p(t) for times inside the support."""

    def _inside(self, t: Array) -> Array:
        """Return where times are inside the support."""
        return (t >= 0.0) & (t <= 1.0)

    def __call__(self, u: Array) -> Array:
        """Return times of this density from uniforms u in (0, 1), rising with u."""
        xp, u = _array.level_array(f"times.{type(self).__name__}", "u", u)
        with _array.quiet(xp):
            return _array.scalar(self._times(xp, u))

    def log_density(self, t: Array) -> Array:
        """Return log p(t), -inf outside the support."""
        xp, t = _array.level_array(f"times.{type(self).__name__}.log_density", "t", t)
        inside = self._inside(t)
        with _array.quiet(xp):
            value = self._log_density(xp, xp.where(inside, t, 0.5 * xp.ones_like(t)))
            return _array.scalar(xp.where(inside, value, -math.inf * xp.ones_like(t)))


@dataclass(frozen=True)
class Uniform(Known):
    """t ~ U[low, high]. Source: Ho et al. 2022 (arXiv 2204.03458), sec. 2.

    Args:
        low, high: 0 <= low < high <= 1.

    Raises:
        ValueError: `low` or `high` is out of range.

    >>> Uniform()(0.25), Uniform().log_density(0.25)
    (np.float64(0.25), np.float64(0.0))
    """

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        low = _check.number("times.Uniform", "low", self.low, 0, 1, open_high=True)
        _check.number("times.Uniform", "high", self.high, low, 1, open_low=True)

    def _times(self, _xp: Any, u: Array) -> Array:
        return self.low + (self.high - self.low) * u

    def _inside(self, t: Array) -> Array:
        return (t >= self.low) & (t <= self.high)

    def _log_density(self, xp: Any, t: Array) -> Array:
        return xp.zeros_like(t) - math.log(self.high - self.low)


@dataclass(frozen=True)
class LogitNormal(Known):
    r"""logit t ~ N(mean, std^2): most training in the middle.

        p(t) = exp(-(logit t - mean)^2 / (2 std^2)) / (std sqrt(2 pi) t (1 - t)),   t = sigmoid(mean + std Phi^{-1}(u))

    Args:
        mean: of logit t; above 0 towards noise.
        std: of logit t, positive.

    Raises:
        ValueError: `mean` or `std` is out of range.

    Source: Esser et al. 2024 (arXiv 2403.03206), eq. 19.

    >>> LogitNormal()(0.5), LogitNormal().density(0.5).round(6)
    (np.float64(0.5), np.float64(1.595769))
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        _check_normal("LogitNormal", self.mean, self.std)

    def _times(self, xp: Any, u: Array) -> Array:
        return 1.0 / (1.0 + xp.exp(-(self.mean + self.std * normal_quantile(xp, u))))

    def _inside(self, t: Array) -> Array:
        return (t > 0.0) & (t < 1.0)

    def _log_density(self, xp: Any, t: Array) -> Array:
        up, down = xp.log(t), xp.log1p(-t)
        return _log_normal_density(up - down, self.mean, self.std) - up - down


@dataclass(frozen=True)
class LogNormal(Known):
    r"""log s ~ N(mean, std^2) for the noise-to-signal ratio s = e^{-lambda/2}, cut to the levels of a schedule.

        p(t) = N(lambda(t); -2 mean, (2 std)^2) |d lambda / dt| / P(lambda(1) <= lambda <= lambda(0))

    Args:
        schedule: a schedule of `diffcore.schedules` (or anything with log_snr(t), time(log_snr) and slope(t)).
        mean, std: of log s; std positive. The defaults are EDM's.

    Raises:
        ValueError: `mean` or `std` is out of range, or no mass lies between the schedule's ends.

    Source: Karras et al. 2022 (arXiv 2206.00364), table 1.

    >>> import diffcore as dc
    >>> schedule = dc.schedules.Cosine()
    >>> t = LogNormal(schedule)(0.5)                            # the median: log s = -1.2, so lambda = 2.4
    >>> schedule.log_snr(t).round(6)
    np.float64(2.4)
    """

    schedule: Any
    mean: float = -1.2
    std: float = 1.2
    _ends: tuple[float, float] = field(init=False, repr=False, compare=False)
    _cut: tuple[float, float] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_normal("LogNormal", self.mean, self.std)
        if not all(hasattr(self.schedule, name) for name in ("log_snr", "time", "slope")):
            must = "be a schedule, such as diffcore.schedules.Cosine()"
            raise _check.error(TypeError, "times.LogNormal", "schedule", must, self.schedule)
        ends = float(self.schedule.log_snr(1.0)), float(self.schedule.log_snr(0.0))
        wide = 2.0 * self.std * math.sqrt(2.0)
        below, upto = (0.5 * math.erfc(-(end + 2.0 * self.mean) / wide) for end in ends)
        object.__setattr__(self, "_ends", ends)
        object.__setattr__(self, "_cut", (below, upto))  # P(lambda < lambda(1)) and P(lambda < lambda(0))
        if not upto > below:
            must = f"make the noise levels of the schedule, log_snr in {ends}, likely with std={self.std!r}"
            hint = "it is the mean of log(sigma / alpha) = -log_snr / 2"
            raise _check.error(ValueError, "times.LogNormal", "mean", must, self.mean, hint)

    def _times(self, xp: Any, u: Array) -> Array:
        (noisy, clean), (below, upto) = self._ends, self._cut
        # the log-SNR falls as t rises, so t's u-quantile is lambda's (1 - u)-quantile
        log_snr = -2.0 * self.mean + 2.0 * self.std * normal_quantile(xp, upto - (upto - below) * u)
        one = xp.ones_like(u)
        return self.schedule.time(_array.scalar(xp.minimum(xp.maximum(log_snr, noisy * one), clean * one)))

    def _log_density(self, xp: Any, t: Array) -> Array:
        parts = self.schedule.log_snr(t), self.schedule.slope(t)
        log_snr, slope = (_array.as_array(xp, part) for part in parts)
        likely = _log_normal_density(log_snr, -2.0 * self.mean, 2.0 * self.std)
        value = likely + xp.log(xp.abs(slope)) - math.log(self._cut[1] - self._cut[0])
        return xp.where(xp.isfinite(log_snr), value, -math.inf * xp.ones_like(t))


def _log_normal_density(value: Array, mean: float, std: float) -> Array:
    return -0.5 * ((value - mean) / std) ** 2 - math.log(std * math.sqrt(2.0 * math.pi))


def _check_normal(name: str, mean: float, std: float) -> None:
    function = f"times.{name}"
    _check.number(function, "mean", mean)
    _check.number(function, "std", std, 0, open_low=True)
