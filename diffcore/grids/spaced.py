"""Grids that are even in time, in log-SNR, or in a function of sigma, between the levels at two times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from diffcore import _check, levels
from diffcore.grids._base import Ends, Float64, check, check_ends, column, ends_clean, of_times
from diffcore.schedules import Schedule
from diffcore.schedules._base import scaling_of


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
    count, (first, last) = _check.count(function, "steps", steps, 1), check_ends(function, start, end)
    part = column(np.arange(count + 1.0), first) / count
    return of_times(function, schedule, first * (1.0 - part) + last * part, clean)


def uniform_log_snr(
    schedule: Schedule, steps: int, *, start: npt.ArrayLike = 1.0, end: npt.ArrayLike = 0.0, clean: bool | None = None
) -> Float64:
    r"""Return a grid uniform in log-SNR, from lambda(start) to lambda(end).

    With a clean end N points are uniform between the two, both included, and the last one is lambda = inf; without, N +
    1 points are uniform. Arguments and errors as for `uniform`; the log-SNRs at `start` and `end` must be finite.

    Source: Lu et al. 2022 (arXiv 2206.00927), sec. 3 ("logSNR" time steps); "lu lambdas" of diffusers, "exponential" of
    k-diffusion.

    >>> from diffcore.schedules import LinearLogSNR
    >>> uniform_log_snr(LinearLogSNR(), 3)
    array([-10.,   0.,  10.,  inf])
    """
    return _spaced("grids.uniform_log_snr", schedule, steps, (start, end, clean), "ve", lambda w: w, lambda w: w)


def karras(
    schedule: Schedule,
    steps: int,
    *,
    rho: float = 7.0,
    scaling: str = "ve",
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
        scaling: whose sigmas are spaced: "ve" is sigma / alpha; "flow" and "vp" are sigma in [0, 1] of these scalings. Other
            libraries space a flow model's own sigmas, which is "flow".

    Returns:
        A float64 array (N + 1, *lead) of log-SNRs, -2 log(sigma / alpha).

    Raises:
        As `uniform`; ValueError: rho is not positive, or an unknown scaling.

    Source: Karras et al. 2022 (arXiv 2206.00364), eq. 5.

    >>> from diffcore.schedules import Karras
    >>> np.exp(-0.5 * karras(Karras(), 3)).round(3)
    array([8.000e+01, 2.515e+00, 2.000e-03, 0.000e+00])
    """
    half = -0.5 / _check.number("grids.karras", "rho", rho, 0, open_low=True, hint="EDM uses 7")
    ends = start, end, clean
    return _spaced(
        "grids.karras", schedule, steps, ends, scaling, lambda w: np.exp(w * half), lambda value: np.log(value) / half
    )


def polyexponential(
    schedule: Schedule,
    steps: int,
    *,
    rho: float = 1.0,
    scaling: str = "ve",
    start: npt.ArrayLike = 1.0,
    end: npt.ArrayLike = 0.0,
    clean: bool | None = None,
) -> Float64:
    r"""Return a grid whose log sigma falls as a power of what is left of it; rho = 1 is exponential.

        log sigma_i = log sigma_min + (1 - i / (N - 1))^rho (log sigma_max - log sigma_min) for i < N,  sigma_N = 0

    Args:
        schedule, steps, start, end, clean: as for `uniform`; the sigmas at `start` and `end` must be positive and finite.
        rho: positive; above 1 more points lie at low noise.
        scaling: whose sigmas, as for `karras`.

    Returns, raises: as `karras`.

    Source: k-diffusion, `get_sigmas_polyexponential` and `get_sigmas_exponential`.

    >>> from diffcore.schedules import LinearLogSNR
    >>> polyexponential(LinearLogSNR(), 3, rho=2.0)
    array([-10.,   5.,  10.,  inf])
    """
    function = "grids.polyexponential"
    power = _check.number(function, "rho", rho, 0, open_low=True)
    ends = start, end, clean
    same = (lambda w: w), (lambda w: w)
    return _spaced(function, schedule, steps, ends, scaling, *same, lambda part: 1.0 - (1.0 - part) ** power)


def kl_optimal(
    schedule: Schedule,
    steps: int,
    *,
    scaling: str = "ve",
    start: npt.ArrayLike = 1.0,
    end: npt.ArrayLike = 0.0,
    clean: bool | None = None,
) -> Float64:
    r"""Return the grid uniform in arctan sigma, which a KL divergence is least for on Gaussian data of unit variance.

        sigma_i = tan((1 - i / (N - 1)) arctan sigma_max + i / (N - 1) arctan sigma_min) for i < N,  sigma_N = 0

    For sigma / alpha it is uniform in the time of the plain cosine schedule.

    Args:
        schedule, steps, start, end, clean: as for `uniform`; the sigmas at `start` and `end` must be positive and finite.
        scaling: whose sigmas, as for `karras`.

    Returns, raises: as `karras`.

    Source: Sabour et al. 2024 (arXiv 2404.14507), theorem 3.1 and app. A.

    >>> from diffcore.schedules import LinearLogSNR
    >>> kl_optimal(LinearLogSNR(), 3).round(12) + 0.0
    array([-10.,   0.,  10.,  inf])
    """
    ends = start, end, clean
    # the angle and its complement, as one complex number, so that both keep their digits
    return _spaced("grids.kl_optimal", schedule, steps, ends, scaling, _angles, _of_angles)


def beta_sigmas(
    schedule: Schedule,
    steps: int,
    *,
    a: float = 0.6,
    b: float = 0.6,
    scaling: str = "ve",
    start: npt.ArrayLike = 1.0,
    end: npt.ArrayLike = 0.0,
    clean: bool | None = None,
) -> Float64:
    r"""Return the grid whose sigmas are quantiles of a Beta distribution from sigma_min to sigma_max; `beta` is that of times.

        sigma_i = sigma_min + (sigma_max - sigma_min) F^{-1}(1 - i / (N - 1)) for i < N,  sigma_N = 0,  F that of Beta(a, b)

    Args:
        schedule, steps, start, end, clean: as for `uniform`; the sigmas at `start` and `end` must be positive and finite.
        a, b: the parameters, positive.
        scaling: whose sigmas, as for `karras`.

    Returns, raises: as `karras`; ValueError: a or b is not positive.

    Source: diffusers, `use_beta_sigmas`, after Lee et al. 2024 (arXiv 2407.12173).

    >>> from diffcore.schedules import Karras
    >>> np.exp(-0.5 * beta_sigmas(Karras(), 3)).round(3)
    array([8.0000e+01, 4.0001e+01, 2.0000e-03, 0.0000e+00])
    """
    function = "grids.beta_sigmas"
    a, b = (_check.number(function, name, value, 0, open_low=True) for name, value in (("a", a), ("b", b)))
    ends = start, end, clean
    sigma = (lambda w: np.exp(-0.5 * w)), (lambda value: -2.0 * np.log(value))
    return _spaced(function, schedule, steps, ends, scaling, *sigma, lambda part: 1.0 - beta_quantile(1.0 - part, a, b))


def linear_quadratic(
    schedule: Schedule,
    steps: int,
    *,
    threshold: float = 0.025,
    linear_steps: int | None = None,
    scaling: str = "ve",
    start: npt.ArrayLike = 1.0,
    end: npt.ArrayLike = 0.0,
    clean: bool | None = None,
) -> Float64:
    r"""Return Mochi's grid: small equal steps of sigma down by a threshold, then steps that grow to reach 0.

        sigma_i = sigma_max (1 - x_i) + sigma_end x_i,   x_i = i theta / L for i <= L,
        x_i = theta + theta (i - L) / L + (i - L)^2 (1 - theta N / L) / (N - L)^2 for i > L,  x_N = 1

    The quadratic joins with the slope of the line, and sigma_end is 0 where the grid ends clean.

    Args:
        schedule, steps, start, end, clean: as for `uniform`; sigma at `start`, which is 1 for a flow, must be finite.
        threshold: theta, in (0, 1).
        linear_steps: L, in [1, N - 1]; None is half of the steps, rounded down. A single step has none.
        scaling: whose sigmas, as for `karras`: "flow" for the models that it was made for.

    Returns, raises: as `karras`; ValueError: `threshold` or `linear_steps` out of range, or `start` below `end`.

    Source: Genmo 2024, mochi-preview, `linear_quadratic_schedule`; ComfyUI, "linear_quadratic".

    >>> from diffcore.schedules import Flow
    >>> 1 / (1 + np.exp(0.5 * linear_quadratic(Flow(), 4, scaling="flow").round(12)))
    array([1.    , 0.9875, 0.975 , 0.725 , 0.    ])
    """
    function = "grids.linear_quadratic"
    scaling_of(function, "schedule", schedule)
    levels.check_scaling(function, scaling)
    count, (first, last) = _check.count(function, "steps", steps, 1), check_ends(function, start, end)
    theta = _check.number(function, "threshold", threshold, 0, 1, open_low=True, open_high=True)
    if linear_steps is None:
        linear_steps = max(count // 2, 1)
    elif count > 1:
        linear_steps = _check.integer(function, "linear_steps", linear_steps, 1, count - 1)
    if np.any(first < last):
        raise ValueError(f"{function}: `start` must be above `end`; this grid leads to clean data only")
    line = np.minimum(np.arange(count), linear_steps)
    more = np.arange(count) - line
    share = (1.0 - theta * count / linear_steps) / max(count - linear_steps, 1) ** 2
    left = 1.0 - theta * (line + more) / linear_steps - share * more**2
    top = _into(np.asarray(schedule.log_snr(first), dtype=np.float64), scaling)
    if not np.all(np.isfinite(top)):
        raise ValueError(f"{function}: sigma at `start` must be finite, got inf; give `start` < 1, or scaling='flow'")
    in_data = ends_clean(function, first, last, clean)
    ratio = np.where(in_data, 0.0, np.exp(0.5 * (top - _into(np.asarray(schedule.log_snr(last)), scaling))))
    points = np.empty((count + 1, *first.shape))
    points[:-1] = _out(top - 2.0 * np.log(ratio + (1.0 - ratio) * column(left, first)), scaling)
    points[-1] = np.where(in_data, np.inf, schedule.log_snr(last))
    return check(function, points)


def beta_quantile(p: Float64, a: float, b: float) -> Float64:
    """Return the quantiles of Beta(a, b) on the host."""
    from scipy.special import betaincinv  # takes a while to import

    return np.asarray(betaincinv(a, b, p))


def _angles(w: Float64) -> Any:
    return np.arctan(np.exp(-0.5 * w)) + 1j * np.arctan(np.exp(0.5 * w))


def _of_angles(angles: Any) -> Float64:
    late = angles.real < angles.imag
    tangent = np.tan(np.where(late, angles.real, angles.imag))
    return np.asarray(np.where(late, -2.0, 2.0) * np.log(tangent))


def _into(log_snr: Float64, scaling: str) -> Float64:
    """Return -2 log sigma of a scaling, which is lambda itself for sigma / alpha."""
    if scaling == "ve":
        return log_snr
    return np.logaddexp(0.0, log_snr) if scaling == "vp" else 2.0 * np.logaddexp(0.0, 0.5 * log_snr)


def _out(w: Float64, scaling: str) -> Float64:
    """Return the log-SNR of a -2 log sigma; sigma = 1, pure noise, is -inf."""
    if scaling == "ve":
        return w
    w = np.maximum(w, 0.0)  # a rounding error below
    with np.errstate(divide="ignore"):
        return w + (np.log(-np.expm1(-w)) if scaling == "vp" else 2.0 * np.log(-np.expm1(-0.5 * w)))


def _spaced(
    function: str,
    schedule: Schedule,
    steps: int,
    ends: Ends,
    scaling: str,
    to: Callable[[Any], Any],
    back: Callable[[Any], Any],
    bend: Callable[[Float64], Float64] = lambda part: part,
) -> Float64:
    """Return the grid whose points lie at parts bend(i / n) between to(w) of both ends, w = -2 log sigma; `back` inverts `to`."""
    scaling_of(function, "schedule", schedule)
    levels.check_scaling(function, scaling)
    start, end, clean = ends
    count, (first, last) = _check.count(function, "steps", steps, 1), check_ends(function, start, end)
    low, high = (np.asarray(schedule.log_snr(time), dtype=np.float64) for time in (first, last))
    from_, upto = _into(low, scaling), _into(high, scaling)
    if not np.all(np.isfinite(from_) & np.isfinite(upto)):
        raise ValueError(
            f"{function}: the log-SNRs at `start` and `end` must be finite, got {low} and {high}; give `start` < 1 or "
            f"`end` > 0, or use schedules.truncate"
        )
    in_data = ends_clean(function, first, last, clean)
    spaces = np.where(in_data, count - 1, count)  # the step to clean data is one of the N
    index = column(np.arange(count + 1.0), first)
    part = bend(np.minimum(index / np.maximum(spaces, 1), 1.0))
    inner = _out(back(to(from_) * (1.0 - part) + to(upto) * part), scaling)
    found = np.where(part == 0.0, low, np.where(part == 1.0, high, inner))
    found[-1] = np.where(in_data, np.inf, found[-1])
    return check(function, found)
