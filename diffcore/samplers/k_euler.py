r"""Euler's method, DPM2 and Heun++ of k-diffusion, with noise after each step where they are called ancestral."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffcore.plan import Plan
from diffcore.samplers._build import steps_of
from diffcore.samplers._down import check_noise, down, up
from diffcore.samplers._written import Denoise, Draw, Point, Vector, advance, single_step, slope
from diffcore.schedules import Schedule


def euler_ancestral(
    schedule: Schedule, steps: int | None = None, *, eta: float = 1.0, noise_scale: float = 1.0, grid: Any = None
) -> Plan:
    r"""Return the plan of Euler's method that steps below the next level and adds noise up to it, "Euler a".

        z_d = alpha_d (u + (r_d - r_t) (u - x-hat) / r_t)
        z_s = (alpha_s / alpha_d) z_d + alpha_s sqrt(r_s^2 - r_d^2) noise_scale eps

    with u = z_t / alpha_t, r = sigma / alpha and r_d^2 = r_s^2 (1 - eta^2 (1 - r_s^2 / r_t^2)); under "flow", in its rectified-flow
    form, sigma_d = sigma_s (1 + eta (sigma_s / sigma_t - 1)). Under the other scalings this is `ddim(eta)`, at eta = 1
    `ancestral(gamma=0)`. The step to clean data returns x-hat.

    Args:
        schedule: gives the levels and the scaling.
        steps: how many steps, at least 1, uniform in time from 1 to clean data; or give `grid`.
        eta: in [0, 1]; 0 is `euler`.
        noise_scale: a factor > 0 of the noise.
        grid: increasing log-SNRs (N + 1, *lead) instead of `steps`; decreasing only with eta = 0.

    Raises:
        ValueError: a setting out of range; pure noise, but for "flow"; a bad grid, or neither or both of steps and grid.

    Source: Crowson 2022 (k-diffusion, sample_euler_ancestral); ComfyUI, sample_euler_ancestral_RF, for "flow".

    >>> import diffcore as dc
    >>> dc.samplers.euler_ancestral(dc.schedules.Karras(), 20).stochastic
    True
    """
    check_noise("samplers.euler_ancestral", eta, noise_scale)
    pairs = steps_of("samplers.euler_ancestral", schedule, steps, grid, both_ways=eta == 0.0)

    def step(z: Vector, t: Point, s: Point, denoise: Denoise, draw: Draw) -> Vector:
        d = down(t, s, eta)
        return up(advance(z, slope(z, denoise(z, t), t), t, d.level), d, s, noise_scale, draw)

    return single_step("euler_ancestral", schedule, pairs, step, eta=eta, noise_scale=noise_scale)


def dpm2(schedule: Schedule, steps: int | None = None, *, grid: Any = None) -> Plan:
    r"""Return the plan of DPM2, the midpoint method of k-diffusion, whose middle is that of log sigma.

        z_m = z_t moved to rho_m = sqrt(rho_t rho_s) along the slope at t,    z_s = z_t moved to rho_s along the slope at z_m

    with rho = sigma / alpha and the slope eps-hat, or sigma and the velocity under "flow". The middle is not half-way in rho, but
    nearly so as steps get short: the order is 2.

    Args:
        schedule: gives the levels and the scaling.
        steps: how many steps N, at least 1, uniform in time from 1 to clean data, which take 2 N - 1 calls; or give `grid`.
        grid: strictly monotone log-SNRs (N + 1, *lead) instead of `steps`.

    Raises:
        ValueError: pure noise, but for "flow"; a bad grid, or neither or both of steps and grid.

    Source: Crowson 2022 (k-diffusion, sample_dpm_2), after Karras et al. 2022 (arXiv 2206.00364), alg. 2.

    >>> import diffcore as dc
    >>> len(dc.samplers.dpm2(dc.schedules.Karras(), 10))
    19
    """
    pairs = steps_of("samplers.dpm2", schedule, steps, grid, both_ways=True)
    return single_step("dpm2", schedule, pairs, _midpoint)


def dpm2_ancestral(
    schedule: Schedule, steps: int | None = None, *, eta: float = 1.0, noise_scale: float = 1.0, grid: Any = None
) -> Plan:
    r"""Return the plan of DPM2 that steps below the next level and adds noise up to it.

        z_d = DPM2's step from t to d,    z_s = (alpha_s / alpha_d) z_d + alpha_s sqrt(r_s^2 - r_d^2) noise_scale eps

    with d as for `euler_ancestral`.

    Args:
        schedule, eta, noise_scale, grid: as for `euler_ancestral`.
        steps: how many steps N, at least 1, uniform in time from 1 to clean data, which take 2 N - 1 calls; or give `grid`.

    Raises:
        ValueError: as for `euler_ancestral`.

    Source: Crowson 2022 (k-diffusion, sample_dpm_2_ancestral).

    >>> import diffcore as dc
    >>> len(dc.samplers.dpm2_ancestral(dc.schedules.Karras(), 10))
    19
    """
    check_noise("samplers.dpm2_ancestral", eta, noise_scale)
    pairs = steps_of("samplers.dpm2_ancestral", schedule, steps, grid, both_ways=eta == 0.0)

    def step(z: Vector, t: Point, s: Point, denoise: Denoise, draw: Draw) -> Vector:
        d = down(t, s, eta)
        return up(_midpoint(z, t, d.level, denoise, draw), d, s, noise_scale, draw)

    return single_step("dpm2_ancestral", schedule, pairs, step, eta=eta, noise_scale=noise_scale)


def _midpoint(z: Vector, t: Point, s: Point, denoise: Denoise, _: Draw) -> Vector:
    middle = t.at_rho(np.sqrt(t.rho * s.rho))
    there = advance(z, slope(z, denoise(z, t), t), t, middle)
    return advance(z, slope(there, denoise(there, middle), middle), t, s)
