"""The identities of schedules, levels and the process, each a function to run on one's own.

A check raises AssertionError and says which identity, where, and by how much. It returns how much of its tolerance was
used up, in [0, 1], unless it says otherwise.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from diffcore import levels, process
from diffcore._array import Array
from diffcore.levels import Level
from diffcore.testing._arrays import (
    Float64,
    compare,
    epsilon,
    fail_unless,
    flat,
    host,
    in_order,
    largest,
    put,
    smallest,
    where_at,
)
from diffcore.testing._naming import schedule_of

__all__ = [
    "check_bayes",
    "check_chapman_kolmogorov",
    "check_reverse_variance",
    "check_scaling",
    "check_schedule",
    "times_over",
]


def times_over(count: int = 65) -> Float64:
    """Return times from 0 to 1, both included, closer together towards both ends, and some on no grid of equal steps.

    >>> times_over(3)[:4]
    array([0.e+00, 1.e-06, 1.e-03, 5.e-01])
    """
    even = np.linspace(0.0, 1.0, count)[1:-1]
    between = (np.arange(1, count - 2) * (5.0**0.5 - 1.0) / 2.0) % 1.0  # what is right on a table's nodes alone
    inner = np.sort(np.concatenate([even, between[(between > 2e-3) & (between < 1.0 - 2e-3)]]))
    return np.concatenate([[0.0, 1e-6, 1e-3], inner, [1.0 - 1e-3, 1.0 - 1e-6, 1.0]])


def check_schedule(
    schedule: Any, *, like: Array | None = None, times: Float64 | None = None, ulps: float = 32.0
) -> float:
    r"""Check that a schedule is one: decreasing, with the inverse and the slope it says, and levels in its scaling.

        lambda(t) falls strictly,   time(lambda(t)) = t,   slope(t) = d lambda / dt,   schedule(t) = its scaling's level

    Args:
        schedule: an object with `log_snr(t)`, `time(log_snr)`, `slope(t)`, `scaling` and a call that returns a `Level`.
        like: a floating array of the library and dtype to check in; NumPy float64 without one.
        times: times in increasing order; None is `times_over()`.
        ulps: the inverse's tolerance, in units of the dtype's rounding in t and in lambda.

    Raises:
        AssertionError: naming the first of these that does not hold, and the time.

    Source: Kingma et al. 2021 (arXiv 2107.00630), sec. 3.1.

    >>> import diffcore as dc
    >>> check_schedule(dc.schedules.Cosine()) <= 1.0
    True
    """
    schedule_of("testing.check_schedule", schedule)
    like = put(0.0, like)
    at = put(times_over() if times is None else times, like)
    t, eps = host(at), epsilon(at)
    log_snr, back, slope = schedule.log_snr(at), schedule.time(schedule.log_snr(at)), schedule.slope(at)
    name = f"schedule {textwrap.shorten(repr(schedule), 100)}"
    found = host(log_snr)
    missing = np.isnan(found)
    if np.any(missing):
        first = float(t[int(np.argmax(missing))])
        fail_unless(False, f"{name}: lambda(t)", f"NaN at t = {first!r}, {_of(missing)} times")
    steep = np.abs(host(slope))
    with np.errstate(
        invalid="ignore", over="ignore"
    ):  # between times so close together it may fall by less than a unit
        little = np.minimum(steep[1:], steep[:-1]) * np.diff(t) <= 4.0 * eps * (1.0 + np.abs(found[1:]))
    falls = (found[1:] < found[:-1]) | ((found[1:] == found[:-1]) & little)
    if not np.all(falls):
        at_first = int(np.argmin(falls))
        (before, after), (high, low) = (part[at_first : at_first + 2].tolist() for part in (t, found))
        there = f"not between t = {before!r} and {after!r}, where lambda is {high!r} and {low!r}"
        fail_unless(False, f"{name}: lambda(t) falls", f"{there}, {_of(~falls)} intervals")
    with np.errstate(invalid="ignore", divide="ignore"):
        rounding = np.where(np.isfinite(found), (1.0 + np.abs(found)) / steep, 0.0)
    used = compare(f"{name}: time(lambda(t)) = t", host(back), t, ulps * eps * (t + rounding), where={"t": t})
    used = max(used, _check_slope(name, schedule, t, host(slope), eps))
    used = max(used, _check_ends(name, schedule, t, host(slope), eps))
    return max(used, check_scaling(schedule(at), schedule.scaling))


def _of(wrong: npt.NDArray[np.bool_]) -> str:
    return f"in {int(np.sum(wrong))} of {wrong.size}"


def _check_slope(name: str, schedule: Any, t: Float64, slope: Float64, eps: float) -> float:
    """Compare the slope with difference quotients in float64; at a corner one of the two sides has to agree."""
    inside = (t > 0.0) & (t < 1.0)
    t, slope = t[inside], slope[inside]
    step = 1e-5 * np.minimum(t, 1.0 - t)
    after, here, before = (np.asarray(schedule.log_snr(t + k * step), dtype=np.float64) for k in (1.0, 0.0, -1.0))
    quotients = np.stack([(after - before) / (2.0 * step), (after - here) / step, (here - before) / step])
    best = np.take_along_axis(quotients, np.argmin(np.abs(quotients - slope), axis=0)[None], axis=0)[0]
    noise = 8.0 * 2.0**-52 * (1.0 + np.abs(here) + np.abs(slope)) / step
    return compare(
        f"{name}: slope = d lambda / dt", slope, best, (2e-5 + 2048.0 * eps) * np.abs(best) + noise, where={"t": t}
    )


def _check_ends(name: str, schedule: Any, t: Float64, slope: Float64, eps: float) -> float:
    """Compare the slope at t = 0 and 1 with a quotient of second order from inside, where lambda and the slope are finite."""
    used, step = 0.0, 1e-7
    for end, inward in ((0.0, 1.0), (1.0, -1.0)):
        there = slope[t == end]
        here, first, second = (float(schedule.log_snr(np.float64(end + k * inward * step))) for k in (0.0, 1.0, 2.0))
        if not there.size or not np.isfinite([here, first, second, there[0]]).all():
            continue
        quotient = inward * (4.0 * first - 3.0 * here - second) / (2.0 * step)
        noise = 32.0 * 2.0**-52 * (1.0 + abs(here)) / step
        allowed = (1e-3 + 2048.0 * eps) * abs(quotient) + noise
        used = max(
            used, compare(f"{name}: slope = d lambda / dt at its end", there[0], quotient, allowed, where={"t": end})
        )
    return used


def check_scaling(level: Level, scaling: str, *, ulps: float = 16.0) -> float:
    r"""Check that a level obeys the condition of its scaling, and has the log-SNR it says.

        "vp": alpha^2 + sigma^2 = 1,   "ve": alpha = 1,   "flow": alpha + sigma = 1,   lambda = 2 log(alpha / sigma)

    Args:
        level: of any library and shape; infinite log-SNRs included. Where alpha or sigma leave the range of the dtype,
            they are only held to that.
        scaling: "vp", "ve" or "flow".
        ulps: the tolerance, in units of the dtype's rounding.

    Raises:
        AssertionError: naming the log-SNR.

    >>> check_scaling(levels.level(np.array([-np.inf, 0.0, 20.0])), "vp") <= 1.0
    True
    """
    (level,) = flat("testing.check_scaling", level=level)
    alpha, sigma, log_snr = (host(part) for part in level)
    eps = epsilon(level.alpha)
    levels.check_scaling("testing.check_scaling", scaling)
    with np.errstate(over="ignore"):
        condition = {"vp": alpha**2 + sigma**2, "ve": alpha, "flow": alpha + sigma}[scaling]
    used = compare(f"level under {scaling!r}: its condition", condition, 1.0, ulps * eps, where={"log_snr": log_snr})
    with np.errstate(all="ignore"):
        ratio = 2.0 * (np.log(alpha) - np.log(sigma))
        # beyond the range of the dtype all that alpha or sigma say is that they are
        (low_alpha, high_alpha), (low_sigma, high_sigma) = (_logs(part, level.alpha) for part in (alpha, sigma))
        within = np.clip(log_snr, 2.0 * (low_alpha - high_sigma), 2.0 * (high_alpha - low_sigma))
        beyond = np.isfinite(log_snr) & ((low_alpha < high_alpha) | (low_sigma < high_sigma))
    ratio = np.where(beyond, within, ratio)
    tolerance = ulps * eps * (1.0 + np.where(np.isfinite(log_snr), np.abs(log_snr), 0.0))
    identity = f"level under {scaling!r}: lambda = 2 log(alpha / sigma)"
    return max(used, compare(identity, ratio, log_snr, tolerance, where={"log_snr": log_snr}))


def _logs(values: Float64, like: Array) -> tuple[Float64, Float64]:
    """Return the logarithms between which those of numbers of a dtype are: wide apart below and above its range."""
    least, most = smallest(like), largest(like)
    low, high = (np.where(values < least, end, values) for end in (0.0, least))
    return np.log(np.where(values > most, most, low)), np.log(high)


def check_chapman_kolmogorov(
    r: Level, s: Level, t: Level, *, transition: Callable[..., Any] = process.transition, ulps: float = 16.0
) -> float:
    r"""Check that going r -> s -> t is going r -> t, for r < s < t.

        (alpha_t / alpha_s)(alpha_s / alpha_r) = alpha_t / alpha_r
        (alpha_t / alpha_s)^2 sigma_{s|r}^2 + sigma_{t|s}^2 = sigma_{t|r}^2

    Args:
        r, s, t: levels of any shape with lambda_r >= lambda_s >= lambda_t; clean data as r makes it the marginal.
        transition: a function (z_s, s=, t=) -> (mean, variance) to check instead of `process.transition`; it is given
            levels of shape (N,).
        ulps: the tolerance, in units of the dtype's rounding: all terms are positive.

    Raises:
        AssertionError: naming the three log-SNRs.
        ValueError: levels out of order, or at which alpha^2 or sigma^2 leaves the range of the dtype.

    Source: Kingma et al. 2021 (arXiv 2107.00630), app. A.1.

    >>> check_chapman_kolmogorov(*(levels.level(np.array([at])) for at in (np.inf, 2.0, -3.0))) <= 1.0
    True
    """
    r, s, t = in_order("testing.check_chapman_kolmogorov", r=r, s=s, t=t)
    one = r.alpha * 0.0 + 1.0
    (mean_s, var_s), (scale_t, var_t) = transition(one, s=r, t=s), transition(one, s=s, t=t)
    mean_direct, var_direct = (host(part) for part in transition(one, s=r, t=t))
    eps, where = ulps * epsilon(r.alpha), where_at(r=r, s=s, t=t)
    two_steps = host(scale_t) * host(mean_s)
    used = compare("Chapman-Kolmogorov: mean", two_steps, mean_direct, eps * np.abs(mean_direct), where=where)
    with np.errstate(invalid="ignore", over="ignore"):
        carried = np.where(host(scale_t) == 0.0, 0.0, host(scale_t) ** 2 * host(var_s))
        variance = carried + host(var_t)
    tolerance = eps * var_direct + 4.0 * smallest(r.alpha)
    return max(used, compare("Chapman-Kolmogorov: variance", variance, var_direct, tolerance, where=where))


def check_bayes(
    s: Level,
    t: Level,
    *,
    posterior: Callable[..., Any] = process.posterior,
    transition: Callable[..., Any] = process.transition,
    marginal: Callable[..., Any] = process.marginal,
    seed: int = 0,
    ulps: float = 32.0,
) -> float:
    r"""Check Bayes' rule as densities, at states drawn from the process.

        q(z_s | z_t, x) q(z_t | x) = q(z_t | z_s) q(z_s | x)

    A density with a variance of 0, as from clean data and between equal levels, or below the normal numbers of the dtype, is a
    point mass: it has to lie at the state, and the other densities agree without it. So do those beside infinite variances, of
    "ve" at lambda = -inf.

    Args:
        s, t: levels of any shape with lambda_s >= lambda_t, both infinities included.
        posterior, transition, marginal: functions to check instead of those of `process`; they are given levels of shape (N,).
        seed: of the states.
        ulps: the tolerance, in units of what rounding the means does to the logarithms.

    Raises:
        AssertionError: naming the two log-SNRs.
        ValueError: levels out of order, or at which alpha^2 or sigma^2 leaves the range of the dtype.

    Source: Ho et al. 2022 (arXiv 2204.03458), eq. 1-3.

    >>> check_bayes(levels.level(np.array([np.inf, 3.0])), levels.level(np.array([2.0, -1.0]))) <= 1.0
    True
    """
    s, t = in_order("testing.check_bayes", s=s, t=t)
    like, where = s.alpha, where_at(s=s, t=t)
    x, first, second = np.random.default_rng(seed).normal(size=(3, *like.shape))
    data = put(x, like)
    z_s = put(_drawn(host(s.alpha) * x, host(s.sigma), first), like)
    forward = transition(z_s, s=s, t=t)
    with np.errstate(invalid="ignore"):
        z_t = put(_drawn(host(forward.mean), host(forward.variance) ** 0.5, second), like)
    densities = [
        (z_s, posterior(z_t, data, s=s, t=t)),
        (z_t, marginal(data, t)),
        (z_t, transition(z_s, s=s, t=t)),
        (z_s, marginal(data, s)),
    ]
    signs = np.array([[1.0], [1.0], [-1.0], [-1.0]])
    point, middle, spread = (
        np.stack([np.broadcast_to(host(part), x.shape) for part in parts])
        for parts in zip(*((z, gaussian.mean, gaussian.variance) for z, gaussian in densities), strict=True)
    )
    eps, least = epsilon(like), smallest(like)
    mass, endless = (spread >= 0.0) & (spread <= least), np.isposinf(spread)
    with np.errstate(all="ignore"):
        scale, size, gap = np.where(mass | endless, 1.0, spread), np.abs(point) + np.abs(middle), np.abs(point - middle)
        distance = gap**2 / scale
        logarithm = np.log(2.0 * np.pi * scale)
        each = -0.5 * signs * (distance + logarithm)
        unsure = distance + size * gap / scale + eps * size**2 / scale + np.abs(logarithm) * 2.0**-52 / eps
        slack = 1.0 + np.sum(unsure, axis=0, where=~(mass | endless))
        total = np.sum(each, axis=0, where=~(mass | endless))
    paired = (np.sum(signs * mass, axis=0) == 0.0) & (np.sum(signs * endless, axis=0) == 0.0)
    identity = "posterior * marginal = transition * marginal"
    used = compare(identity, np.where(paired, total, 0.0), 0.0, ulps * eps * slack, where=where)
    some = np.any(mass | endless, axis=0)
    if not np.any(some):
        return used
    where = {name: part[some] for name, part in where.items()}
    with np.errstate(over="ignore"):
        finite = np.where(endless, 1.0, spread)[:, some]
        left, right = finite[0] * finite[1], finite[2] * finite[3]
        allowed = ulps * eps * right + 4.0 * least * np.sum(finite, axis=0)
    used = max(used, compare(f"{identity}: variances", left, right, allowed, where=where))
    counts = np.sum(endless[:2, some], axis=0), np.sum(endless[2:, some], axis=0)
    compare(f"{identity}: infinite variances", *counts, 0.0, where=where)
    off, allowed = np.where(mass, gap, 0.0)[:, some], (ulps * eps * size + 40.0 * least**0.5)[:, some]
    for name, apart, most in zip(
        ("posterior", "marginal at t", "transition", "marginal at s"), off, allowed, strict=True
    ):
        used = max(used, compare(f"the point mass of the {name} lies at its state", apart, 0.0, most, where=where))
    return used


def _drawn(mean: Float64, deviation: Float64, noise: Float64) -> Float64:
    """Return a state at random, also where the deviation is infinite and says nothing about where."""
    return np.where(np.isposinf(deviation), noise, mean + np.where(np.isposinf(deviation), 0.0, deviation) * noise)


def check_reverse_variance(
    s: Level, t: Level, *, reverse_variance: Callable[..., Any] = process.reverse_variance, ulps: float = 32.0
) -> float:
    r"""Check the interpolated reverse variance: its two bounds, and gamma as an exponent between them.

        v(0) = posterior variance,   v(1) = transition variance,   v(gamma) = v(0)^{1 - gamma} v(1)^gamma

    Between v(0) = 0 and v(1) = inf, of "ve" from lambda = -inf to clean data, nothing follows for the other gammas.

    Args:
        s, t: levels of any shape with lambda_s >= lambda_t, both infinities included.
        reverse_variance: a function (s, t, gamma) -> array to check instead of `process.reverse_variance`; it is given
            levels of shape (N,).
        ulps: the tolerance, in units of the dtype's rounding.

    Raises:
        AssertionError: naming gamma and the two log-SNRs.
        ValueError: levels out of order, or at which alpha^2 or sigma^2 leaves the range of the dtype.

    Source: Ho et al. 2022 (arXiv 2204.03458), eq. 4 and below.

    >>> check_reverse_variance(levels.level(np.array([np.inf, 3.0])), levels.level(np.array([0.0, -1.0]))) <= 1.0
    True
    """
    s, t = in_order("testing.check_reverse_variance", s=s, t=t)
    one = s.alpha * 0.0 + 1.0
    lower = host(process.posterior(one, one, s=s, t=t).variance)
    upper = host(process.transition(one, s=s, t=t).variance)
    where, used = where_at(s=s, t=t), 0.0
    for gamma in (0.0, 0.1, 0.3, 0.5, 1.0):
        with np.errstate(all="ignore"):
            want, got = lower ** (1.0 - gamma) * upper**gamma, host(reverse_variance(s, t, gamma))
            logarithm = np.abs(np.log(np.where(want > 0.0, want, 1.0)))  # how much a power magnifies rounding
            tolerance = ulps * epsilon(s.alpha) * want * (1.0 + logarithm) + 4.0 * smallest(s.alpha)
        open_ended = (lower == 0.0) & np.isposinf(upper) & (0.0 < gamma < 1.0)
        got, want, tolerance = (np.where(open_ended, 0.0, part) for part in (got, want, tolerance))
        used = max(used, compare(f"reverse variance at gamma = {gamma}", got, want, tolerance, where=where))
    return used
