r"""Learned variances: a network that predicts, beside x-hat, how much noise its reverse step should add, element by element.

    variance = (1 - e^{lambda_t - lambda_s}) sigma_s^{2 (1 - gamma)} sigma_t^{2 gamma},    gamma = (rho + 1) / 2

interpolates between the variances of the posterior and of the transition, as the number `gamma` of `samplers.ancestral` does, with
the network's second output rho, near [-1, 1], in its place.

Source: Nichol & Dhariwal 2021 (arXiv 2102.09672), sec. 3.1, eq. 15-16.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from diffcore import _array, _check, levels, losses, noise, predictions, process, sampling, weights
from diffcore._array import Array
from diffcore._unwritten import called
from diffcore._weight import check_data
from diffcore.levels import Level
from diffcore.objectives._common import along, mean, stopped
from diffcore.predictions import Prediction
from diffcore.samplers.ancestral import ancestral
from diffcore.schedules import Schedule


def variance_bound(y: Array, rho: Array, x: Array, eps: Array, *, s: Level, t: Level, prediction: Prediction) -> Array:
    r"""Return the term of the bound from t to s under a learned variance, in nats per element; x-hat gets no gradient from it.

        KL(q(z_s | z_t, x) || N(mean(x-hat), variance)) = (1/2) [r (1 + n e^{l_s} (x - x-hat)^2) - 1 - log r]
        r = (sigma_s / sigma_t)^{2 gamma},    n = 1 - e^{lambda_t - lambda_s}

    Args:
        y: what the network predicts at z = alpha_t x + sigma_t eps, (B, ...).
        rho: its other output, of the shape of `y`.
        x, eps: data and noise of that shape.
        s, t: levels of shape (), (B,) or (B, T), s cleaner and finite.
        prediction: what `y` is.

    Returns:
        (B,), at least float32, that carries gradients to `rho` only.

    Raises:
        TypeError, ValueError: as `losses.denoising`; levels out of order, or clean.

    Source: Nichol & Dhariwal 2021 (arXiv 2102.09672), sec. 3.1 and eq. 15.

    >>> from diffcore.levels import level
    >>> one = np.ones((1, 2))
    >>> variance_bound(one, -one, one, 0.0 * one, s=level(1.0), t=level(0.0), prediction="x")     # x-hat = x, gamma = 0
    array([0.])
    """
    function = "objectives.variance_bound"
    xp = check_data(function, t, y=y, rho=rho, x=x, eps=eps)
    levels.check_level(function, s=s)
    s, t = process.ordered(function, s, t)
    known = _array.known(s.sigma)
    if known is not None and np.any(known == 0.0):
        hint = "end the schedule at a finite log-SNR; the last term is `likelihood.reconstruction`"
        raise _check.error(
            ValueError, function, "s", "be finite: at clean data the posterior is a point", s.log_snr, hint
        )
    x_hat = stopped(predictions.convert(y, process.diffuse(x, eps, t), t, source=prediction, target="x"))
    error, wide = _array.widen(xp, x) - _array.widen(xp, x_hat), _array.widen(xp, rho)
    weight = along(function, process.novelty(s, t) * (s.alpha / s.sigma) ** 2, error)
    log_r = (wide + 1.0) * along(function, _log_ratio(s, t), error)
    return mean(0.5 * (xp.exp(log_r) * (1.0 + weight * error**2) - 1.0 - log_r))


def hybrid(
    y: Array,
    rho: Array,
    x: Array,
    eps: Array,
    *,
    s: Level,
    t: Level,
    prediction: Prediction,
    steps: int,
    weight: losses.WeightLike = weights.Eps(),  # noqa: B008
    share: float = 1e-3,
) -> Array:
    r"""Return the hybrid loss: `losses.denoising` for the prediction, and a share of the bound for its variance.

        loss = w(lambda) |x - x-hat|^2 + share T KL

    Args:
        y, rho, x, eps, s, t, prediction: as for `variance_bound`, for one of T intervals, drawn uniformly.
        steps: T >= 1.
        weight: of the first part, as for `losses.denoising`.
        share: of the bound in nats, at least 0.

    Returns, raises: as the two parts.

    Source: Nichol & Dhariwal 2021 (arXiv 2102.09672), eq. 16.
    """
    function = "objectives.hybrid"
    steps = _check.integer(function, "steps", steps, 1)
    _check.number(function, "share", share, 0.0)
    bound = variance_bound(y, rho, x, eps, s=s, t=t, prediction=prediction)
    return losses.denoising(y, x, eps, t, prediction=prediction, weight=weight) + share * steps * bound


def sample_learned_variance(
    network: Callable[[Array, Array], tuple[Array, Array]],
    schedule: Schedule,
    steps: int | None = None,
    *,
    prediction: Prediction,
    shape: Sequence[int],
    like: Array | None = None,
    seed: Any = None,
    grid: Any = None,
    transform_x: Callable[[Array], Array] | None = None,
) -> Array:
    r"""Return samples of a network with a learned variance, by the steps of `samplers.ancestral` with its noise.

    The variance depends on the data, so that this is a loop over the stages of a plan, and not a plan.

    Args:
        network: (z, log_snr) -> (prediction, rho), both of the shape of z.
        schedule, steps, grid: as for `samplers.ancestral`.
        prediction: what the first output is.
        shape, like, seed: as for `diffcore.sample`; equal seeds start from equal noise.
        transform_x: as for `diffcore.sample`.

    Returns:
        An array of that shape, and of the library, dtype and device of `like`.

    Raises:
        TypeError, ValueError: as `samplers.ancestral`, `diffcore.start` and `diffcore.step`.

    Source: Nichol & Dhariwal 2021 (arXiv 2102.09672), eq. 15.

    >>> import diffcore as dc
    >>> network = lambda z, log_snr: (0.5 * z, 0.0 * z)
    >>> sample_learned_variance(network, dc.schedules.Cosine(), 4, prediction="v", shape=(2, 3), seed=7).shape
    (2, 3)
    """
    function = "objectives.sample_learned_variance"
    _check.callable_(function, "network", network, "a function (z, log_snr) -> (prediction, rho)")
    plan = ancestral(schedule, steps, gamma=0.0, grid=grid)
    state = sampling.start(plan, shape=shape, like=like, seed=seed)
    xp = _array.library(state.z)
    for k in range(len(plan)):
        with _array.recording(state.z, False):
            y, rho = called(network, state.z, plan.level_for(state), function=function, argument="network")
            s, t = (levels.level(at, plan.scaling) for at in (plan.next_log_snr[k], plan.log_snr[k]))
            ratio = 0.0 if np.any(np.isinf(s.log_snr)) else _log_ratio(s, t)
            stretch = xp.exp(-0.5 * (_array.widen(xp, rho) + 1.0) * along(function, ratio, _array.widen(xp, rho)))

        def draw(number: Any, shape: tuple[int, ...], stretch: Array = stretch, keys: Any = state.keys) -> Array:
            eps = noise.normal(keys, number, shape, like=state.z)  # noqa: B023  # of the same kind in every stage
            return xp.astype(stretch * eps, eps.dtype, copy=False)

        state = sampling.step(plan, state, y, prediction=prediction, transform_x=transform_x, noise=draw)
    return state.z


def _log_ratio(s: Level, t: Level) -> Array:
    """Return log(sigma_s / sigma_t)."""
    xp = _array.namespace("objectives", s=s.sigma, t=t.sigma)
    if _array.library(s.sigma) is None and _array.library(t.sigma) is None:
        return math.log(s.sigma / t.sigma)
    return xp.log(_array.as_array(xp, s.sigma / t.sigma))
