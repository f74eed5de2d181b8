"""The identities of predictions, losses, guidance, the bound and exact denoisers, each a function to run on one's own.

As in `identities`, a check raises AssertionError or returns how much of its tolerance was used up, in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from diffcore import _check, _weight, exact, levels, likelihood, losses, predictions, weights
from diffcore._array import Array
from diffcore.levels import Level
from diffcore.testing._arrays import Float64, compare, epsilon, fail_unless, host, in_range, largest, put, smallest
from diffcore.testing._guided import check_guidance_invariance
from diffcore.testing._naming import called, methods, schedule_of

__all__ = [
    "check_bound",
    "check_conditional",
    "check_conversions",
    "check_denoiser",
    "check_guidance_invariance",
    "check_loss_invariance",
]


def check_conversions(
    level: Level,
    *,
    kinds: dict[str, predictions.RowFunction] | None = None,
    convert: Callable[..., Array] = predictions.convert,
    seed: int = 0,
    ulps: float = 8.0,
) -> float:
    r"""Check that every prediction turns into every other, at levels where it says anything about it.

        convert(y_source, z) = y_target,   z = alpha x + sigma eps,   y w = a x + b eps

    Args:
        level: of any shape. A pair is left out at entries where one does not follow from the other, as at an infinite lambda,
            and where the dtype has no room for what one makes of the other.
        kinds: names and row functions of the predictions; None is `predictions.table()`.
        convert: a function (y, z, level, source=, target=) to check instead of `predictions.convert`; it is given levels of
            shape (N,).
        seed: of x and eps.
        ulps: the tolerance, in units of the rounding of the terms that are added.

    Raises:
        AssertionError: naming source, target and the log-SNR.
        ValueError: a finite log-SNR at which alpha^2 or sigma^2 leaves the range of the dtype, 87 in float32.

    Source: Salimans & Ho 2022 (arXiv 2202.00512), app. D.

    >>> check_conversions(levels.level(np.array([-20.0, 0.0, 20.0]), "flow")) <= 1.0
    True
    """
    kinds = predictions.table() if kinds is None else kinds
    (level,) = in_range("testing.check_conversions", level=level)
    at = Level(*(host(part) for part in level))
    random, eps, most = np.random.default_rng(seed), epsilon(level.alpha), largest(level.alpha)
    x, noise = random.normal(size=at.alpha.shape), random.normal(size=at.alpha.shape)
    z, used = at.alpha * x + at.sigma * noise, 0.0
    with np.errstate(all="ignore"):
        rows = {name: tuple(np.asarray(part) for part in row(np, at)) for name, row in kinds.items()}
        outputs = {name: (a * x + b * noise) / w for name, (a, b, w) in rows.items()}
        for source, (a, b, w) in rows.items():
            for target, (c, d, u) in rows.items():
                determinant = np.abs(at.alpha * b - at.sigma * a)
                from_z = (np.abs(c * b) + np.abs(d * a)) / determinant / np.abs(u)
                from_y = np.abs(w) * (np.abs(at.alpha * d) + np.abs(at.sigma * c)) / determinant / np.abs(u)
                size = from_z * np.abs(z) + from_y * np.abs(outputs[source]) + np.abs(outputs[target])
                ok = (np.maximum(np.maximum(from_z, from_y), size) < most) & (np.abs(z) < most)
                if not np.any(ok):
                    continue
                part = Level(*(put(value[ok], level.alpha) for value in at))
                y, here = put(outputs[source][ok], level.alpha), put(z[ok], level.alpha)
                got = host(convert(y, here, part, source=kinds[source], target=kinds[target]))
                tolerance = (ulps * eps * size + 4.0 * smallest(level.alpha) * (1.0 + from_y))[ok]
                identity, where = f"conversion {source!r} -> {target!r}", {"log_snr": at.log_snr[ok]}
                used = max(used, compare(identity, got, outputs[target][ok], tolerance, where=where))
    return used


def check_loss_invariance(
    level: Level,
    weight: Any = weights.MinSNR(5.0),  # noqa: B008
    *,
    slope: float = -40.0,
    denoising: Callable[..., Array] = losses.denoising,
    seed: int = 0,
    rtol: float | None = None,
) -> float:
    r"""Check that the loss is one number whatever the network predicts: w(lambda) |x - x-hat|^2.

    Args:
        level: of any shape. A prediction is left out at entries where it or the weight says nothing about x, as eps at
            lambda = -inf. Far from 0 it says little, since the difference of two predictions is then lost in their rounding, and
            the tolerance is as wide as that.
        weight: of `diffcore.weights`, or a function (level, slope) of one's own.
        slope: d lambda / dt, for weights that read it.
        denoising: a function to check instead of `losses.denoising`; it is given levels of shape (N,).
        seed: of x, eps and x-hat.
        rtol: relative tolerance beside the rounding of predictions; None is 1e3 times the dtype's rounding.

    Raises:
        AssertionError: naming the prediction and the log-SNR.
        ValueError: a finite log-SNR at which alpha^2 or sigma^2 leaves the range of the dtype, 87 in float32.

    Source: math.md of diffcore, "Loss weights"; Salimans & Ho 2022 (arXiv 2202.00512), sec. 4.

    >>> check_loss_invariance(levels.level(np.array([-3.0, 4.0]))) <= 1.0
    True
    """
    _weight.check("testing.check_loss_invariance", weight)
    (level,) = in_range("testing.check_loss_invariance", level=level)
    at = Level(*(host(part) for part in level))
    random, kinds, eps = np.random.default_rng(seed), predictions.table(), epsilon(level.alpha)
    x, noise, x_hat = random.normal(size=(3, *at.alpha.shape, 4, 3))
    tolerance = 1e3 * eps if rtol is None else rtol
    used, lead = 0.0, (slice(None), None, None)
    for name, row in kinds.items():
        with np.errstate(all="ignore"):
            w = host(weight(at, slope)) * np.ones(at.alpha.shape)
            truth = w * np.mean((x - x_hat) ** 2, axis=(1, 2))
            a, b, c = (np.abs(part * np.ones(w.shape))[lead] for part in row(np, at))
            p, q = (part[lead] for part in predictions.solve(np, at, kinds["x"], row))
            parts = at.alpha[lead] * x, at.sigma[lead] * noise
            y = p * sum(parts) + q * x_hat
            size = (a * np.abs(x) + b * np.abs(noise)) / c + sum(np.abs(p * part) for part in parts) + np.abs(q * x_hat)
            scale, unsure = w / q[:, 0, 0] ** 2, 4.0 * (eps * size + smallest(level.alpha))
            lost = scale * np.mean(2.0 * np.abs(q * (x - x_hat)) * unsure + unsure**2, axis=(1, 2))
            allowed = tolerance * truth + lost + 4.0 * smallest(level.alpha) * (1.0 + scale)
            least, most = smallest(level.alpha), largest(level.alpha)
            ok = np.isfinite(truth) & np.isfinite(allowed) & (size.max(axis=(1, 2)) ** 2 < most)
            ok = ok & (scale < most) & ((scale >= least) | (w == 0.0)) & (np.abs(q[:, 0, 0]) >= least)
        if not np.any(ok):
            continue
        given = (put(part[ok], level.alpha) for part in (y, x, noise))
        here = Level(*(put(part[ok], level.alpha) for part in at))
        got = host(denoising(*given, here, prediction=name, weight=weight, slope=slope))
        identity = f"loss of {name!r} under {weight!r}"
        used = max(used, compare(identity, got, truth[ok], allowed[ok], where={"log_snr": at.log_snr[ok]}))
    return used


def check_bound(schedule: Any, variance: float = 0.4, *, panels: int = 400, rtol: float = 1e-6) -> float:
    r"""Check the variational bound on Gaussian data: it depends on a schedule's ends alone, and L_T goes to L_inf.

        L_inf = integral of (1/2) e^lambda (-d lambda/dt) mmse dt = (1/2) log [(1 + c e^{l_max}) / (1 + c e^{l_min})]
        L_T = sum (1/2) (SNR_s - SNR_t) mmse(l_t) > L_inf,   L_T - L_inf = O(1/T),   mmse = c / (1 + c e^lambda)

    Args:
        schedule: as for `check_schedule`; infinite ends are cut at log-SNRs of -12 and 12, and where t is 1 but for 1e-6.
        variance: c of the data, per element.
        panels: of the quadrature in t, even in log-SNR; a schedule with corners needs more, or a larger `rtol`.
        rtol: of the quadrature.

    Raises:
        AssertionError: naming which of the two.

    Source: Kingma et al. 2021 (arXiv 2107.00630), eq. 13-18 and sec. 5.1.

    >>> import diffcore as dc
    >>> check_bound(dc.schedules.Cosine()) <= 1.0
    True
    """
    schedule_of("testing.check_bound", schedule)
    ends = np.asarray(schedule.log_snr(np.array([1.0, 1.0 - 1e-6, 0.0])), dtype=np.float64)  # nearer to 1, t is rounded
    low = max(ends[1], -12.0) if np.isinf(ends[0]) else ends[0]
    high = 12.0 if np.isinf(ends[2]) else ends[2]
    mmse = lambda at: variance / (1.0 + variance * np.exp(at))  # noqa: E731
    limit = 0.5 * (np.log1p(variance * np.exp(high)) - np.log1p(variance * np.exp(low)))
    edges = np.asarray(schedule.time(np.linspace(high, low, panels + 1)), dtype=np.float64)
    nodes, share = np.polynomial.legendre.leggauss(8)
    middle, half = 0.5 * (edges[1:] + edges[:-1]), 0.5 * np.diff(edges)
    t = middle[:, None] + half[:, None] * nodes
    level = levels.level(np.asarray(schedule.log_snr(t), dtype=np.float64), schedule.scaling)
    density = host(weights.VariationalBound()(level, slope=schedule.slope(t))) * mmse(level.log_snr)
    name = f"bound under {type(schedule).__name__}"
    used = compare(f"{name}: L_inf from its ends", np.sum(share * half[:, None] * density), limit, rtol * limit)
    excess = []
    for steps in (256, 512, 1024):
        points = levels.level(np.linspace(low, high, steps + 1), schedule.scaling)
        s, t_level = (Level(*(part[cut] for part in points)) for cut in (slice(1, None), slice(None, -1)))
        excess.append(float(np.sum(likelihood.discrete_weight(s, t_level) * mmse(t_level.log_snr))) - float(limit))
    fail_unless(min(excess) > 0.0, f"{name}: L_T > L_inf", f"L_T - L_inf is {excess}")
    ratio = np.array([excess[0] / excess[1], excess[1] / excess[2]])
    return max(used, compare(f"{name}: L_T - L_inf = O(1/T)", ratio, 2.0, 0.2, what=f"L_T - L_inf is {excess}"))


def check_denoiser(data: Any, log_snr: float, z: Float64, *, scaling: str = "vp", rtol: float = 1e-6) -> float:
    r"""Check a distribution's denoiser against its own likelihood, by differences in float64.

        score = grad log q(z_t) = (alpha x-hat - z) / sigma^2,   Cov[x | z_t] = (sigma^2 / alpha) d x-hat / dz

    Args:
        data: as in `diffcore.exact`: `denoise` and `score` of (z, log_snr) return (B, *event), `log_likelihood` (B,), and
            `posterior_covariance` (B, D, D), D the elements of an event; `with_scaling` of a name returns the same data under it.
        log_snr: finite.
        z: where, (B, *event) in float64.
        scaling: "vp", "ve" or "flow".
        rtol: of the differences, relative to the largest entry.

    Raises:
        AssertionError: naming which of the two; or the method that raised, or returned another shape.
        TypeError: `data` without one of those methods.

    Source: Efron 2011 (doi 10.1198/jasa.2011.tm11181), eq. 1.4; Vincent 2011 (doi 10.1162/NECO_a_00142).

    >>> check_denoiser(exact.Gaussian(np.zeros(2), np.array([0.3, 2.0])), 1.0, np.ones((1, 2))) <= 1.0
    True
    """
    function = "testing.check_denoiser"
    methods(function, ("denoise", "score", "log_likelihood", "posterior_covariance", "with_scaling"), data=data)
    log_snr, z = _check.number(function, "log_snr", log_snr), np.asarray(z, dtype=np.float64)
    _check.integer(function, "z.ndim", z.ndim, 1, hint="z is (B, *event)")
    data = data.with_scaling(levels.check_scaling(function, scaling))
    level = levels.level(log_snr, scaling)
    batch, size = z.shape[0], int(np.prod(z.shape[1:]))
    name = f"{type(data).__name__} at log_snr = {log_snr} under {scaling!r}"
    step = 1e-4 * float(level.sigma)
    slopes, columns = [], []
    for k in range(size):
        shift = np.zeros((1, size))
        shift[0, k] = step
        shifted = [z + sign * shift.reshape((1, *z.shape[1:])) for sign in (1.0, -1.0)]
        up, down = (called(name, data, "log_likelihood", (batch,), point, log_snr) for point in shifted)
        slopes.append((up - down) / (2.0 * step))
        above, below = (called(name, data, "denoise", z.shape, at, log_snr).reshape(batch, size) for at in shifted)
        columns.append((above - below) / (2.0 * step))
    gradient, jacobian = np.stack(slopes, axis=-1), np.stack(columns, axis=-1)
    score = called(name, data, "score", z.shape, z, log_snr)
    allowed = rtol * (np.abs(gradient).max() + 1.0 / float(level.sigma))
    used = compare(f"{name}: score = grad log q", score.reshape(batch, size), gradient, allowed)
    tweedie = (z + level.sigma**2 * score) / level.alpha
    x_hat = data.denoise(z, log_snr)
    allowed = 1e-12 * (1.0 + np.abs(z).max() / float(level.alpha) + np.abs(x_hat).max())
    used = max(used, compare(f"{name}: Tweedie, x-hat = (z + sigma^2 score) / alpha", tweedie, x_hat, allowed))
    covariance = called(name, data, "posterior_covariance", (batch, size, size), z, log_snr)
    spread = float(level.sigma) ** 2 / float(level.alpha)
    allowed = rtol * (np.abs(covariance).max() + spread)
    return max(
        used, compare(f"{name}: Cov[x|z] = (sigma^2 / alpha) d x-hat / dz", spread * jacobian, covariance, allowed)
    )


def check_conditional(data: exact.Gaussian, mask: Any, log_snr: float, *, scaling: str = "vp", seed: int = 0) -> float:
    r"""Check the conditional mean, and what replacement misses of it, on Gaussian data.

        E[x^b | z_t, x^a] = E[x^b | z_t] + (sigma_t^2 / alpha_t) grad_{z_t^b} log q(x^a | z_t), whatever z^a is

    Args:
        data: an `exact.Gaussian`, small enough for dense matrices.
        mask: booleans of the event's shape, true where x^a is known.
        log_snr: finite.
        scaling: "vp", "ve" or "flow".
        seed: of z and x^a.

    Raises:
        AssertionError: naming which of the two.
        TypeError: `data` without the methods of `exact.Gaussian`.

    Source: Ho et al. 2022 (arXiv 2204.03458), eq. 7.

    >>> correlated = exact.Gaussian(np.zeros(2), np.array([[1.0, 0.8], [0.8, 1.0]]))
    >>> check_conditional(correlated, np.array([True, False]), 0.5) <= 1.0
    True
    """
    names = ("denoise", "conditional_denoise", "posterior_covariance", "with_scaling")
    methods("testing.check_conditional", names, data=data)
    data = data.with_scaling(scaling)
    level = levels.level(_check.number("testing.check_conditional", "log_snr", log_snr), scaling)
    known = np.broadcast_to(np.asarray(mask, dtype=bool), data.event).ravel()
    random = np.random.default_rng(seed)
    z, other = random.normal(size=(2, 1, *data.event))
    observed = random.normal(size=data.event)
    flat = lambda array: np.asarray(array).reshape(-1)  # noqa: E731
    truth = flat(data.conditional_denoise(z, log_snr, observed, mask))[~known]
    elsewhere = np.where(known.reshape(data.event), other, z)
    moved = flat(data.conditional_denoise(elsewhere, log_snr, observed, mask))[~known]
    scale = 1.0 + np.abs(truth).max()
    used = compare("E[x^b | z, x^a] does not depend on z^a", moved, truth, 1e-9 * scale)
    covariance = data.posterior_covariance(z, log_snr)[0]
    # log q(x^a | z) is a Gaussian's, of mean x-hat^a(z) and this covariance; d x-hat / dz = (alpha / sigma^2) Cov
    residual = flat(observed)[known] - flat(data.denoise(z, log_snr))[known]
    jacobian = covariance[np.ix_(known, ~known)] * float(level.alpha / level.sigma**2)
    gradient = jacobian.T @ np.linalg.solve(covariance[np.ix_(known, known)], residual)
    guided = flat(data.denoise(z, log_snr))[~known] + float(level.sigma**2 / level.alpha) * gradient
    identity = "E[x^b | z, x^a] = E[x^b | z] + (sigma^2 / alpha) grad log q(x^a | z)"
    return max(used, compare(identity, guided, truth, 1e-8 * scale))
