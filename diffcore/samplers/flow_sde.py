r"""Stochastic samplers of reinforcement learning, where each step must have a density: Flow-GRPO and CPS."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from diffcore import _check
from diffcore.plan import Plan
from diffcore.samplers._build import NOISE, X, Z, empty, finish, scaled, steps_of
from diffcore.schedules import Schedule


def flow_grpo(
    schedule: Schedule, steps: int | None = None, *, noise: float = 0.7, noise_scale: float = 1.0, grid: Any = None
) -> Plan:
    r"""Return the plan of Flow-GRPO: Euler-Maruyama steps of an SDE with the marginals of a flow.

        z_s = z_t + (tau_s - tau_t) [v + (g^2 / (2 tau_t)) (z_t + (1 - tau_t) v)] + g sqrt(tau_t - tau_s) eps,
        g = noise sqrt(tau_t / (1 - tau_t))

    with tau = sigma and v = (z_t - x-hat) / tau_t, under "flow"; under another scaling for z / (alpha + sigma) and
    tau = sigma / (alpha + sigma). At pure noise, tau = 1, g takes tau_s for tau_t in its root. The step to clean data is x-hat.
    Its variance errs by the length of steps, and is too large with few: `cps` has the right one.

    Args:
        schedule: gives the levels and the scaling.
        steps: how many steps, at least 1, uniform in time from 1 to clean data; or give `grid`.
        noise: a > 0, which sets both the noise and the drift that belongs to it.
        noise_scale: a factor > 0 of the noise alone.
        grid: increasing log-SNRs (N + 1, *lead) instead of `steps`.

    Raises:
        ValueError: noise out of range, a bad grid, or neither or both of steps and grid.

    Source: Liu et al. 2025 (arXiv 2505.05470), the discretised SDE of its section on ODE to SDE.

    >>> import diffcore as dc
    >>> len(dc.samplers.flow_grpo(dc.schedules.Flow(), 10))
    10
    """
    _check.number("samplers.flow_grpo", "noise", noise, 0.0, open_low=True)
    _check.number("samplers.flow_grpo", "noise_scale", noise_scale, 0.0, open_low=True)
    pairs = steps_of("samplers.flow_grpo", schedule, steps, grid)
    whole_t, whole_s = (level.alpha + level.sigma for level in (pairs.t, pairs.s))
    with np.errstate(all="ignore"):  # the shares of "ve" levels at infinity
        t, s = (1.0 / (1.0 + np.exp(0.5 * level.log_snr)) for level in (pairs.t, pairs.s))
    at = np.where(t == 1.0, s, t)
    with np.errstate(all="ignore"):  # one step from pure noise to clean data
        g = np.where(pairs.clean, 0.0, noise * np.sqrt(at / (1.0 - at)))
    of_v = (s - t) * (1.0 + 0.5 * g**2 / t * (1.0 - t))
    update = empty(len(pairs), pairs.lead)
    update[..., 0, Z] = whole_s / whole_t * np.where(pairs.clean, 0.0, 1.0 + (s - t) * 0.5 * g**2 / t + of_v / t)
    update[..., 0, X] = whole_s * np.where(pairs.clean, 1.0, -of_v / t)
    update[..., 0, NOISE] = noise_scale * whole_s * g * np.sqrt(t - s)
    return finish("flow_grpo", schedule, pairs.t.log_snr, pairs.s.log_snr, update, noise=noise, **scaled(noise_scale))


def cps(
    schedule: Schedule, steps: int | None = None, *, eta: float = 0.7, noise_scale: float = 1.0, grid: Any = None
) -> Plan:
    r"""Return the plan of coefficients-preserving sampling: a fixed share of the noise is fresh at every step.

        z_s = alpha_s x-hat + sigma_s (cos(eta pi / 2) eps-hat + sin(eta pi / 2) eps)

    Args:
        schedule: gives the levels and the scaling.
        steps: how many steps, at least 1, uniform in time from 1 to clean data; or give `grid`.
        eta: in [0, 1]; 0 is `ddim(eta=0)`, 1 is `lcm`.
        noise_scale: a factor > 0 of the noise.
        grid: increasing log-SNRs (N + 1, *lead) instead of `steps`; decreasing only with eta = 0.

    Raises:
        ValueError: eta out of range, a bad grid, or neither or both of steps and grid.

    Source: Wang & Yu 2025 (arXiv 2509.05952), the update of its section on coefficients-preserving sampling.

    >>> import diffcore as dc
    >>> len(dc.samplers.cps(dc.schedules.Flow(), 10))
    10
    """
    _check.number("samplers.cps", "eta", eta, 0.0, 1.0)
    _check.number("samplers.cps", "noise_scale", noise_scale, 0.0, open_low=True)
    pairs = steps_of("samplers.cps", schedule, steps, grid, both_ways=eta == 0.0)
    t, s, kept = pairs.t, pairs.s, math.cos(0.5 * math.pi * eta) if eta < 1.0 else 0.0
    update = empty(len(pairs), pairs.lead)
    update[..., 0, Z] = kept * s.sigma / t.sigma
    update[..., 0, X] = s.alpha - kept * s.sigma * t.alpha / t.sigma
    update[..., 0, NOISE] = noise_scale * s.sigma * math.sin(0.5 * math.pi * eta)
    return finish("cps", schedule, t.log_snr, s.log_snr, update, eta=eta, **scaled(noise_scale))
