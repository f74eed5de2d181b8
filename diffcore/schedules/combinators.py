"""Schedules made of schedules: shifted, truncated, interpolated. Each is a schedule again."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from diffcore._array import Array
from diffcore.schedules._base import Schedule


@dataclass(frozen=True, kw_only=True)
class Shifted(Schedule):
    """lambda(t) + delta; see `shift`."""

    inner: Schedule
    delta: float
    scaling: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scaling", self.inner.scaling)
        if not math.isfinite(self.delta):
            raise ValueError(f"schedules.shift: `delta` is {self.delta!r}, but takes a finite number")

    def _log_snr(self, xp: Any, t: Array) -> Array:
        return self.inner._log_snr(xp, t) + self.delta

    def _time(self, xp: Any, log_snr: Array) -> Array:
        return self.inner._time(xp, log_snr - self.delta)

    def _slope(self, xp: Any, t: Array) -> Array:
        return self.inner._slope(xp, t)


def shift(schedule: Schedule, delta: float) -> Schedule:
    r"""Return the schedule lambda(t) + delta.

    To keep the noise at a scale of the picture the same when the side grows from d_0 to d, use delta = 2 log(d_0 / d).

    Args:
        schedule: any.
        delta: finite; negative is noisier.

    Raises:
        ValueError: `delta` is not finite.

    Source: Hoogeboom et al. 2023 (arXiv 2301.11093), eq. 6.

    >>> from diffcore.schedules import Cosine
    >>> shift(Cosine(), -2.0).log_snr(0.5).round(12)
    np.float64(-2.0)
    """
    return Shifted(inner=schedule, delta=float(delta))


@dataclass(frozen=True, kw_only=True)
class Truncated(Schedule):
    """The part of a schedule between two log-SNRs, its time stretched to [0, 1]; see `truncate`."""

    inner: Schedule
    log_snr_min: float
    log_snr_max: float
    scaling: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scaling", self.inner.scaling)
        self._check_order("log_snr_min", "log_snr_max")
        top, bottom = float(self.inner.log_snr(0.0)), float(self.inner.log_snr(1.0))
        slack = 1e-9 * max(1.0, abs(self.log_snr_min), abs(self.log_snr_max))
        if self.log_snr_max > top + slack or self.log_snr_min < bottom - slack:
            raise ValueError(
                f"schedules.truncate: the range [{self.log_snr_min}, {self.log_snr_max}] leaves that of the schedule, "
                f"[{bottom}, {top}]; choose one inside"
            )

    def _ends(self) -> tuple[float, float]:
        return float(self.inner.time(self.log_snr_max)), float(self.inner.time(self.log_snr_min))

    def _log_snr(self, xp: Any, t: Array) -> Array:
        first, last = self._ends()
        return self.inner._log_snr(xp, first * (1.0 - t) + last * t)

    def _time(self, xp: Any, log_snr: Array) -> Array:
        first, last = self._ends()
        return (self.inner._time(xp, log_snr) - first) / (last - first)

    def _slope(self, xp: Any, t: Array) -> Array:
        first, last = self._ends()
        return self.inner._slope(xp, first * (1.0 - t) + last * t) * (last - first)


def truncate(schedule: Schedule, log_snr_min: float, log_snr_max: float) -> Schedule:
    r"""Return the part of a schedule with log-SNR in [log_snr_min, log_snr_max], its time stretched to [0, 1].

        lambda'(t) = lambda(t_0 + t (t_1 - t_0)),  lambda(t_0) = log_snr_max,  lambda(t_1) = log_snr_min

    Near a time of 1 the inner time has few digits left; `Cosine` truncates itself without that loss.

    Args:
        schedule: any.
        log_snr_min, log_snr_max: within the range of the schedule, in order.

    Raises:
        ValueError: the ends are out of order, or outside the range of the schedule.

    Source: Kingma & Gao 2023 (arXiv 2303.00848), app. D.

    >>> from diffcore.schedules import Flow
    >>> truncate(Flow(), -8.0, 8.0).log_snr(0.0).round(9)
    np.float64(8.0)
    """
    return Truncated(inner=schedule, log_snr_min=float(log_snr_min), log_snr_max=float(log_snr_max))


@dataclass(frozen=True, kw_only=True)
class Interpolated(Schedule):
    """(1 - w) lambda_a(t) + w lambda_b(t); see `interpolate`."""

    first: Schedule
    second: Schedule
    weight: float
    scaling: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scaling", self.first.scaling)
        if self.first.scaling != self.second.scaling:
            raise ValueError(
                f"schedules.interpolate: `a` has scaling {self.first.scaling!r} but `b` has {self.second.scaling!r}; "
                f"give both the same, for example Cosine(scaling={self.second.scaling!r})"
            )
        if not 0.0 <= self.weight <= 1.0:
            raise ValueError(f"schedules.interpolate: `weight` is {self.weight!r}, but takes a number in [0, 1]")

    def _mix(self, a: Array, b: Array) -> Array:
        if self.weight in (0.0, 1.0):  # an infinite end of the one that is left out must not enter as 0 * inf
            return b if self.weight else a
        return (1.0 - self.weight) * a + self.weight * b

    def _log_snr(self, xp: Any, t: Array) -> Array:
        return self._mix(self.first._log_snr(xp, t), self.second._log_snr(xp, t))

    def _time(self, xp: Any, log_snr: Array) -> Array:
        if self.weight in (0.0, 1.0):
            return (self.second if self.weight else self.first)._time(xp, log_snr)
        low, high = xp.zeros_like(log_snr), xp.ones_like(log_snr)
        for _ in range(60):  # bisection, a fixed number of halvings: it traces, and reaches the last digit of float64
            middle = 0.5 * (low + high)
            early = self._log_snr(xp, middle) > log_snr
            low, high = xp.where(early, middle, low), xp.where(early, high, middle)
        return 0.5 * (low + high)

    def _slope(self, xp: Any, t: Array) -> Array:
        return self._mix(self.first._slope(xp, t), self.second._slope(xp, t))


def interpolate(a: Schedule, b: Schedule, weight: float) -> Schedule:
    r"""Return the schedule (1 - w) lambda_a(t) + w lambda_b(t), of two schedules of one scaling.

    Args:
        a, b: schedules of the same scaling.
        weight: w in [0, 1]; 0 is `a`, 1 is `b`.

    Raises:
        ValueError: the scalings differ, or the weight is out of range.

    Source: Hoogeboom et al. 2023 (arXiv 2301.11093), eq. 7, with a constant weight.

    >>> from diffcore.schedules import LinearLogSNR
    >>> wide, narrow = LinearLogSNR(log_snr_max=20.0), LinearLogSNR(log_snr_max=10.0)
    >>> interpolate(wide, narrow, 0.5).log_snr(0.0)
    np.float64(15.0)
    """
    return Interpolated(first=a, second=b, weight=float(weight))
