r"""Grids: the points a sampler visits, as a host array of log-SNRs, (N + 1, *lead), one row per point.

A grid that denoises increases. It may begin and end anywhere; lambda = inf, allowed only at the last point, is clean
data. A grid that ends at t = 0 ends there by default, not at the schedule's finite lambda(0): the network's x-hat is an
estimate of clean data, so the last step may return it exactly, where a step to lambda(0) would mix some of the last
noise back in. A grid that decreases leads from data to noise, for deterministic samplers run backwards.

Starts and ends may be arrays of shape (B,) or (B, T), the lead axes: a level for each sample or each frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from diffcore import _array, _check, levels
from diffcore._array import to_host
from diffcore.schedules import Schedule
from diffcore.schedules._base import scaling_of

Float64 = npt.NDArray[np.float64]


def uniform(
    schedule: Schedule, steps: int, *, start: npt.ArrayLike = 1.0, end: npt.ArrayLike = 0.0, clean: bool | None = None
) -> Float64:
    r"""Return a grid uniform in time: t_i = start + (end - start) i / N.

    Args:
        schedule: turns the times into log-SNRs.
        steps: N, an int >= 1.
        start, end: times in [0, 1], different; numbers, or arrays of shape (B,) or (B, T). A start below the end leads
            to more noise.
        clean: whether the last point is lambda = inf; None means where the grid ends at t = 0.

    Returns:
        A float64 array (N + 1, *lead).

    Raises:
        ValueError: steps < 1; times out of range, or equal; a clean end of a grid that leads to noise.
        TypeError: `schedule` is not a schedule, `steps` not an int.

    >>> from diffcore.schedules import Cosine
    >>> uniform(Cosine(), 2).round(3)
    array([-20.,   0.,  inf])
    """
    function = "grids.uniform"
    count, (first, last) = _check.integer(function, "steps", steps, 1), _check_ends(function, start, end)
    part = _column(np.arange(count + 1.0), first) / count
    return _of_times(function, schedule, first * (1.0 - part) + last * part, clean)


def uniform_log_snr(
    schedule: Schedule, steps: int, *, start: npt.ArrayLike = 1.0, end: npt.ArrayLike = 0.0, clean: bool | None = None
) -> Float64:
    r"""Return a grid uniform in log-SNR, from lambda(start) to lambda(end).

    With a clean end N points are uniform between the two, both included, and the last one is lambda = inf; without, N +
    1 points are uniform. Arguments and errors as for `uniform`; the log-SNRs at `start` and `end` must be finite.

    Source: Lu et al. 2022 (arXiv 2206.00927), sec. 3 ("logSNR" time steps).

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

        sigma_i = (sigma_max^{1/rho} + i / (N - 1) (sigma_min^{1/rho} - sigma_max^{1/rho}))^rho for i < N,  sigma_N = 0

    This is for a clean end, as in EDM; without one, N + 1 points are spaced in this way, and lambda(end) is the last.

    Args:
        schedule, steps, start, end, clean: as for `uniform`; the log-SNRs at `start` and `end` must be finite.
        rho: positive; EDM uses 7, and a large one approaches `uniform_log_snr`.

    Returns:
        A float64 array (N + 1, *lead) of log-SNRs, -2 log(sigma / alpha).

    Raises:
        As `uniform`; ValueError: rho is not positive.

    Source: Karras et al. 2022 (arXiv 2206.00364), eq. 5.

    >>> from diffcore.schedules import Karras
    >>> np.exp(-0.5 * karras(Karras(), 3)).round(3)
    array([8.000e+01, 2.515e+00, 2.000e-03, 0.000e+00])
    """
    half = -0.5 / _check.number("grids.karras", "rho", rho, 0, open_low=True, hint="EDM uses 7")
    return _spaced(
        "grids.karras", schedule, steps, start, end, clean, lambda v: np.exp(v * half), lambda v: np.log(v) / half
    )


def from_times(schedule: Schedule, times: npt.ArrayLike, *, clean: bool | None = None) -> Float64:
    r"""Return the grid of any times that you give.

    Args:
        schedule: turns the times into log-SNRs.
        times: (N + 1,), (N + 1, B) or (N + 1, B, T) in [0, 1], strictly decreasing along the first axis; or strictly
            increasing, to go from data to noise.
        clean: whether the last point is lambda = inf; None means where the times end at 0.

    Returns:
        A float64 array of log-SNRs of the shape of `times`.

    Raises:
        ValueError: times out of range, NaN, repeated, out of order or too few (the message gives the place); a clean end
            of times that increase.
        TypeError: `schedule` is not a schedule, or `times` are not real numbers.

    >>> from diffcore.schedules import LinearLogSNR
    >>> from_times(LinearLogSNR(), [1.0, 0.25, 0.0])
    array([-10.,   5.,  inf])
    """
    function = "grids.from_times"
    points = _check_shape(function, "times", "times", times)
    outside = ~((points >= 0.0) & (points <= 1.0))
    if np.any(outside):
        index = np.argwhere(outside)[0]
        raise _check.error(ValueError, function, f"times{_at(index)}", "be a time in [0, 1]", points[tuple(index)])
    _check_monotone(function, "times", points)
    return _of_times(function, schedule, points, clean)


class Imported(NamedTuple):
    """A grid of another library, and a note on what was left out of it, "" if nothing was."""

    grid: Float64
    note: str


def from_sigmas(sigmas: npt.ArrayLike, *, scaling: str = "ve", tolerance: float = 1e-6) -> Imported:
    r"""Return the grid of the noise levels of another library, without repeated levels.

        "ve":   sigma / alpha, of EDM and k-diffusion, and of diffusers for any prediction:  lambda = -2 log sigma
        "flow": sigma in [0, 1] of flow matching, alpha = 1 - sigma:                         lambda = 2 log((1 - sigma) / sigma)
        "vp":   sigma in [0, 1] with alpha^2 = 1 - sigma^2:                                  lambda = log(1 - sigma^2) - 2 log sigma

    A point that repeats the one before is left out, and the note lists it: Heun and KDPM2 list levels twice, and rounding
    to float32 may put neighbours out of order. Points further out of order are refused.

    Args:
        sigmas: (N + 1,), decreasing from noise to data, where the last may be 0, clean data; or increasing, to noise.
        scaling: of the sigmas, as above. The plan may have another.
        tolerance: the least distance of two points, relative to sigma, in [0, 1).

    Returns:
        `Imported(grid, note)`, the grid for the `grid=` of any sampler.

    Raises:
        ValueError: a sigma outside the scaling's range, or out of order (the message gives the place); fewer than two levels.
        TypeError: `sigmas` or `tolerance` are not real numbers.

    >>> found = from_sigmas([80.0, 1.0, 1.0, 0.0])
    >>> found.grid.round(3), found.note
    (array([-8.764,  0.   ,    inf]), 'left out 1 of 4 sigmas: [2] repeats 1.0')
    """
    function = "grids.from_sigmas"
    levels.check_scaling(function, scaling)
    tolerance = _check.number(function, "tolerance", tolerance, 0, 1, open_high=True)
    points = to_host(sigmas, np.float64, function=function, argument="sigmas")
    if points.ndim != 1 or len(points) < 2:
        raise _shape_error(function, "sigmas", "(N + 1,), N >= 1", points)
    most = math.inf if scaling == "ve" else 1.0
    good = (points >= 0.0) & (points < math.inf) & (points <= most)
    if not np.all(good):
        index = int(np.argmin(good))
        must = f"be a {'finite number >= 0' if scaling == 've' else 'number in [0, 1]'} with scaling={scaling!r}"
        hint = "" if scaling == "ve" else "sigma / alpha goes with scaling='ve'"
        raise _check.error(ValueError, function, f"sigmas[{index}]", must, points[index], hint)
    kept, left_out = _distinct(function, points, tolerance)
    if len(kept) < 2:
        raise ValueError(f"{function}: `sigmas` must have at least two levels, got only {float(points[0])!r}")
    sigma = points[kept]
    with np.errstate(divide="ignore"):
        log_alpha2 = 0.0 if scaling == "ve" else np.log1p(-sigma) + np.log1p(sigma if scaling == "vp" else -sigma)
        found = log_alpha2 - 2.0 * np.log(sigma)
    some = ", ".join(left_out[:4]) + (", ..." if len(left_out) > 4 else "")
    note = f"left out {len(left_out)} of {len(points)} sigmas: {some}" if left_out else ""
    return Imported(check(function, found), note)


def _distinct(function: str, points: Float64, tolerance: float) -> tuple[list[int], list[str]]:
    """Return the indices of the points to keep, each beyond the last one kept, and a note on each of the others."""
    sign = 1.0 if points[0] > points[-1] else -1.0
    kept, left_out = [0], list[str]()
    for index in range(1, len(points)):
        last, here = float(points[kept[-1]]), float(points[index])
        if sign * (last - here) > tolerance * max(last, here):
            kept.append(index)
        elif abs(last - here) > tolerance * max(last, here):
            raise ValueError(
                f"{function}: `sigmas` must {'decrease' if sign > 0 else 'increase'} throughout, as their ends do, got "
                f"{last!r} and {here!r} at [{kept[-1]}] and [{index}]; to go back to more noise, make several grids"
            )
        else:
            left_out.append(f"[{index}] repeats {last!r}" + ("" if last == here else f" but for rounding, {here!r}"))
    return kept, left_out


def check(function: str, grid: Any) -> Float64:
    r"""Return a grid as a float64 array (N + 1, *lead), after checking it.

    Args:
        function: the name of the caller, for messages.
        grid: log-SNRs, a sequence or an array (N + 1,), (N + 1, B) or (N + 1, B, T): strictly increasing along the
            first axis, from noise to data, where only the last point may be inf; or strictly decreasing, without
            inf. The noisy end may be -inf.

    Raises:
        ValueError: fewer than two points, NaN, a misplaced inf, or points that are repeated or out of order; the
            message gives the place.
        TypeError: `grid` does not hold real numbers.

    >>> check("mine", [-1, 2, math.inf])
    array([-1.,  2., inf])
    """
    points = _check_shape(function, "grid", "log-SNRs", grid)
    if np.any(np.isnan(points)):
        where = _at(np.argwhere(np.isnan(points))[0])
        raise ValueError(f"{function}: `grid{where}` must be a log-SNR, got NaN")
    early = np.isposinf(points[:-1])
    if np.any(early):
        raise ValueError(
            f"{function}: `grid{_at(np.argwhere(early)[0])}` must not be inf, clean data, which only the last point may be; "
            f"to go from data to noise, start at a finite log-SNR (a time a little above 0)"
        )
    _check_monotone(function, "grid", points)
    return points


def _of_times(function: str, schedule: Schedule, times: Float64, clean: bool | None) -> Float64:
    scaling_of(function, "schedule", schedule)
    found = np.array(schedule.log_snr(times), dtype=np.float64)
    found[-1] = np.where(_ends_clean(function, times[0], times[-1], clean), np.inf, found[-1])
    return check(function, found)


def _spaced(
    function: str,
    schedule: Schedule,
    steps: int,
    start: npt.ArrayLike,
    end: npt.ArrayLike,
    clean: bool | None,
    to: Callable[[Any], Any],
    back: Callable[[Any], Any],
) -> Float64:
    """Return the grid uniform in to(lambda); `back` is the inverse of `to`."""
    scaling_of(function, "schedule", schedule)
    count, (first, last) = _check.integer(function, "steps", steps, 1), _check_ends(function, start, end)
    low, high = (np.asarray(schedule.log_snr(time), dtype=np.float64) for time in (first, last))
    if not np.all(np.isfinite(low) & np.isfinite(high)):
        raise ValueError(
            f"{function}: the log-SNRs at `start` and `end` must be finite, got {low} and {high}; give `start` < 1 or "
            f"`end` > 0, or use schedules.truncate"
        )
    ends_clean = _ends_clean(function, first, last, clean)
    spaces = np.where(ends_clean, count - 1, count)  # the step to clean data is one of the N
    index = _column(np.arange(count + 1.0), first)
    part = np.minimum(index / np.maximum(spaces, 1), 1.0)
    found = np.where(part == 0.0, low, np.where(part == 1.0, high, back(to(low) * (1.0 - part) + to(high) * part)))
    found[-1] = np.where(ends_clean, np.inf, found[-1])
    return check(function, found)


def _ends_clean(function: str, first: Float64, last: Float64, clean: bool | None) -> npt.NDArray[np.bool_]:
    if clean is None:
        return np.asarray((last == 0.0) & (first > last))
    flag = _check.flag(function, "clean", clean, hint="or None: clean where the grid ends at t = 0")
    if flag and np.any(first < last):
        raise ValueError(
            f"{function}: `clean` must not be True for times that increase, which end in noise; leave it out, or "
            f"exchange the ends"
        )
    return np.full(last.shape, flag)


def _check_ends(function: str, start: npt.ArrayLike, end: npt.ArrayLike) -> tuple[Float64, Float64]:
    ends = {
        "start": to_host(start, np.float64, function=function, argument="start"),
        "end": to_host(end, np.float64, function=function, argument="end"),
    }
    for argument, time in ends.items():
        if not np.all((time >= 0.0) & (time <= 1.0)) or time.ndim > 2:
            raise _check.error(
                ValueError, function, argument, "be times in [0, 1], a number or an array (B,) or (B, T)", time[()]
            )
    first, last = np.broadcast_arrays(*_array.line_up(function, **ends))
    if np.any(first == last):
        raise ValueError(f"{function}: `start` and `end` must differ, got {first[first == last][0]} for both")
    return first, last


def _check_shape(function: str, argument: str, what: str, values: Any) -> Float64:
    points = to_host(values, np.float64, function=function, argument=argument).copy()
    if points.ndim not in (1, 2, 3) or points.shape[0] < 2 or points.size == 0:
        raise _shape_error(function, argument, f"{what} (N + 1,), (N + 1, B) or (N + 1, B, T), N >= 1", points)
    return points


def _shape_error(function: str, argument: str, must: str, points: Float64) -> ValueError:
    return ValueError(f"{function}: `{argument}` must be {must}, got shape {points.shape}")


def _check_monotone(function: str, argument: str, points: Float64) -> None:
    start = (0,) * (points.ndim - 1)
    rising = points[(-1, *start)] > points[(0, *start)]
    good = points[1:] > points[:-1] if rising else points[1:] < points[:-1]
    if not np.all(good):
        index = np.argwhere(~good)[0]
        after = index + (np.arange(points.ndim) == 0)
        first, second = float(points[tuple(index)]), float(points[tuple(after)])
        raise ValueError(
            f"{function}: `{argument}` must strictly {'increase' if rising else 'decrease'} along its first axis, got "
            f"{first!r} and {second!r} at {_at(index)} and {_at(after)}"
        )


def _column(values: Float64, like: Float64) -> Float64:
    """Return values along a first axis, shaped to broadcast against the lead."""
    return values.reshape(-1, *(1,) * like.ndim)


def _at(index: Any) -> str:
    return "[" + ", ".join(str(int(i)) for i in index) + "]"
