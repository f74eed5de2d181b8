"""The identities of schedules, levels and the process, each a function to run on one's own.

A check raises AssertionError and says which identity, where, and by how much. It returns how much of its tolerance was
used up, in [0, 1], unless it says otherwise.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np

from diffcore import process
from diffcore._array import Array
from diffcore.levels import Level
from diffcore.testing._arrays import Float64, compare, epsilon, fail_unless, host, put, smallest

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
    like = put(0.0, like)
    at = put(times_over() if times is None else times, like)
    t, eps = host(at), epsilon(at)
    log_snr, back, slope = schedule.log_snr(at), schedule.time(schedule.log_snr(at)), schedule.slope(at)
    name = f"schedule {textwrap.shorten(repr(schedule), 100)}"
    found = host(log_snr)
    fail_unless(not np.any(np.isnan(found)), f"{name}: lambda(t)", f"NaN at t = {t[np.isnan(found)]}")
    steep = np.abs(host(slope))
    with np.errstate(
        invalid="ignore", over="ignore"
    ):  # between times so close together it may fall by less than a unit
        little = np.minimum(steep[1:], steep[:-1]) * np.diff(t) <= 4.0 * eps * (1.0 + np.abs(found[1:]))
    falls = (found[1:] < found[:-1]) | ((found[1:] == found[:-1]) & little)
    fail_unless(
        np.all(falls),
        f"{name}: lambda(t) falls",
        f"not between t = {t[:-1][~falls]} and {t[1:][~falls]}: {found[:-1][~falls]}",
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        rounding = np.where(np.isfinite(found), (1.0 + np.abs(found)) / steep, 0.0)
    used = compare(f"{name}: time(lambda(t)) = t", host(back), t, ulps * eps * (t + rounding), where={"t": t})
    used = max(used, _check_slope(name, schedule, t, host(slope), eps))
    used = max(used, _check_ends(name, schedule, t, host(slope), eps))
    return max(used, check_scaling(schedule(at), schedule.scaling))


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
        level: of any library and shape; infinite log-SNRs included.
        scaling: "vp", "ve" or "flow".
        ulps: the tolerance, in units of the dtype's rounding.

    Raises:
        AssertionError: naming the log-SNR.

    >>> from diffcore import levels
    >>> check_scaling(levels.level(np.array([-np.inf, 0.0, 20.0])), "vp") <= 1.0
    True
    """
    alpha, sigma, log_snr = (host(part) for part in level)
    eps = epsilon(level.alpha) if hasattr(level.alpha, "dtype") else 2.0**-52
    condition = {"vp": alpha**2 + sigma**2, "ve": alpha, "flow": alpha + sigma}[scaling]
    used = compare(f"level under {scaling!r}: its condition", condition, 1.0, ulps * eps, where={"log_snr": log_snr})
    with np.errstate(divide="ignore"):
        ratio = 2.0 * (np.log(alpha) - np.log(sigma))
    tolerance = ulps * eps * (1.0 + np.where(np.isfinite(log_snr), np.abs(log_snr), 0.0))
    identity = f"level under {scaling!r}: lambda = 2 log(alpha / sigma)"
    return max(used, compare(identity, ratio, log_snr, tolerance, where={"log_snr": log_snr}))


def check_chapman_kolmogorov(
    r: Level, s: Level, t: Level, *, transition: Callable[..., Any] = process.transition, ulps: float = 16.0
) -> float:
    r"""Check that going r -> s -> t is going r -> t, for r < s < t.

        (alpha_t / alpha_s)(alpha_s / alpha_r) = alpha_t / alpha_r
        (alpha_t / alpha_s)^2 sigma_{s|r}^2 + sigma_{t|s}^2 = sigma_{t|r}^2

    Args:
        r, s, t: levels of one shape (N,) with lambda_r >= lambda_s >= lambda_t; clean data as r makes it the marginal.
        transition: a function (z_s, s=, t=) -> (mean, variance) to check instead of `process.transition`.
        ulps: the tolerance, in units of the dtype's rounding: all terms are positive.

    Raises:
        AssertionError: naming the three log-SNRs.

    Source: Kingma et al. 2021 (arXiv 2107.00630), app. A.1.

    >>> from diffcore import levels
    >>> check_chapman_kolmogorov(*(levels.level(np.array([at])) for at in (np.inf, 2.0, -3.0))) <= 1.0
    True
    """
    xp_one = r.alpha * 0.0 + 1.0
    (mean_s, var_s), (scale_t, var_t) = transition(xp_one, s=r, t=s), transition(xp_one, s=s, t=t)
    mean_direct, var_direct = (host(part) for part in transition(xp_one, s=r, t=t))
    eps = ulps * epsilon(r.alpha)
    where = {"log_snr_r": host(r.log_snr), "log_snr_s": host(s.log_snr), "log_snr_t": host(t.log_snr)}
    two_steps = host(scale_t) * host(mean_s)
    used = compare("Chapman-Kolmogorov: mean", two_steps, mean_direct, eps * np.abs(mean_direct), where=where)
    with np.errstate(invalid="ignore"):
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

    Args:
        s, t: levels of one shape (N,), finite, with lambda_s > lambda_t.
        posterior, transition, marginal: functions to check instead of those of `process`.
        seed: of the states.
        ulps: the tolerance, in units of what rounding the means does to the logarithms.

    Raises:
        AssertionError: naming the two log-SNRs.

    Source: Ho et al. 2022 (arXiv 2204.03458), eq. 1-3.

    >>> from diffcore import levels
    >>> check_bayes(levels.level(np.array([3.0])), levels.level(np.array([-1.0]))) <= 1.0
    True
    """
    random = np.random.default_rng(seed)
    x, first, second = (put(random.normal(size=host(s.alpha).shape), s.alpha) for _ in range(3))
    z_s = s.alpha * x + s.sigma * first
    mean, variance = transition(z_s, s=s, t=t)
    z_t = mean + variance**0.5 * second
    parts = {
        +1: [(z_s, posterior(z_t, x, s=s, t=t)), (z_t, marginal(x, t))],
        -1: [(z_t, transition(z_s, s=s, t=t)), (z_s, marginal(x, s))],
    }
    total, slack = np.zeros(()), np.ones(())
    for sign, densities in parts.items():
        for z, gaussian in densities:
            point, middle, spread = host(z), host(gaussian.mean), host(gaussian.variance)
            distance = (point - middle) ** 2 / spread
            total = total + sign * -0.5 * (distance + np.log(2.0 * np.pi * spread))
            size = np.abs(point) + np.abs(middle)
            slack = slack + distance + size * np.abs(point - middle) / spread + epsilon(s.alpha) * size**2 / spread
    where = {"log_snr_s": host(s.log_snr), "log_snr_t": host(t.log_snr)}
    return compare(
        "posterior * marginal = transition * marginal", total, 0.0, ulps * epsilon(s.alpha) * slack, where=where
    )


def check_reverse_variance(
    s: Level, t: Level, *, reverse_variance: Callable[..., Any] = process.reverse_variance, ulps: float = 32.0
) -> float:
    r"""Check the interpolated reverse variance: its two bounds, and gamma as an exponent between them.

        v(0) = posterior variance,   v(1) = transition variance,   v(gamma) = v(0)^{1 - gamma} v(1)^gamma

    Args:
        s, t: levels of one shape (N,) with lambda_s > lambda_t, clean data included.
        reverse_variance: a function (s, t, gamma) -> array to check instead of `process.reverse_variance`.
        ulps: the tolerance, in units of the dtype's rounding.

    Raises:
        AssertionError: naming gamma and the two log-SNRs.

    Source: Ho et al. 2022 (arXiv 2204.03458), eq. 4 and below.

    >>> from diffcore import levels
    >>> check_reverse_variance(levels.level(np.array([np.inf, 3.0])), levels.level(np.array([0.0, -1.0]))) <= 1.0
    True
    """
    one = s.alpha * 0.0 + 1.0
    lower = host(process.posterior(one, one, s=s, t=t).variance)
    upper = host(process.transition(one, s=s, t=t).variance)
    where = {"log_snr_s": host(s.log_snr), "log_snr_t": host(t.log_snr)}
    used = 0.0
    for gamma in (0.0, 0.1, 0.3, 0.5, 1.0):
        want = lower ** (1.0 - gamma) * upper**gamma
        got = host(reverse_variance(s, t, gamma))
        identity = f"reverse variance at gamma = {gamma}"
        logarithm = np.abs(np.log(np.where(want > 0.0, want, 1.0)))  # how much a power magnifies rounding
        tolerance = ulps * epsilon(s.alpha) * want * (1.0 + logarithm) + 4.0 * smallest(s.alpha)
        used = max(used, compare(identity, got, want, tolerance, where=where))
    return used
