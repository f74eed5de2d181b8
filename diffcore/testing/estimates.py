"""The identities of predictions, losses, guidance, the bound and exact denoisers, each a function to run on one's own.

As in `identities`, a check raises AssertionError or returns how much of its tolerance was used up, in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from diffcore import exact, guidance, levels, likelihood, losses, predictions, process, weights
from diffcore._array import Array
from diffcore.levels import Level
from diffcore.testing._arrays import Float64, compare, epsilon, fail_unless, host, put

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
        level: of shape (N,); pairs that do not follow from one another at some of its entries are checked elsewhere.
        kinds: names and row functions of the predictions; None is `predictions.table()`.
        convert: a function (y, z, level, source=, target=) to check instead of `predictions.convert`.
        seed: of x and eps.
        ulps: the tolerance, in units of the rounding of the terms that are added.

    Raises:
        AssertionError: naming source, target and the log-SNR.

    Source: Salimans & Ho 2022 (arXiv 2202.00512), app. D.

    >>> check_conversions(levels.level(np.array([-20.0, 0.0, 20.0]), "flow")) <= 1.0
    True
    """
    kinds = predictions.table() if kinds is None else kinds
    at = Level(*(host(part) for part in level))
    random, eps = np.random.default_rng(seed), epsilon(level.alpha)
    x, noise = random.normal(size=at.alpha.shape), random.normal(size=at.alpha.shape)
    z, used = at.alpha * x + at.sigma * noise, 0.0
    with np.errstate(all="ignore"):
        rows = {name: tuple(np.asarray(part) for part in row(np, at)) for name, row in kinds.items()}
        outputs = {name: (a * x + b * noise) / w for name, (a, b, w) in rows.items()}
        for source, (a, b, w) in rows.items():
            for target, (c, d, u) in rows.items():
                determinant = np.abs(u * (at.alpha * b - at.sigma * a))
                from_z = (np.abs(c * b) + np.abs(d * a)) / determinant
                from_y = np.abs(w) * (np.abs(at.alpha * d) + np.abs(at.sigma * c)) / determinant
                size = from_z * np.abs(z) + from_y * np.abs(outputs[source]) + np.abs(outputs[target])
                ok = np.isfinite(size) & np.isfinite(z)
                if not np.any(ok):
                    continue
                part = Level(*(put(value[ok], level.alpha) for value in at))
                y, here = put(outputs[source][ok], level.alpha), put(z[ok], level.alpha)
                got = host(convert(y, here, part, source=kinds[source], target=kinds[target]))
                tolerance = ulps * eps * size[ok]
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
        level: of shape (B,), finite; of log-SNRs within about 10 of 0, since x-hat itself has few digits beyond.
        weight: of `diffcore.weights`, or a function (level, slope) of one's own.
        slope: d lambda / dt, for weights that read it.
        denoising: a function to check instead of `losses.denoising`.
        seed: of x, eps and x-hat.
        rtol: relative tolerance; None is 1e3 times the dtype's rounding.

    Raises:
        AssertionError: naming the prediction and the log-SNR.

    Source: math.md of diffcore, "Loss weights"; Salimans & Ho 2022 (arXiv 2202.00512), sec. 4.

    >>> check_loss_invariance(levels.level(np.array([-3.0, 4.0]))) <= 1.0
    True
    """
    at = Level(*(host(part) for part in level))
    random = np.random.default_rng(seed)
    x, eps, x_hat = (random.normal(size=(*at.alpha.shape, 4, 3)) for _ in range(3))
    z = process.diffuse(x, eps, at)
    lead = (*at.alpha.shape, 1, 1)
    truth = np.mean(np.reshape(host(weight(at, slope)), lead) * (x - x_hat) ** 2, axis=(1, 2))
    tolerance = 1e3 * epsilon(level.alpha) if rtol is None else rtol
    used = 0.0
    for name in predictions.table():
        y = predictions.convert(x_hat, z, at, source="x", target=name)
        parts = (put(part, level.alpha) for part in (y, x, eps))
        got = host(denoising(*parts, level, prediction=name, weight=weight, slope=slope))
        identity = f"loss of {name!r} under {weight!r}"
        used = max(used, compare(identity, got, truth, tolerance * truth, where={"log_snr": at.log_snr}))
    return used


def check_guidance_invariance(
    level: Level,
    weight: float = 3.0,
    *,
    classifier_free: Callable[..., Any] = guidance.classifier_free,
    seed: int = 0,
    ulps: float = 16.0,
) -> float:
    r"""Check that guidance at one z is the same on x, eps, v, score, flow and EDM's F, since its weights sum to one.

        x-hat of (1 + w) y_c - w y_u = (1 + w) x-hat_c - w x-hat_u

    Args:
        level: of shape (B,), finite.
        weight: w.
        classifier_free: a function (cond, uncond, weight=) -> denoiser to check instead of `guidance.classifier_free`.
        seed: of the two estimates.
        ulps: the tolerance, in units of the rounding of the conversions.

    Raises:
        AssertionError: naming the prediction and the log-SNR.

    Source: Ho & Salimans 2022 (arXiv 2207.12598), eq. 6.

    >>> check_guidance_invariance(levels.level(np.array([-3.0, 4.0]))) <= 1.0
    True
    """
    at = Level(*(host(part) for part in level))
    random = np.random.default_rng(seed)
    z, with_condition, without = (random.normal(size=(*at.alpha.shape, 5)) for _ in range(3))
    truth = (1.0 + weight) * with_condition - weight * without
    column = (slice(None), None)
    used = 0.0
    for name in predictions.table():
        outputs = [predictions.convert(x, z, at, source="x", target=name) for x in (with_condition, without)]
        guided = classifier_free(*(_constant(put(y, level.alpha)) for y in outputs), weight=weight)
        guided = guided(put(z, level.alpha), level.log_snr)
        got = host(predictions.convert(guided, put(z, level.alpha), level, source=name, target="x"))
        p, q = (np.abs(part)[column] for part in predictions.mixing(at, name, "x"))
        size = p * np.abs(z) + q * ((1.0 + weight) * np.abs(outputs[0]) + weight * np.abs(outputs[1])) + np.abs(truth)
        where = {"log_snr": at.log_snr[column]}
        tolerance = ulps * epsilon(level.alpha) * size
        used = max(used, compare(f"guidance on {name!r}", got, truth, tolerance, where=where))
    return used


def _constant(y: Array) -> Callable[[Array, Array], Array]:
    return lambda z, log_snr: y  # noqa: ARG005


def check_bound(schedule: Any, variance: float = 0.4, *, panels: int = 400, rtol: float = 1e-6) -> float:
    r"""Check the variational bound on Gaussian data: it depends on a schedule's ends alone, and L_T goes to L_inf.

        L_inf = integral of (1/2) e^lambda (-d lambda/dt) mmse dt = (1/2) log [(1 + c e^{l_max}) / (1 + c e^{l_min})]
        L_T = sum (1/2) (SNR_s - SNR_t) mmse(l_t) > L_inf,   L_T - L_inf = O(1/T),   mmse = c / (1 + c e^lambda)

    Args:
        schedule: as for `check_schedule`; infinite ends are cut at log-SNRs of -12 and 12.
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
    ends = np.asarray(schedule.log_snr(np.array([1.0, 0.0])), dtype=np.float64)
    low, high = (
        max(ends[0], -12.0 if np.isinf(ends[0]) else ends[0]),
        min(ends[1], 12.0 if np.isinf(ends[1]) else ends[1]),
    )
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
        data: as in `diffcore.exact`: `denoise`, `score`, `log_likelihood`, `posterior_covariance`, `with_scaling`.
        log_snr: finite.
        z: where, (B, *event) in float64.
        scaling: "vp", "ve" or "flow".
        rtol: of the differences, relative to the largest entry.

    Raises:
        AssertionError: naming which of the two.

    Source: Efron 2011 (doi 10.1198/jasa.2011.tm11181), eq. 1.4; Vincent 2011 (doi 10.1162/NECO_a_00142).

    >>> check_denoiser(exact.Gaussian(np.zeros(2), np.array([0.3, 2.0])), 1.0, np.ones((1, 2))) <= 1.0
    True
    """
    data = data.with_scaling(scaling)
    level = levels.level(float(log_snr), scaling)
    batch, size = z.shape[0], int(np.prod(z.shape[1:]))
    step = 1e-4 * float(level.sigma)
    slopes, columns = [], []
    for k in range(size):
        shift = np.zeros((1, size))
        shift[0, k] = step
        shifted = [z + sign * shift.reshape((1, *z.shape[1:])) for sign in (1.0, -1.0)]
        up, down = (data.log_likelihood(point, log_snr) for point in shifted)
        slopes.append((up - down) / (2.0 * step))
        above, below = (data.denoise(point, log_snr).reshape(batch, size) for point in shifted)
        columns.append((above - below) / (2.0 * step))
    gradient, jacobian = np.stack(slopes, axis=-1), np.stack(columns, axis=-1)
    name = f"{type(data).__name__} at log_snr = {log_snr} under {scaling!r}"
    score = data.score(z, log_snr).reshape(batch, size)
    allowed = rtol * (np.abs(gradient).max() + 1.0 / float(level.sigma))
    used = compare(f"{name}: score = grad log q", score, gradient, allowed)
    tweedie = (z + level.sigma**2 * data.score(z, log_snr)) / level.alpha
    x_hat = data.denoise(z, log_snr)
    allowed = 1e-12 * (1.0 + np.abs(z).max() / float(level.alpha) + np.abs(x_hat).max())
    used = max(used, compare(f"{name}: Tweedie, x-hat = (z + sigma^2 score) / alpha", tweedie, x_hat, allowed))
    covariance = data.posterior_covariance(z, log_snr).reshape(batch, size, size)
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

    Source: Ho et al. 2022 (arXiv 2204.03458), eq. 7.

    >>> correlated = exact.Gaussian(np.zeros(2), np.array([[1.0, 0.8], [0.8, 1.0]]))
    >>> check_conditional(correlated, np.array([True, False]), 0.5) <= 1.0
    True
    """
    data = data.with_scaling(scaling)
    level = levels.level(float(log_snr), scaling)
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
