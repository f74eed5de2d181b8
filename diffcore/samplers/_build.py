"""The start of every sampler: the grid as pairs of levels t -> s, and an empty table to fill."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from diffcore import _check, grids, levels
from diffcore.grids._base import called
from diffcore.levels import Level
from diffcore.plan import Float64, Form, Plan, io
from diffcore.schedules import Schedule
from diffcore.schedules._base import checked

Z, NOISE, X = 0, Form().noise, Form().x
"""The columns of a plan without memory."""


class Steps(NamedTuple):
    """The steps t -> s of a grid of N + 1 points, as levels of shape (N, *lead) in float64.

    `half` is h = (lambda_s - lambda_t) / 2, the step in log(alpha / sigma); `clean` marks steps that end on clean data.
    """

    t: Level
    s: Level
    half: Float64
    clean: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return int(self.half.shape[0])

    @property
    def lead(self) -> tuple[int, ...]:
        return tuple(self.half.shape[1:])


def steps_of(
    function: str,
    schedule: Schedule,
    steps: int | None,
    grid: object,
    *,
    both_ways: bool = False,
    spaced: Callable[[Schedule, int], Float64] = grids.uniform,
) -> Steps:
    """Return the steps of a sampler from a number of steps, with the grid `spaced(schedule, steps)`, or from a grid of log-SNRs.

    Raises:
        TypeError: a grid for `steps`, or the name of one.
        ValueError: neither or both given; a grid that `grids.check` refuses, or that looks like times, timesteps or sigmas; a
            grid towards more noise (decreasing log-SNR) unless the sampler works both ways.

    Warns:
        UserWarning: a grid towards more noise, or one that rises, that may be sigmas, times or timesteps.
    """
    if (steps is None) == (grid is None):
        raise ValueError(
            f"{function}: give exactly one of `steps`, for a grid uniform in time, and `grid`, log-SNRs (N + 1, *lead), such "
            f"as dc.grids.karras(schedule, 18); got steps={_check.shown(steps)} and {'no' if grid is None else 'a'} grid"
        )
    checked(function, "schedule", schedule)
    if hasattr(steps, "__len__"):
        hint = "log-SNRs are `grid=`" + (f", {called(steps)}" if isinstance(steps, str) else "")
        raise _check.error(TypeError, function, "steps", "be an int >= 1", steps, hint)
    points = grids.check(function, spaced(schedule, steps) if steps is not None else grid)
    falls = points[(1, *(0,) * (points.ndim - 1))] < points[(0,) * points.ndim]
    if grid is not None:
        _refuse_other_units(function, schedule, points)
        if falls and both_ways:
            _say_inversion(function, schedule, points)
        elif not falls:
            _say_rising(function, schedule, points)
    if falls and not both_ways:
        hint = "only a deterministic sampler runs towards more noise; reverse it, or use ddim(eta=0)"
        hint += f"; {OTHERS}" if points.min() >= 0.0 else ""
        found = float(points[0].max()), float(points[-1].max())
        raise _check.error(ValueError, function, "grid", "rise from the first log-SNR to the last", found, hint)
    t, s = levels.level(points[:-1], schedule.scaling), levels.level(points[1:], schedule.scaling)
    return Steps(t, s, 0.5 * (points[1:] - points[:-1]), np.isposinf(points[1:]))


OTHERS = (
    "for times give grids.from_times(schedule, times), for timesteps grids.from_timesteps(schedule, timesteps).grid, "
    "for sigmas (sigma / alpha) grids.from_sigmas(sigmas).grid, which is -2 log(sigmas)"
)
"""What becomes a grid of other numbers."""


def _say_inversion(function: str, schedule: Schedule, points: Float64) -> None:
    """Warn of a falling grid that may be sigmas or times: an inversion rather begins at data and seldom ends right above 0."""
    first, last = float(points[0].max()), float(points[-1].min())
    begins = first >= float(schedule.log_snr(0.0)) - 1e-6 * abs(first)
    if len(points) > 2 and not begins and points.min() >= 0.0 and (last < 0.1 or first <= 1.0):
        text = f"{function}: `grid` falls from {first:g} to {last:g}, which in log-SNRs is inversion, from data towards noise"
        warnings.warn(f"{text}; if it was not meant: {OTHERS}", stacklevel=5)


def _say_rising(function: str, schedule: Schedule, points: Float64) -> None:
    """Warn of a rising grid from 0 or above that may be times, or sigmas or timesteps far beyond the log-SNRs of the schedule."""
    first, last = float(points[0].min()), float(points[-1].max())
    if len(points) < 3 or first < 0.0 or last == math.inf:
        return
    most = float(schedule.log_snr(0.0))
    if last <= 1.0 or last > (2.0 * abs(most) if most < math.inf else 0.4 * NONE):
        text = f"{function}: `grid` rises from {first:g} to {last:g}, which in log-SNRs is from little noise to less"
        warnings.warn(f"{text}; if it was not meant: {OTHERS}", stacklevel=5)


NONE = 100.0
"""No log-SNR that a run meets: sigma / alpha is 2e-22 there, which no dtype adds to data."""


def _refuse_other_units(function: str, schedule: Schedule, points: Float64) -> None:
    """Raise ValueError for times, timesteps or sigmas: those that fall would silently lead from data to noise, those that rise
    through levels that hardly differ from clean data.

    Times in [0, 1] with 0 for an end are nothing that a run of log-SNRs would cross in two steps or more; sigmas and timesteps
    begin above any log-SNR that the schedule has; and from 0 or above, all of them finite, to `NONE` no run leads.
    """
    first, last = float(points[0].max()), float(points[-1].max())
    least, most = float(points.min()), float(schedule.log_snr(0.0))
    times = len(points) > 2 and 0.0 in (first, last) and least >= 0.0 and points.max() <= 1.0
    beyond = least >= 0.0 and NONE <= max(first, last) < math.inf and not max(first, last) <= most < math.inf
    if times or beyond or (last < first and first > most + 1e-6 * abs(first)):
        must = "be log-SNRs, not times" if times else f"be log-SNRs, which end at {most!r} for this schedule"
        if beyond and most == math.inf:
            must = f"be log-SNRs, and {max(first, last):g} is none, at which there is no noise"
        raise _check.error(ValueError, function, "grid", f"{must}, from first to last", (first, last), OTHERS)


def empty(stages: int, lead: tuple[int, ...], memory: int = 0) -> Float64:
    """Return a table of zeros for a plan that remembers so many arrays, (stages, *lead, 1 + M, M + 3)."""
    return np.zeros((stages, *lead, 1 + memory, memory + 3))


def scaled(noise_scale: float) -> dict[str, object]:
    """Return the noise scale as a setting, where it is not 1."""
    return {"noise_scale": noise_scale} if noise_scale != 1.0 else {}


def finish(name: str, schedule: Schedule, at: Float64, to: Float64, update: Float64, **settings: object) -> Plan:
    """Return the plan of a filled table."""
    settings = {key: io.settled(value) for key, value in settings.items()}
    shown = ", ".join(f"{key}={value!r}" for key, value in settings.items())
    title = f"{name}({shown})"
    return Plan(title, schedule.scaling, at, to, update, settings={"sampler": name, **settings})
