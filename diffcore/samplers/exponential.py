r"""Exponential integrators: integrate the linear part exactly and interpolate x-hat. DPM-Solver++.

With h = (lambda_s - lambda_t) / 2, the step in log(alpha / sigma), and kappa = 1 + eta, a step's exact solution is

    z_s = (sigma_s / sigma_t) e^{-eta h} z_t + alpha_s kappa int_0^h e^{-kappa (h - tau)} x-hat(tau) dtau
          + sigma_s sqrt(1 - e^{-2 eta h}) eps

(eta = 0 the probability-flow ODE, eta = 1 the reverse SDE). Replacing x-hat(tau) by the polynomial through known
estimates at the nodes u_j = tau_j / h gives weights w_j that only depend on H = kappa h and the nodes:

    sum_j w_j u_j^k = I_k(H),    I_k(H) = H int_0^1 e^{-H (1 - u)} u^k du,    k = 0, 1, ...
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from diffcore import _check
from diffcore.plan import Float64, Form, Plan
from diffcore.samplers._build import empty, finish, scaled, steps_of
from diffcore.schedules import Schedule


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


def remember_estimates(update: Float64, form: Form, first: int) -> None:
    """Let the memory from number `first` on hold the last estimates, newest first: rows that only copy."""
    for at in range(first, form.memory + 1):
        update[..., at, form.x if at == first else at - 1] = 1.0


def check_order(function: str, order: object) -> None:
    """Raise TypeError or ValueError for an order that is not 1, 2 or 3."""
    _check.integer(function, "order", order, 1, 3)


def dpm_solver_pp(
    schedule: Schedule,
    steps: int | None = None,
    *,
    order: int = 2,
    eta: float = 0.0,
    solver: str | None = None,
    lower_order_final: bool = False,
    euler_at_final: bool = False,
    noise_scale: float = 1.0,
    grid: Any = None,
) -> Plan:
    r"""Return the plan of multistep DPM-Solver++ (1, 2M, 3M), or of its SDE form.

    With x-hat_0, x-hat_1, x-hat_2 the estimates of this and the last stages, H = (1 + eta) h and r = h_previous / h:

        z_s = (sigma_s / sigma_t) e^{-eta h} z_t + alpha_s D + sigma_s sqrt(1 - e^{-2 eta h}) eps
        order 1: D = (1 - e^{-H}) x-hat_0
        order 2: D = (1 - e^{-H}) [x-hat_0 + (x-hat_0 - x-hat_1) / (2 r)]
        order 3: D = the integral of the parabola through the three estimates, exactly

    Order 1 is `ddim(eta=0)` at eta = 0 and `ancestral(gamma=0)` at eta = 1. The first steps of a run have fewer
    estimates and so a lower order, one more of them in a run from pure noise, lambda = -inf; so has the step to clean
    data, where every order gives x-hat.

    Args:
        schedule: gives the levels and the scaling.
        steps: how many steps, at least 1, uniform in time from 1 to clean data; or give `grid`, such as
            `grids.uniform_log_snr(schedule, 20)`.
        order: 1, 2 or 3.
        eta: in [0, 1]; 0 is the ODE, 1 the SDE.
        solver: "midpoint" or "heun" for orders 2 and 3 as published. At order 2 "midpoint" has the weights above, "heun" the line's
            exact integral, 1 - (1 - e^{-H}) / H for (1 - e^{-H}) / 2; at order 3 both take half the parabola's curvature, and
            differ in the second step.
        lower_order_final: whether the last step has order 1 and the last but one at most 2, steadier where steps are few.
        euler_at_final: whether the last step has order 1, and the others their own.
        noise_scale: a factor > 0 of the noise.
        grid: strictly monotone log-SNRs (N + 1, *lead) instead of `steps`; decreasing only with eta = 0.

    Raises:
        ValueError: an order or eta out of range, a bad grid, or neither or both of steps and grid.

    The published 3M, that of k-diffusion and diffusers, takes the second divided difference, half the second derivative, for all of
    it: for x-hat = u^2 it gives half the integral, and it converges at order 2. The weights here are exact there. With noise, at
    eta = 1, orders 2 and 3 and the published forms all converge weakly at order 2, as measured on the variance of Gaussian data;
    order 3 has about a third of the error.

    Source: Lu et al. 2022 (arXiv 2211.01095), alg. 2 and eq. 18; the weights of order 3 are derived above.

    >>> import diffcore as dc
    >>> dc.samplers.dpm_solver_pp(dc.schedules.Cosine(), steps=20, order=3, eta=1.0).memory
    2
    """
    function = "samplers.dpm_solver_pp"
    check_order(function, order)
    _check.number(function, "eta", eta, 0, 1, hint="0 is the ODE, 1 the SDE")
    _check.choice(function, "solver", solver, (None, "midpoint", "heun"))
    _check.flag(function, "lower_order_final", lower_order_final)
    _check.flag(function, "euler_at_final", euler_at_final)
    _check.number(function, "noise_scale", noise_scale, 0.0, open_low=True)
    pairs = steps_of(function, schedule, steps, grid, both_ways=eta == 0.0)
    t, s, half = pairs.t, pairs.s, pairs.half
    points = np.concatenate([t.log_snr, s.log_snr[-1:]])
    form = Form(memory=min(order, len(pairs)) - 1)
    update = empty(len(pairs), pairs.lead, form.memory)
    remember_estimates(update, form, 1)
    with np.errstate(invalid="ignore"):
        update[..., 0, 0] = s.sigma / t.sigma * (np.exp(-eta * half) if eta else 1.0)
        update[..., 0, form.noise] = noise_scale * s.sigma * np.sqrt(-np.expm1(-2.0 * eta * half)) if eta else 0.0
    for stage in range(len(pairs)):
        use = min(order, stage + 1, len(pairs) - stage if lower_order_final else order)
        use = 1 if euler_at_final and stage == len(pairs) - 1 else use
        width = np.where(pairs.clean[stage], 1.0, half[stage])  # nodes at the clean end are not used
        total = -np.expm1(-(1.0 + eta) * half[stage])
        weights = np.zeros((*pairs.lead, use))
        weights[..., 0] = total
        if use == 2:
            share = exponential_moments((1.0 + eta) * width, 2)[..., 1] if solver == "heun" else 0.5 * total
            slope = share * width / half[stage - 1]
            weights[..., 0] += slope
            weights[..., 1] = -slope
        elif use == 3:
            finite = points.copy()
            finite[stage + 1] = np.where(pairs.clean[stage], points[stage] + 1.0, points[stage + 1])
            nodes = nodes_of(finite, stage, stage + 1, stage, use)
            weights = interpolation_weights((1.0 + eta) * width, nodes)
            if solver:
                weights -= _curvature(nodes) * 0.5 * exponential_moments((1.0 + eta) * width, 3)[..., 2:]
        first_order = np.concatenate([total[..., None], np.zeros((*pairs.lead, use - 1))], axis=-1)
        weights = np.where(pairs.clean[stage][..., None], first_order, weights)
        update[stage, ..., 0, [form.x, *range(1, use)]] = np.moveaxis(s.alpha[stage][..., None] * weights, -1, 0)
    more: dict[str, object] = {"solver": solver} if solver else {}
    more |= {"lower_order_final": True} if lower_order_final else {}
    more |= {"euler_at_final": True} if euler_at_final else {}
    more |= scaled(noise_scale)
    return finish("dpm_solver_pp", schedule, t.log_snr, s.log_snr, update, order=order, eta=eta, **more)


def _curvature(nodes: Float64) -> Float64:
    """Return the weights of the second divided difference at three nodes (..., 3), the coefficient of u^2; 0 where one is -inf."""
    with np.errstate(invalid="ignore"):
        apart = nodes[..., :, None] - nodes[..., None, :] + np.eye(3)
    return np.asarray(1.0 / np.prod(np.where(np.isfinite(apart), apart, np.inf), axis=-1))
