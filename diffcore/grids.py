r"""Grids: the points a sampler visits, as a host array of log-SNRs, (N + 1, *lead), one row a point.

A denoising grid increases. It may begin and end anywhere; lambda = inf, only as the last point, is clean data. A grid
that ends at t = 0 ends there by default, and not at the schedule's finite lambda(0), because there the last step
returns x-hat exactly, with no noise left in it. A decreasing grid, from data to noise, is for deterministic samplers run backwards.

Starts and ends may be arrays of shape (B,) or (B, T): levels per sample and per frame.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from diffcore.schedules import Schedule

Float64 = npt.NDArray[np.float64]


def uniform(
    schedule: Schedule, steps: int, *, start: npt.ArrayLike = 1.0, end: npt.ArrayLike = 0.0, clean: bool | None = None
) -> Float64:
    r"""Return a grid uniform in time: t_i = start + (end - start) i / N.

    Args:
        schedule: turns the times into log-SNRs.
        steps: N >= 1.
        start, end: times in [0, 1], different; numbers, or arrays of shape (B,) or (B, T).
        clean: whether the last point is lambda = inf; None means where the grid ends at t = 0.

    Returns:
        A float64 array (N + 1, *lead).

    Raises:
        ValueError: steps < 1, times out of range or equal.

    >>> from diffcore.schedules import Cosine
    >>> uniform(Cosine(), 2).round(3)
    array([-20.,   0.,  inf])
    """
    count = _check_steps("grids.uniform", steps)
    first, last = _check_ends("grids.uniform", start, end)
    part = _parts(count, first)
    return from_times(schedule, first * (1.0 - part) + last * part, clean=clean)


def uniform_log_snr(
    schedule: Schedule, steps: int, *, start: npt.ArrayLike = 1.0, end: npt.ArrayLike = 0.0, clean: bool | None = None
) -> Float64:
    r"""Return a grid uniform in log-SNR, from lambda(start) to lambda(end).

    With a clean end N points are uniform between the two, both included, and the last one is lambda = inf; without, N +
    1.

    Args, raises: as for `uniform`; the log-SNRs at start and end must be finite.

    Source: Lu et al. 2022 (arXiv 2206.00927), sec. 3 ("logSNR steps").

    >>> from diffcore.schedules import LinearLogSNR
    >>> uniform_log_snr(LinearLogSNR(), 3)
    array([-10.,   0.,  10.,  inf])
    """
    return _spaced("grids.uniform_log_snr", schedule, steps, start, end, clean, lambda v: v, lambda v: v)


def karras(
    schedule: Schedule,
    steps: int,
    *,
    rho: float = 7.0,
    start: npt.ArrayLike = 1.0,
    end: npt.ArrayLike = 0.0,
    clean: bool | None = None,
) -> Float64:
    r"""Return EDM's grid: uniform in (sigma / alpha)^{1 / rho}, from the level at `start` to that at `end`.

    With a clean end N points lie between the two, both included, and the last one is lambda = inf, as in EDM; without,
    N + 1.

    Args:
        schedule, steps, start, end, clean: as for `uniform_log_snr`.
        rho: positive; EDM uses 7.

    Raises:
        ValueError: rho is not positive, and as for `uniform_log_snr`.

    Source: Karras et al. 2022 (arXiv 2206.00364), eq. 5.

    >>> from diffcore.schedules import Karras
    >>> np.exp(-0.5 * karras(Karras(), 3)).round(3)
    array([8.000e+01, 2.515e+00, 2.000e-03, 0.000e+00])
    """
    if not 0.0 < rho < math.inf:
        raise ValueError(f"grids.karras: `rho` is {rho!r}, but takes a positive finite number; EDM uses 7")
    half = -0.5 / rho
    return _spaced(
        "grids.karras", schedule, steps, start, end, clean, lambda v: np.exp(v * half), lambda v: np.log(v) / half
    )


def from_times(schedule: Schedule, times: npt.ArrayLike, *, clean: bool | None = None) -> Float64:
    r"""Return the grid of any times of one's own.

    Args:
        schedule: turns the times into log-SNRs.
        times: (N + 1,), (N + 1, B) or (N + 1, B, T) in [0, 1], strictly decreasing along the first axis; or strictly
            increasing, to go from data to noise.
        clean: whether the last point is lambda = inf; None means where the times end at 0.

    Raises:
        ValueError: times out of range, repeated, out of order or too few; the message gives the place.

    >>> from diffcore.schedules import LinearLogSNR
    >>> from_times(LinearLogSNR(), [1.0, 0.25, 0.0])
    array([-10.,   5.,  inf])
    """
    function = "grids.from_times"
    points = np.asarray(times, dtype=np.float64)
    if points.ndim < 1 or points.shape[0] < 2:
        raise ValueError(f"{function}: `times` has shape {points.shape}, but takes (N + 1, *lead), at least 2 points")
    if not np.all((points >= 0.0) & (points <= 1.0)):
        index = np.argwhere(~((points >= 0.0) & (points <= 1.0)))[0]
        raise ValueError(f"{function}: `times{_at(index)}` is {points[tuple(index)]!r}, but takes a time in [0, 1]")
    _check_monotone(function, "times", points)
    found = np.array(schedule.log_snr(points), dtype=np.float64)
    falling = points[0].flat[0] > points[-1].flat[0]
    ends_clean = (points[-1] == 0.0) if clean is None else np.full(points[-1].shape, clean)
    if falling:
        found[-1] = np.where(ends_clean, np.inf, found[-1])
    elif clean:
        raise ValueError(f"{function}: `clean` is True, but times that increase go towards noise; leave it out")
    return check(function, found)


def check(function: str, grid: Any) -> Float64:
    r"""Return a grid as a float64 array (N + 1, *lead), once it is known to be one.

    Args:
        function: whose argument it is, for messages.
        grid: log-SNRs of anyone's making.

    Raises:
        ValueError: fewer than two points, NaN, lambda = inf before the last point, or points that are repeated or out
            of
            order; the message gives the place.

    >>> check("mine", [-1.0, 2.0])
    array([-1.,  2.])
    """
    try:
        points = np.asarray(grid, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{function}: `grid` is {type(grid).__name__}, but takes log-SNRs (N + 1, *lead)") from None
    if points.ndim not in (1, 2, 3) or points.shape[0] < 2:
        raise ValueError(
            f"{function}: `grid` has shape {points.shape}, but takes log-SNRs (N + 1, *lead), N >= 1, lead (), (B,) or (B, T)"
        )
    if np.any(np.isnan(points)):
        index = np.argwhere(np.isnan(points))[0]
        raise ValueError(f"{function}: `grid{_at(index)}` is NaN, but takes log-SNRs")
    _check_monotone(function, "grid", points)
    return points


def _check_monotone(function: str, argument: str, points: Float64) -> None:
    steps = np.where(points[1:] == points[:-1], 0.0, points[1:] - points[:-1])  # inf - inf is no step
    rising = points[-1].flat[0] > points[0].flat[0] if points[0].size else True
    good = steps > 0.0 if rising else steps < 0.0
    if not np.all(good):
        index = np.argwhere(~good)[0]
        after = index.copy()
        after[0] += 1
        first, second = points[tuple(index)], points[tuple(after)]
        what = "repeats a point" if first == second else "is out of order"
        raise ValueError(
            f"{function}: `{argument}` {what}: entries {_at(index)} and {_at(after)} are {float(first)!r} and "
            f"{float(second)!r}, but it must strictly {'increase' if rising else 'decrease'} along the first axis"
        )


def _spaced(
    function: str,
    schedule: Schedule,
    steps: int,
    start: npt.ArrayLike,
    end: npt.ArrayLike,
    clean: bool | None,
    to: Any,
    back: Any,
) -> Float64:
    count = _check_steps(function, steps)
    first, last = _check_ends(function, start, end)
    low, high = (np.asarray(schedule.log_snr(np.asarray(time)), dtype=np.float64) for time in (first, last))
    if not np.all(np.isfinite(low) & np.isfinite(high)):
        raise ValueError(
            f"{function}: the log-SNR runs from {low} to {high}, but takes finite ends; give `start` < 1 or `end` > 0, "
            f"or truncate the schedule"
        )
    ends_clean = bool(np.all(last == 0.0) and np.all(first > last)) if clean is None else clean
    part = _parts(count - 1 if ends_clean else count, first)
    found = np.asarray(back(to(low) * (1.0 - part) + to(high) * part))
    found[0], found[-1] = low, high if part.shape[0] > 1 else low
    if ends_clean:
        found = np.concatenate([found, np.full((1, *found.shape[1:]), np.inf)])
    return check(function, found)


def _parts(count: int, like: Float64) -> Float64:
    """Return 0, 1 / count, ..., 1 along a first axis, ready to broadcast against the lead; a single 0 for no count."""
    parts = np.linspace(0.0, 1.0, count + 1) if count else np.zeros(1)
    return parts.reshape(-1, *(1,) * like.ndim)


def _check_steps(function: str, steps: object) -> int:
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or steps < 1:
        raise ValueError(f"{function}: `steps` is {steps!r}, but takes an int >= 1")
    return int(steps)


def _check_ends(function: str, start: npt.ArrayLike, end: npt.ArrayLike) -> tuple[Float64, Float64]:
    first, last = np.broadcast_arrays(np.asarray(start, dtype=np.float64), np.asarray(end, dtype=np.float64))
    for argument, time in (("start", first), ("end", last)):
        if not np.all((time >= 0.0) & (time <= 1.0)):
            raise ValueError(f"{function}: `{argument}` is {time}, but takes times in [0, 1]")
    if np.any(first == last):
        raise ValueError(f"{function}: `start` and `end` are both {first}, but must differ")
    return first, last


def _at(index: Any) -> str:
    return "[" + ", ".join(str(int(i)) for i in index) + "]"
