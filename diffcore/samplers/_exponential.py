r"""Exponential integrators: integrate the linear part exactly and interpolate x-hat.

With h = (lambda_s - lambda_t) / 2, the step in log(alpha / sigma), and kappa = 1 + eta, a step's exact solution is

    z_s = (sigma_s / sigma_t) e^{-eta h} z_t + alpha_s kappa int_0^h e^{-kappa (h - tau)} x-hat(tau) dtau
          + sigma_s sqrt(1 - e^{-2 eta h}) eps

(eta = 0 the probability-flow ODE, eta = 1 the reverse SDE). Replacing x-hat(tau) by the polynomial through known
estimates at the nodes u_j = tau_j / h gives weights w_j that only depend on H = kappa h and the nodes:

    sum_j w_j u_j^k = I_k(H),    I_k(H) = H int_0^1 e^{-H (1 - u)} u^k du,    k = 0, 1, ...
"""

from __future__ import annotations

import math

import numpy as np

from diffcore import _check
from diffcore.plan import Float64


def exponential_moments(step: Float64, count: int) -> Float64:
    r"""Return I_k(H) = H int_0^1 e^{-H (1 - u)} u^k du for k = 0 .. count - 1, along a new last axis.

    By the recurrence I_k = 1 - k I_{k-1} / H, I_0 = 1 - e^{-H}, where |H| >= 1; below, where it cancels, by the series
    I_k = H k! sum_n (-H)^n / (n + k + 1)!.

    >>> exponential_moments(np.array([np.inf, 0.0]), 2)
    array([[1., 1.],
           [0., 0.]])
    """
    step = np.asarray(step, dtype=np.float64)
    large = np.abs(step) >= 1.0
    big, small = np.where(large, step, 1.0), np.where(large, 0.0, step)
    found = []
    recurrence = -np.expm1(-big)
    for k in range(count):
        if k:
            recurrence = 1.0 - k * recurrence / big
        series = np.zeros_like(small)
        for n in reversed(range(19)):  # 1 / 20! < 1e-18
            series = series * -small + math.factorial(k) / math.factorial(n + k + 1)
        found.append(np.where(large, recurrence, small * series))
    return np.stack(found, axis=-1)


def interpolation_weights(step: Float64, nodes: Float64) -> Float64:
    """Return the weights w_j, (..., K), of the estimates at the nodes u_j (..., K), by solving the Vandermonde system.

    The last node may be -inf, the oldest estimate of a run from pure noise: it has no weight, and the others lose an order.

    >>> interpolation_weights(np.array(1e-9), np.array([0.0, -1.0])) * 1e9  # the Adams-Bashforth method of order 2
    array([ 1.5, -0.5])
    """
    count = nodes.shape[-1]
    far = np.isinf(nodes[..., -1:])
    if np.any(far):
        fewer = interpolation_weights(step, nodes[..., :-1])
        other = nodes[..., :-1].min(axis=-1, keepdims=True) - 1.0  # solves, for `where` to leave out
        near = np.concatenate([nodes[..., :-1], np.where(far, other, nodes[..., -1:])], axis=-1)
        return np.where(far, np.concatenate([fewer, 0.0 * far], axis=-1), interpolation_weights(step, near))
    powers = nodes[..., None, :] ** np.arange(count)[:, None]
    return np.asarray(np.linalg.solve(powers, exponential_moments(step, count)[..., None])[..., 0])


def nodes_of(points: Float64, at: int, to: int, newest: int, count: int) -> Float64:
    """Return u_j = (lambda_j - lambda_at) / (lambda_to - lambda_at) of the `newest` point and those before, along a last axis;
    0 and 1 where that is `at` or `to`, infinite or not."""
    with np.errstate(invalid="ignore"):  # one step from pure noise to clean data, whose only node is known
        width = points[to] - points[at]
    known = {at: np.zeros_like(width), to: np.ones_like(width)}
    return np.stack(
        [known[j] if j in known else (points[j] - points[at]) / width for j in range(newest, newest - count, -1)], -1
    )


def check_order(function: str, order: object) -> None:
    """Raise TypeError or ValueError for an order that is not 1, 2 or 3."""
    _check.integer(function, "order", order, 1, 3)


def phi(h: Float64) -> Float64:
    """Return (e^{-h} - 1) / h + 1."""
    return exponential_moments(h, 2)[..., 1]


def curvature(nodes: Float64) -> Float64:
    """Return the weights of the second divided difference at three nodes (..., 3), the coefficient of u^2; 0 where one is -inf."""
    with np.errstate(invalid="ignore"):
        apart = nodes[..., :, None] - nodes[..., None, :] + np.eye(3)
    return np.asarray(1.0 / np.prod(np.where(np.isfinite(apart), apart, np.inf), axis=-1))
