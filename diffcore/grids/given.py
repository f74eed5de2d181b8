"""Grids from what one has: times, and the noise levels of another library as numbers or as text."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from diffcore import _check, levels
from diffcore._array import to_host
from diffcore.grids._base import Float64, at, check, check_monotone, check_shape, of_times, shape_error
from diffcore.grids._rules import entries_of
from diffcore.schedules import Schedule
from diffcore.schedules._base import scaling_of


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
        ValueError: times out of range, NaN, repeated, out of order or too few (the message gives the place; `from_timesteps`
            leaves out repeated ones); a clean end of times that increase.
        TypeError: `schedule` is not a schedule, or `times` are not real numbers.

    >>> from diffcore.schedules import LinearLogSNR
    >>> from_times(LinearLogSNR(), [1.0, 0.25, 0.0])
    array([-10.,   5.,  inf])
    """
    function = "grids.from_times"
    points = check_shape(function, "times", "times", times)
    outside = ~((points >= 0.0) & (points <= 1.0))
    if np.any(outside):
        index = np.argwhere(outside)[0]
        raise _check.error(ValueError, function, f"times{at(index)}", "be a time in [0, 1]", points[tuple(index)])
    check_monotone(function, "times", points)
    return of_times(function, schedule, points, clean)


class Imported(NamedTuple):
    """A grid of another library, and a note on what was left out of it, "" if nothing was."""

    grid: Float64
    note: str


def from_sigmas(sigmas: npt.ArrayLike | str, *, scaling: str = "ve", tolerance: float = 1e-6) -> Imported:
    r"""Return the grid of the noise levels of another library, without repeated levels.

        "ve":   sigma / alpha, of EDM and k-diffusion, and of diffusers for any prediction:  lambda = -2 log sigma
        "flow": sigma in [0, 1] of flow matching, alpha = 1 - sigma:                         lambda = 2 log((1 - sigma) / sigma)
        "vp":   sigma in [0, 1] with alpha^2 = 1 - sigma^2:                                  lambda = log(1 - sigma^2) - 2 log sigma

    A point that repeats the one before is left out, and the note lists it: Heun and KDPM2 list levels twice, and rounding
    to float32 may put neighbours out of order. Points further out of order are refused.

    Args:
        sigmas: (N + 1,), decreasing from noise to data, where the last may be 0, clean data; or increasing, to noise. Or a text of
            such numbers, with commas, spaces or lines between them and brackets around them or not.
        scaling: of the sigmas, as above. The plan may have another.
        tolerance: the least distance of two points, relative to sigma, in [0, 1).

    Returns:
        `Imported(grid, note)`, the grid for the `grid=` of any sampler.

    Raises:
        ValueError: a sigma outside the scaling's range, or out of order (the message gives the place); fewer than two levels.
        TypeError: `sigmas` or `tolerance` are not real numbers.

    >>> from_sigmas("14.6, 6.4, 1, 0").grid.round(3)
    array([-5.362, -3.713,  0.   ,    inf])
    >>> found = from_sigmas([80.0, 1.0, 1.0, 0.0])
    >>> found.grid.round(3), found.note
    (array([-8.764,  0.   ,    inf]), 'left out 1 of 4 sigmas: [2] repeats 1.0')
    """
    function = "grids.from_sigmas"
    levels.check_scaling(function, scaling)
    tolerance = _check.number(function, "tolerance", tolerance, 0, 1, open_high=True)
    given = _numbers(function, sigmas) if isinstance(sigmas, str) else sigmas
    points = to_host(given, np.float64, function=function, argument="sigmas")
    if points.ndim != 1 or len(points) < 2:
        raise shape_error(function, "sigmas", "(N + 1,), N >= 1", points)
    most = math.inf if scaling == "ve" else 1.0
    good = (points >= 0.0) & (points < math.inf) & (points <= most)
    if not np.all(good):
        index = int(np.argmin(good))
        must = f"be a {'finite number >= 0' if scaling == 've' else 'number in [0, 1]'} with scaling={scaling!r}"
        hint = "" if scaling == "ve" else "sigma / alpha goes with scaling='ve'"
        raise _check.error(ValueError, function, f"sigmas[{index}]", must, points[index], hint)
    sigma, note = _distinct(function, "sigmas", points, tolerance)
    if len(sigma) < 2:
        raise ValueError(f"{function}: `sigmas` must have at least two levels, got only {float(points[0])!r}")
    return Imported(check(function, levels_of(sigma, scaling)), note)


def from_timesteps(
    schedule: Schedule,
    timesteps: npt.ArrayLike,
    *,
    total: int | None = None,
    clean: bool | None = None,
    tolerance: float = 1e-6,
) -> Imported:
    r"""Return the grid of the timesteps of another library, without repeated ones.

    Timestep i of 0, ..., T - 1 is the time i / (T - 1), as `schedules.Table` has it. Where lambda(0) is inf, as flow models have
    it, it is i / T, since those list T sigma, from T down. The lists leave out where the last step leads, clean data, so it is
    added.

    A timestep that repeats the one before is left out, and the note lists it: Heun lists timesteps twice, and rounding to float32
    may put neighbours out of order. Timesteps further out of order are refused. Points between two steps, as KDPM2 lists them,
    cannot be told from steps: of those take every second one.

    Args:
        schedule: turns the times into log-SNRs.
        timesteps: (N,), decreasing from noise to data, in [0, T - 1], or [0, T] where lambda(0) is inf; fractions too. Or
            increasing, to noise.
        total: T; None is the length of the schedule's table, or 1000.
        clean: whether clean data is added as the last point, lambda = inf; None adds it to timesteps that decrease.
        tolerance: the least distance of two timesteps, relative to the larger, in [0, 1).

    Returns:
        `Imported(grid, note)`, the grid for the `grid=` of any sampler.

    Raises:
        ValueError: a timestep out of range or out of order (the message gives the place); fewer than two points; a clean end of
            timesteps that increase.
        TypeError: `schedule` is not a schedule; `timesteps` or `tolerance` are not real numbers.

    Source: diffusers, `scheduler.timesteps`.

    >>> from diffcore.schedules import LinearLogSNR
    >>> found = from_timesteps(LinearLogSNR(), [900, 600, 600, 300], total=1001)
    >>> found.grid, found.note
    (array([-8., -2.,  4., inf]), 'left out 1 of 4 timesteps: [2] repeats 600.0')
    """
    function = "grids.from_timesteps"
    scaling_of(function, "schedule", schedule)
    count = entries_of(schedule) if total is None else _check.integer(function, "total", total, 2)
    tolerance = _check.number(function, "tolerance", tolerance, 0, 1, open_high=True)
    points = to_host(timesteps, np.float64, function=function, argument="timesteps")
    if points.ndim != 1 or len(points) < 1:
        raise shape_error(function, "timesteps", "(N,), N >= 1", points)
    most = count if np.isposinf(schedule.log_snr(0.0)) else count - 1
    good = (points >= 0.0) & (points <= most)
    if not np.all(good):
        index = int(np.argmin(good))
        hint = "`total` is the number of timesteps; times in [0, 1] go with grids.from_times"
        raise _check.error(ValueError, function, f"timesteps[{index}]", f"be in [0, {most}]", points[index], hint)
    kept, note = _distinct(function, "timesteps", points, tolerance)
    falls = bool(kept[0] >= kept[-1])
    if not (falls if clean is None else _check.flag(function, "clean", clean)):
        if len(kept) < 2:
            raise ValueError(f"{function}: `timesteps` must have at least two levels, got only {float(kept[0])!r}")
        return Imported(of_times(function, schedule, kept / most, False), note)
    if not falls:
        raise ValueError(
            f"{function}: `clean` must not be True for timesteps that increase, which end in noise; leave it out"
        )
    found = np.asarray(schedule.log_snr(kept / most), dtype=np.float64)
    return Imported(check(function, found if found[-1] == math.inf else np.append(found, math.inf)), note)


def _distinct(function: str, argument: str, points: Float64, tolerance: float) -> tuple[Float64, str]:
    """Return the points that lie beyond the last one kept, and a note on the others."""
    sign = 1.0 if points[0] > points[-1] else -1.0
    kept, left_out = [0], list[str]()
    for index in range(1, len(points)):
        last, here = float(points[kept[-1]]), float(points[index])
        if sign * (last - here) > tolerance * max(last, here):
            kept.append(index)
        elif abs(last - here) > tolerance * max(last, here):
            raise ValueError(
                f"{function}: `{argument}` must {'decrease' if sign > 0 else 'increase'} throughout, as their ends do, got "
                f"{last!r} and {here!r} at [{kept[-1]}] and [{index}]; to go back to more noise, make several grids"
            )
        else:
            left_out.append(f"[{index}] repeats {last!r}" + ("" if last == here else f" but for rounding, {here!r}"))
    some = ", ".join(left_out[:4]) + (", ..." if len(left_out) > 4 else "")
    note = f"left out {len(left_out)} of {len(points)} {argument}: {some}" if left_out else ""
    return points[kept], note


def levels_of(sigma: Float64, scaling: str) -> Float64:
    """Return the log-SNRs of sigmas, "ve" being sigma / alpha."""
    with np.errstate(divide="ignore"):
        log_alpha2 = 0.0 if scaling == "ve" else np.log1p(-sigma) + np.log1p(sigma if scaling == "vp" else -sigma)
        return np.asarray(log_alpha2 - 2.0 * np.log(sigma))


def _numbers(function: str, text: str) -> list[float]:
    found = []
    for index, part in enumerate(re.split(r"[\s,;]+", text.strip().strip("[]()").strip().rstrip(",;"))):
        try:
            found.append(float(part))
        except ValueError:
            must = "hold numbers, as in '14.6, 6.4, 1, 0'"
            raise _check.error(TypeError, function, f"sigmas[{index}]", must, part, "") from None
    return found
