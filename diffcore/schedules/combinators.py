"""Schedules made from schedules: shifted and truncated. Each is a schedule itself."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diffcore import _array
from diffcore._array import Array
from diffcore.schedules._base import Pair, Schedule, clip, scaling_of


@dataclass(frozen=True, kw_only=True)
class Shifted(Schedule):
    """lambda(t) + delta; see `shift`."""

    schedule: Schedule
    delta: float
    scaling: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scaling", scaling_of("schedules.shift", "schedule", self.schedule))
        self._check_number("delta")

    def _log_snr(self, xp: Any, t: Array, rest: Array, /) -> Array:
        return self.schedule._log_snr(xp, t, rest) + self.delta

    def _time(self, xp: Any, log_snr: Array, /) -> Pair:
        return self.schedule._time(xp, log_snr - self.delta)

    def _slope(self, xp: Any, t: Array, rest: Array, /) -> Array:
        return self.schedule._slope(xp, t, rest)


def shift(schedule: Schedule, delta: float) -> Schedule:
    r"""Return the schedule lambda(t) + delta.

    Neighbouring pixels of a larger image are more alike, so the same noise hides less of it. With

        delta = 2 log(d_0 / d)

    a schedule that suits images of side d_0 has the same effect on images of side d, seen at the old scale: -1.386
    from 64 pixels to 128.

    Args:
        schedule: any.
        delta: finite; negative is noisier.

    Returns:
        A schedule of the same scaling.

    Raises:
        ValueError: `delta` is not finite.
        TypeError: `schedule` is not a schedule, or `delta` not a number.

    Source: Hoogeboom et al. 2023 (arXiv 2301.11093), sec. 3.1.

    >>> from diffcore.schedules import Cosine
    >>> shift(Cosine(), 2.0 * math.log(64 / 128)).log_snr(0.5).round(6)
    np.float64(-1.386294)
    """
    return Shifted(schedule=schedule, delta=delta)


@dataclass(frozen=True, kw_only=True)
class Truncated(Schedule):
    """The part of a schedule between two log-SNRs, its time stretched to [0, 1]; see `truncate`."""

    schedule: Schedule
    log_snr_min: float
    log_snr_max: float
    scaling: str = field(init=False)
    _ends: tuple[tuple[float, float], tuple[float, float]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scaling", scaling_of("schedules.truncate", "schedule", self.schedule))
        self._check_number("log_snr_min", closed=True)
        self._check_number("log_snr_max", closed=True)
        self._check_order("log_snr_min", "log_snr_max")
        bottom, top = (float(end) for end in self.schedule.log_snr(np.asarray([1.0, 0.0])))
        slack = 1e-9 * max(1.0, abs(top) if math.isfinite(top) else 1.0, abs(bottom) if math.isfinite(bottom) else 1.0)
        if self.log_snr_max > top + slack or self.log_snr_min < bottom - slack:
            raise ValueError(
                f"schedules.truncate: `log_snr_min` and `log_snr_max` must be in the schedule's range [{bottom!r}, {top!r}], "
                f"got {self.log_snr_min!r} and {self.log_snr_max!r}; a range can be cut, not extended"
            )
        object.__setattr__(self, "_ends", (self._find(self.log_snr_max), self._find(self.log_snr_min)))

    def _find(self, log_snr: float) -> tuple[float, float]:
        with _array.quiet(np):
            t, rest = self.schedule._time(np, np.asarray(log_snr))
            return float(clip(np, t)), float(clip(np, rest))

    def _width(self) -> float:
        (t_0, rest_0), (t_1, rest_1) = self._ends
        if t_1 < 0.5:
            return t_1 - t_0
        return rest_0 - rest_1 if rest_0 < 0.5 else 1.0 - t_0 - rest_1

    def _inner(self, t: Array, rest: Array) -> Pair:
        # sums of positive terms, so both parts of the pair stay accurate
        (t_0, rest_0), (t_1, rest_1) = self._ends
        return t_0 * rest + t_1 * t, rest_0 * rest + rest_1 * t

    def _log_snr(self, xp: Any, t: Array, rest: Array, /) -> Array:
        return self.schedule._log_snr(xp, *self._inner(t, rest))

    def _time(self, xp: Any, log_snr: Array, /) -> Pair:
        (t_0, rest_0), (t_1, rest_1) = self._ends
        t, rest = self.schedule._time(xp, log_snr)
        since = t - t_0 if t_0 < 0.5 else rest_0 - rest
        until = rest - rest_1 if rest_1 < 0.5 else t_1 - t
        return since / self._width(), until / self._width()

    def _slope(self, xp: Any, t: Array, rest: Array, /) -> Array:
        return self.schedule._slope(xp, *self._inner(t, rest)) * self._width()


def truncate(schedule: Schedule, log_snr_min: float, log_snr_max: float) -> Schedule:
    r"""Return the part of a schedule with log-SNR in [log_snr_min, log_snr_max], its time stretched to [0, 1].

        lambda'(t) = lambda((1 - t) t_0 + t t_1),  lambda(t_0) = log_snr_max,  lambda(t_1) = log_snr_min

    Ho et al. do this to the cosine schedule: `truncate(Cosine(log_snr_min=-inf, log_snr_max=inf), -20, 20)` is
    `Cosine()`. A learned schedule is cut at its current values, without a gradient.

    Args:
        schedule: any, for example one that ends on infinite log-SNRs.
        log_snr_min, log_snr_max: in order, within the range of the schedule; an infinite one cuts nothing off.

    Returns:
        A schedule of the same scaling.

    Raises:
        ValueError: the ends are out of order, or outside the range of the schedule.
        TypeError: `schedule` is not a schedule, or an end not a number.

    Source: Ho et al. 2022 (arXiv 2204.03458), sec. 2.

    >>> from diffcore.schedules import Flow
    >>> truncate(Flow(), -8.0, 8.0).log_snr(1.0).round(12)
    np.float64(-8.0)
    """
    return Truncated(schedule=schedule, log_snr_min=log_snr_min, log_snr_max=log_snr_max)
