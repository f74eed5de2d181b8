"""The schedule between two others, itself a schedule."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diffcore import _array
from diffcore._array import Array
from diffcore.schedules._base import Pair, Schedule, clip, scaling_of


@dataclass(frozen=True, kw_only=True)
class Interpolated(Schedule):
    """(1 - w) lambda_a(t) + w lambda_b(t); see `interpolate`."""

    a: Schedule
    b: Schedule
    weight: float | None
    scaling: str = field(init=False)

    def __post_init__(self) -> None:
        first, second = (scaling_of("schedules.interpolate", part, getattr(self, part)) for part in ("a", "b"))
        object.__setattr__(self, "scaling", first)
        if self.weight is not None:
            self._check_number("weight", 0.0, 1.0, closed=True)
        if first != second:
            raise ValueError(
                f"schedules.interpolate: `a` and `b` must have equal scalings, got {first!r} and {second!r}; for example "
                f"use dataclasses.replace(b, scaling={first!r})"
            )
        if self.weight is None:
            self._check_by_time()

    def _check_by_time(self) -> None:
        found = self.log_snr(np.linspace(0.0, 1.0, 1025))
        if not np.all(np.isfinite(found)):
            raise ValueError(
                "schedules.interpolate: `a` and `b` must have finite ends where `weight` is None; use schedules.truncate"
            )
        if not np.all(np.diff(found) < 0.0):
            index = int(np.argmax(np.diff(found) >= 0.0))
            raise ValueError(
                f"schedules.interpolate: where `weight` is None, `a` must lie above `b`, or so little below that the result "
                f"decreases, got {found[index]:.6g} and {found[index + 1]:.6g} at t = {index / 1024:.3f} and "
                f"{(index + 1) / 1024:.3f}; exchange them"
            )

    def _mix(self, a: Array, b: Array, t: Array, rest: Array) -> Array:
        if self.weight is None:
            return rest * a + t * b
        if self.weight in (0.0, 1.0):  # else an infinite end of the other would give 0 * inf
            return b if self.weight else a
        return (1.0 - self.weight) * a + self.weight * b

    def _log_snr(self, xp: Any, t: Array, rest: Array, /) -> Array:
        return self._mix(self.a._log_snr(xp, t, rest), self.b._log_snr(xp, t, rest), t, rest)

    def _slope(self, xp: Any, t: Array, rest: Array, /) -> Array:
        slope = self._mix(self.a._slope(xp, t, rest), self.b._slope(xp, t, rest), t, rest)
        if self.weight is None:
            slope = slope + self.b._log_snr(xp, t, rest) - self.a._log_snr(xp, t, rest)
        return slope

    def _time(self, xp: Any, log_snr: Array, /) -> Pair:
        if self.weight in (0.0, 1.0):
            return (self.b if self.weight else self.a)._time(xp, log_snr)
        # The time lies between those of a and b. Each round divides the interval into 32 and keeps one part, and
        # the dtype fixes the number of rounds, so it can be traced, to a graph a fifth as large as by bisection.
        a_t, a_rest = (clip(xp, time) for time in self.a._time(xp, log_snr))
        b_t, b_rest = (clip(xp, time) for time in self.b._time(xp, log_snr))
        a_first = (a_t < b_t) | (a_rest > b_rest)
        t_0, t_1 = xp.where(a_first, a_t, b_t), xp.where(a_first, b_t, a_t)
        rest_0, rest_1 = xp.where(a_first, a_rest, b_rest), xp.where(a_first, b_rest, a_rest)
        inner = xp.arange(1, 32, dtype=log_snr.dtype, device=_array.device(log_snr)) / 32.0
        done, width = xp.zeros_like(log_snr), 1.0
        for _ in range(11 if str(log_snr.dtype).endswith("float64") else 5):
            part = done[..., None] + width * inner
            t = t_0[..., None] + part * (t_1 - t_0)[..., None]
            rest = rest_1[..., None] + (1.0 - part) * (rest_0 - rest_1)[..., None]
            before = self._log_snr(xp, t, rest) > log_snr[..., None]
            width = width / 32.0
            done = done + width * xp.sum(xp.astype(before, log_snr.dtype), axis=-1)
        t, rest = t_0 + done * (t_1 - t_0), rest_1 + (1.0 - done) * (rest_0 - rest_1)
        # One Newton step: it hardly changes the value, but gives the gradient, which a search lacks.
        reached, slope = self._log_snr(xp, t, rest), self._slope(xp, t, rest)
        sound = xp.isfinite(log_snr) & xp.isfinite(reached) & xp.isfinite(slope)
        zero = xp.zeros_like(log_snr)
        step = xp.where(sound, log_snr, zero) - xp.where(sound, reached, zero)
        step = step / xp.where(sound, slope, zero - 1.0)
        return t + step, rest - step


def interpolate(a: Schedule, b: Schedule, weight: float | None) -> Schedule:
    r"""Return the schedule (1 - w) lambda_a(t) + w lambda_b(t), of two schedules of one scaling.

    With w = t, from `a` for clean data to `b` for pure noise, it shifts details by one resolution and coarse structure by
    another; `simple_diffusion` makes this. The inverse is found by search between those of `a` and `b`, to the precision of
    the dtype.

    Args:
        a, b: schedules of the same scaling.
        weight: w in [0, 1], 0 is `a`, 1 is `b`; or None, w = t, for schedules with finite ends.

    Returns:
        A schedule of that scaling.

    Raises:
        ValueError: the scalings differ, the weight is out of range, or with w = t the result would not decrease.
        TypeError: `a` or `b` is not a schedule, or `weight` not a number.

    Source: Hoogeboom et al. 2023 (arXiv 2301.11093), sec. 3.1, where the weight is t.

    >>> from diffcore.schedules import LinearLogSNR
    >>> wide, narrow = LinearLogSNR(log_snr_max=20.0), LinearLogSNR(log_snr_max=10.0)
    >>> interpolate(wide, narrow, 0.5).log_snr(0.0), interpolate(wide, narrow, None).log_snr(0.0)
    (np.float64(15.0), np.float64(20.0))
    """
    return Interpolated(a=a, b=b, weight=weight)
