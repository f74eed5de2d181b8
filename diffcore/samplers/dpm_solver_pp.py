r"""DPM-Solver++ as a multistep method, for the probability-flow ODE and for the reverse SDE: exponential, in x-hat."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffcore import _check
from diffcore.plan import Float64, Plan
from diffcore.samplers import _exponential as exponential
from diffcore.samplers._build import Steps, scaled, steps_of
from diffcore.samplers._written import multistep
from diffcore.schedules import Schedule


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

    Source: Lu et al. 2022 (arXiv 2211.01095), alg. 2; the weights of order 3 are derived above.

    >>> import diffcore as dc
    >>> dc.samplers.dpm_solver_pp(dc.schedules.Cosine(), steps=20, order=3, eta=1.0).memory
    2
    """
    function = "samplers.dpm_solver_pp"
    exponential.check_order(function, order)
    _check.number(function, "eta", eta, 0, 1, hint="0 is the ODE, 1 the SDE")
    _check.choice(function, "solver", solver, (None, "midpoint", "heun"))
    flags = {"lower_order_final": lower_order_final, "euler_at_final": euler_at_final}
    flags = {name: True for name, value in flags.items() if _check.flag(function, name, value)}
    _check.number(function, "noise_scale", noise_scale, 0.0, open_low=True)
    pairs = steps_of(function, schedule, steps, grid, both_ways=eta == 0.0)
    t, s, count = pairs.t, pairs.s, len(pairs)
    with np.errstate(invalid="ignore"):
        of_z = s.sigma / t.sigma * (np.exp(-eta * pairs.half) if eta else 1.0)
        noise = noise_scale * s.sigma * np.sqrt(-np.expm1(-2.0 * eta * pairs.half)) if eta else 0.0
    weights = np.zeros((count, *pairs.lead, order))
    for stage in range(count):
        left = 1 if euler_at_final and stage == count - 1 else count - stage if lower_order_final else order
        use = min(order, stage + 1, left)
        weights[stage, ..., :use] = s.alpha[stage][..., None] * _weights(pairs, stage, use, 1.0 + eta, solver)
    more = ({"solver": solver} if solver else {}) | flags | scaled(noise_scale)
    return multistep(
        "dpm_solver_pp", schedule, pairs, of_z, weights, noise, settings={"order": order, "eta": eta, **more}
    )


def _weights(pairs: Steps, stage: int, use: int, kappa: float, solver: str | None) -> Float64:
    """Return the weights of the last estimates in a step, newest first, (*lead, use), over alpha_s."""
    half, clean = pairs.half[stage], pairs.clean[stage]
    total, width = -np.expm1(-kappa * half), np.where(clean, 1.0, half)  # nodes at the clean end are not used
    first = np.stack([total, *[np.zeros_like(total)] * (use - 1)], axis=-1)
    if use == 1:
        return first
    if use == 2:
        share = exponential.exponential_moments(kappa * width, 2)[..., 1] if solver == "heun" else 0.5 * total
        slope = share * width / pairs.half[stage - 1]
        weights = np.stack([total + slope, -slope], axis=-1)
    else:
        points = np.stack([*pairs.t.log_snr[: stage + 1], pairs.t.log_snr[stage] + 2.0 * width])
        nodes = exponential.nodes_of(points, stage, stage + 1, stage, use)
        weights = exponential.interpolation_weights(kappa * width, nodes)
        if solver:
            weights -= exponential.curvature(nodes) * 0.5 * exponential.exponential_moments(kappa * width, 3)[..., 2:]
    return np.where(clean[..., None], first, weights)
