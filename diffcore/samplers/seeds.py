r"""Single-step exponential methods for the reverse SDE: SEEDS and DPM-Solver++ SDE.

Their inner stages are on one path of the noise: what is added to the middle of a step is part of what is added to its end.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from diffcore import _check
from diffcore.plan import Float64, Plan
from diffcore.samplers._build import steps_of
from diffcore.samplers._down import check_noise, down, up
from diffcore.samplers._exponential import phi
from diffcore.samplers._written import Denoise, Draw, Point, Vector, single_step
from diffcore.samplers.dpm_solver import toward
from diffcore.schedules import Schedule


def seeds(
    schedule: Schedule,
    steps: int | None = None,
    *,
    order: int = 2,
    eta: float = 1.0,
    noise_scale: float = 1.0,
    grid: Any = None,
) -> Plan:
    r"""Return the plan of SEEDS, single-step exponential methods for the SDE with eta times its noise.

        z_c = (sigma_c / sigma_t) e^{-eta c h} z_t + alpha_c [(1 - e^{-c H}) x-hat_t + w_c (x-hat_b - x-hat_t)]
              + sigma_c noise_scale W_c
        order 2: c = 1/2: w = 0;    c = 1: b = 1/2, w = 1 - e^{-H}
        order 3: c = 1/3: w = 0;    c = 2/3: b = 1/3, w = 2 phi(2 H / 3);    c = 1: b = 2/3, w = (3/2) phi(H)

    with h the step in log(alpha / sigma), H = (1 + eta) h, phi(H) = (e^{-H} - 1) / H + 1, and W of variance 1 - e^{-2 eta c h}
    on one path: W_c = e^{-eta (c - b) h} W_b + fresh noise. With eta = 0 these are `dpm_solver_pp_2s` and `dpm_solver_pp_3s`.

    Args:
        schedule: gives the levels and the scaling.
        steps: how many steps N, at least 1, uniform in time from 1 to clean data; or give `grid`. Each takes `order` calls, but
            one for the step to clean data, which returns x-hat.
        order: 2 or 3.
        eta: at least 0; 0 is the ODE, 1 the SDE.
        noise_scale: a factor > 0 of the noise.
        grid: increasing log-SNRs (N + 1, *lead) instead of `steps`; decreasing only with eta = 0.

    Raises:
        ValueError: a setting out of range, pure noise, a bad grid, or neither or both of steps and grid.

    Source: Gonzalez et al. 2023 (arXiv 2305.14267), alg. 2 and 3 (data prediction); ComfyUI, sample_seeds_2 and _3.

    >>> import diffcore as dc
    >>> len(dc.samplers.seeds(dc.schedules.Karras(), 10, order=3))
    28
    """
    _check.choice("samplers.seeds", "order", order, (2, 3))
    _check.number("samplers.seeds", "eta", eta, 0.0)
    _check.number("samplers.seeds", "noise_scale", noise_scale, 0.0, open_low=True)
    pairs = steps_of("samplers.seeds", schedule, steps, grid, both_ways=eta == 0.0)

    def step(z: Vector, t: Point, s: Point, denoise: Denoise, draw: Draw) -> Vector:
        h, x = s.half - t.half, denoise(z, t)
        big, path = (1.0 + eta) * h, 0.0 * z

        def at(c: float, level: Point, w: Float64 | float, other: Vector, before: float) -> Vector:
            nonlocal path
            if eta:
                fresh = np.sqrt(-np.expm1(-2.0 * eta * (c - before) * h))
                path = np.exp(-eta * (c - before) * h) * path + fresh * draw()
            mean = x * -np.expm1(-c * big) + (other - x) * w
            found: Vector = level.sigma / t.sigma * np.exp(-eta * c * h) * z + level.alpha * mean
            return found + noise_scale * level.sigma * path

        if order == 2:
            m = t.at_half(t.half + 0.5 * h)
            return at(1.0, s, -np.expm1(-big), denoise(at(0.5, m, 0.0, x, 0.0), m), 0.5)
        m, n = t.at_half(t.half + h / 3.0), t.at_half(t.half + 2.0 * h / 3.0)
        second = denoise(at(1 / 3, m, 0.0, x, 0.0), m)
        third = denoise(at(2 / 3, n, 2.0 * phi(2.0 * big / 3.0), second, 1 / 3), n)
        return at(1.0, s, 1.5 * phi(big), third, 2 / 3)

    return single_step("seeds", schedule, pairs, step, order=order, eta=eta, noise_scale=noise_scale)


def dpm_solver_pp_sde(
    schedule: Schedule, steps: int | None = None, *, eta: float = 1.0, noise_scale: float = 1.0, grid: Any = None
) -> Plan:
    r"""Return the plan of single-step DPM-Solver++ for the SDE, "DPM++ SDE".

        z_m = (alpha_m / alpha_d) [(sigma_d / sigma_t) z_t + alpha_d (1 - e^{-h_d}) x-hat_t] + noise up to m,    d below m
        z_s = (alpha_s / alpha_e) [(sigma_e / sigma_t) z_t + alpha_e (1 - e^{-h_e}) x-hat_m] + noise up to s,    e below s

    with m half-way in log(alpha / sigma), h_d and h_e the steps to d and e, which are as for `euler_ancestral` (under "flow", too,
    by sigma / alpha), and both noises from one Brownian motion in r = sigma / alpha: that at s is sqrt(w) that at m + sqrt(1 - w)
    fresh noise, w = (r_t - r_m) / (r_t - r_s).

    Args:
        schedule: gives the levels and the scaling.
        steps: how many steps N, at least 1, uniform in time from 1 to clean data, which take 2 N - 1 calls; or give `grid`.
        eta: in [0, 1]; 0 is `dpm_solver_pp_2s`.
        noise_scale: a factor > 0 of the noise.
        grid: increasing log-SNRs (N + 1, *lead) instead of `steps`; decreasing only with eta = 0.

    Raises:
        ValueError: a setting out of range, pure noise, a bad grid, or neither or both of steps and grid.

    Source: Crowson 2022 (k-diffusion, sample_dpmpp_sde), after Lu et al. 2022 (arXiv 2211.01095).

    >>> import diffcore as dc
    >>> len(dc.samplers.dpm_solver_pp_sde(dc.schedules.Karras(), 10))
    19
    """
    check_noise("samplers.dpm_solver_pp_sde", eta, noise_scale)
    pairs = steps_of("samplers.dpm_solver_pp_sde", schedule, steps, grid, both_ways=eta == 0.0)

    def step(z: Vector, t: Point, s: Point, denoise: Denoise, draw: Draw) -> Vector:
        x, m = denoise(z, t), t.at_half(0.5 * (t.half + s.half))
        d, e = down(t, m, eta, by_ratio=True), down(t, s, eta, by_ratio=True)
        first = draw() if eta else 0.0 * z
        middle = up(toward(z, x, t, d.level), d, m, noise_scale, lambda: first)
        x = denoise(middle, m)
        w = (t.ratio - m.ratio) / (t.ratio - s.ratio)
        return up(toward(z, x, t, e.level), e, s, noise_scale, lambda: first * np.sqrt(w) + draw() * np.sqrt(1.0 - w))

    return single_step("dpm_solver_pp_sde", schedule, pairs, step, eta=eta, noise_scale=noise_scale)
