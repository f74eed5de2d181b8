"""What all grids share: the checks of grids and of their ends, and grids of many samples or frames."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from diffcore import _array, _check
from diffcore._array import to_host
from diffcore.schedules import Schedule
from diffcore.schedules._base import scaling_of

Float64 = npt.NDArray[np.float64]


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

    >>> check("mine", [-1, 2, np.inf])
    array([-1.,  2., inf])
    """
    if isinstance(grid, str):
        raise _check.error(TypeError, function, "grid", "be log-SNRs (N + 1, *lead)", grid, called(grid))
    if hasattr(grid, "grid") and hasattr(grid, "note"):  # `Imported`
        raise _check.error(TypeError, function, "grid", "be log-SNRs (N + 1, *lead)", grid, "give its `.grid`")
    if hasattr(grid, "__explained__"):
        hint = f"call it: grids.{grid.__name__}(schedule, 20)"
        raise _check.error(TypeError, function, "grid", "be log-SNRs (N + 1, *lead)", grid, hint)
    points = check_shape(function, "grid", "log-SNRs", grid)
    if np.any(np.isnan(points)):
        where = at(np.argwhere(np.isnan(points))[0])
        raise ValueError(f"{function}: `grid{where}` must be a log-SNR, got NaN")
    early = np.isposinf(points[:-1])
    if np.any(early):
        raise ValueError(
            f"{function}: `grid{at(np.argwhere(early)[0])}` must not be inf, clean data, which only the last point may be; "
            f"to go from data to noise, start at a finite log-SNR (a time a little above 0)"
        )
    check_monotone(function, "grid", points)
    return points


def called(grid: str) -> str:
    """Return how a text that was given for a grid becomes one, for messages."""
    if re.search(r"\d[\s,]", grid):
        return "a text of sigmas is grids.from_sigmas(text).grid"
    return f"by name it is grids.by_name({_check.shown(grid)}, schedule, 20)"


def of_times(function: str, schedule: Schedule, times: Float64, clean: bool | None) -> Float64:
    """Return the checked grid at the times of a schedule, its last point clean where `clean` says so."""
    scaling_of(function, "schedule", schedule)
    found = np.array(schedule.log_snr(times), dtype=np.float64)
    found[-1] = np.where(ends_clean(function, times[0], times[-1], clean), np.inf, found[-1])
    return check(function, found)


def ends_clean(function: str, first: Float64, last: Float64, clean: bool | None) -> npt.NDArray[np.bool_]:
    """Return where a grid ends on clean data; None says: at t = 0, reached from noise."""
    if clean is None:
        return np.asarray((last == 0.0) & (first > last))
    flag = _check.flag(function, "clean", clean, hint="or None: clean where the grid ends at t = 0")
    if flag and np.any(first < last):
        raise ValueError(
            f"{function}: `clean` must not be True for times that increase, which end in noise; leave it out, or "
            f"exchange the ends"
        )
    return np.full(last.shape, flag)


def check_ends(function: str, start: npt.ArrayLike, end: npt.ArrayLike) -> tuple[Float64, Float64]:
    """Return the times of both ends with one shape, (), (B,) or (B, T); raise for times beyond [0, 1], or equal."""
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


def check_shape(function: str, argument: str, what: str, values: Any) -> Float64:
    """Return a copy of points on the host in float64; raise for a shape that no grid has."""
    points = to_host(values, np.float64, function=function, argument=argument).copy()
    if points.ndim not in (1, 2, 3) or points.shape[0] < 2 or points.size == 0:
        raise shape_error(function, argument, f"{what} (N + 1,), (N + 1, B) or (N + 1, B, T), N >= 1", points)
    return points


def shape_error(function: str, argument: str, must: str, points: Float64) -> ValueError:
    """Return the error for points of another shape."""
    return ValueError(f"{function}: `{argument}` must be {must}, got shape {points.shape}")


def check_monotone(function: str, argument: str, points: Float64) -> None:
    """Raise ValueError, with the place, for points that do not strictly increase or strictly decrease."""
    start = (0,) * (points.ndim - 1)
    rising = points[(-1, *start)] > points[(0, *start)]
    good = points[1:] > points[:-1] if rising else points[1:] < points[:-1]
    if not np.all(good):
        index = np.argwhere(~good)[0]
        after = index + (np.arange(points.ndim) == 0)
        first, second = float(points[tuple(index)]), float(points[tuple(after)])
        raise ValueError(
            f"{function}: `{argument}` must strictly {'increase' if rising else 'decrease'} along its first axis, got "
            f"{first!r} and {second!r} at {at(index)} and {at(after)}"
        )


def column(values: Float64, like: Float64) -> Float64:
    """Return values along a first axis, shaped to broadcast against the lead."""
    return values.reshape(-1, *(1,) * like.ndim)


def at(index: Any) -> str:
    """Return an index as it is written after an array."""
    return "[" + ", ".join(str(int(i)) for i in index) + "]"


Ends = tuple[npt.ArrayLike, npt.ArrayLike, bool | None]
"""The arguments `start`, `end` and `clean`."""


def each(function: str, schedule: Schedule, ends: Ends, make: Callable[[float, float, bool], Any]) -> Float64:
    """Return the grids `make(start, end, clean)` of every sample and frame, each made from noise to data, as one array.

    Where the start lies below the end the grid is made the other way and turned round.
    """
    scaling_of(function, "schedule", schedule)
    start, end, clean = ends
    first, last = check_ends(function, start, end)
    clean_ends = np.broadcast_to(ends_clean(function, first, last, clean), first.shape)
    found = []
    for low, high, ends_in_data in zip(first.flat, last.flat, clean_ends.flat, strict=True):
        grid = make(max(float(low), float(high)), min(float(low), float(high)), bool(ends_in_data))
        found.append(np.asarray(grid if low > high else grid[::-1], dtype=np.float64))
    if len({len(grid) for grid in found}) > 1:
        raise ValueError(
            f"{function}: `start` and `end` must give grids of one length, got {sorted({len(grid) for grid in found})} "
            f"points; ask for fewer `steps`, or make the grids one by one"
        )
    return check(function, np.stack(found, axis=-1).reshape(len(found[0]), *first.shape))
