r"""RES, the refined exponential solver: exponential Runge-Kutta and multistep methods of full order for stiff equations."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffcore.plan import Plan
from diffcore.samplers._build import steps_of
from diffcore.samplers._down import check_noise, down
from diffcore.samplers._exponential import interpolation_weights, phi
from diffcore.samplers._written import Denoise, Draw, Point, Vector, multistep, point, single_step
from diffcore.samplers.dpm_solver import toward
from diffcore.schedules import Schedule


def res_2s(schedule: Schedule, steps: int | None = None, *, grid: Any = None) -> Plan:
    r"""Return the plan of single-step RES of order 2, with its inner stage half-way.

        z_m = (sigma_m / sigma_t) z_t + alpha_m (1 - e^{-h/2}) x-hat_t,    h the step in log(alpha / sigma), m half-way
        z_s = (sigma_s / sigma_t) z_t + alpha_s [(1 - e^{-h}) x-hat_t + 2 phi(h) (x-hat_m - x-hat_t)]
        phi(h) = (e^{-h} - 1) / h + 1

    `dpm_solver_pp_2s` has 1 - e^{-h} for 2 phi(h), which is its value where steps are short.

    Args:
        schedule: gives the levels and the scaling.
        steps: how many steps N, at least 1, uniform in time from 1 to clean data, which take 2 N - 1 calls; or give `grid`.
        grid: strictly monotone log-SNRs (N + 1, *lead) instead of `steps`.

    Raises:
        ValueError: pure noise, a bad grid, or neither or both of steps and grid.

    Source: Zhang et al. 2023 (arXiv 2308.02157), sec. 3.2; Hochbruck & Ostermann 2005, eq. 5.3, with c_2 = 1/2.

    >>> import diffcore as dc
    >>> len(dc.samplers.res_2s(dc.schedules.Cosine(), 10))
    19
    """
    pairs = steps_of("samplers.res_2s", schedule, steps, grid, both_ways=True)

    def step(z: Vector, t: Point, s: Point, denoise: Denoise, _: Draw) -> Vector:
        h, x = s.half - t.half, denoise(z, t)
        m = t.at_half(t.half + 0.5 * h)
        return toward(z, x, t, s) + s.alpha * 2.0 * phi(h) * (denoise(toward(z, x, t, m), m) - x)

    return single_step("res_2s", schedule, pairs, step)


def res_3s(schedule: Schedule, steps: int | None = None, *, grid: Any = None) -> Plan:
    r"""Return the plan of single-step RES of order 3, with its inner stages half-way and at the end.

        z_m = (sigma_m / sigma_t) z_t + alpha_m (1 - e^{-h/2}) x-hat_t
        z_n = (sigma_s / sigma_t) z_t + alpha_s [(1 - e^{-h}) x-hat_t + (4 phi(h/2) + 2 phi(h)) (x-hat_m - x-hat_t)]
        z_s = (sigma_s / sigma_t) z_t + alpha_s [(1 - e^{-h}) x-hat_t + (4 (x-hat_m - x-hat_t) + (x-hat_n - x-hat_t)) phi(h) / 3]

    Args:
        schedule, grid: as for `res_2s`.
        steps: how many steps N, at least 1, uniform in time from 1 to clean data, which take 3 N - 2 calls; or give `grid`.

    Raises:
        ValueError: as for `res_2s`.

    Source: Zhang et al. 2023 (arXiv 2308.02157), sec. 3.2; Hochbruck & Ostermann 2005, eq. 5.8, with c_2 = 1/2, c_3 = 1, gamma = 4.

    >>> import diffcore as dc
    >>> len(dc.samplers.res_3s(dc.schedules.Cosine(), 10))
    28
    """
    pairs = steps_of("samplers.res_3s", schedule, steps, grid, both_ways=True)

    def step(z: Vector, t: Point, s: Point, denoise: Denoise, _: Draw) -> Vector:
        h, x = s.half - t.half, denoise(z, t)
        m = t.at_half(t.half + 0.5 * h)
        second = denoise(toward(z, x, t, m), m) - x
        inner = toward(z, x, t, s) + s.alpha * (4.0 * phi(0.5 * h) + 2.0 * phi(h)) * second
        third = denoise(inner, s) - x
        return toward(z, x, t, s) + s.alpha * phi(h) * (4.0 * second + third) / 3.0

    return single_step("res_3s", schedule, pairs, step)


def res_multistep(
    schedule: Schedule, steps: int | None = None, *, eta: float = 0.0, noise_scale: float = 1.0, grid: Any = None
) -> Plan:
    r"""Return the plan of multistep RES of order 2, and of its ancestral form.

        z_d = (sigma_d / sigma_t) z_t + alpha_d [(1 - e^{-h}) x-hat_0 - (phi(h) / c) (x-hat_0 - x-hat_1)]
        phi(h) = (e^{-h} - 1) / h + 1

    with h the step from t to d in log(alpha / sigma), c h that from t back to the level of x-hat_1, and noise from d up to s as
    for `euler_ancestral`. With noise, c h is that from the d of the step before, as published. eta = 0 is the exact exponential
    Adams-Bashforth method of order 2, of which `dpm_solver_pp` is a short form. The first step has order 1, and that to clean
    data is x-hat.

    Args:
        schedule: gives the levels and the scaling.
        steps: how many steps, at least 1, uniform in time from 1 to clean data; or give `grid`.
        eta: in [0, 1]; 0 is deterministic, where d is s.
        noise_scale: a factor > 0 of the noise.
        grid: increasing log-SNRs (N + 1, *lead) instead of `steps`; decreasing only with eta = 0.

    Raises:
        ValueError: a setting out of range, a bad grid, or neither or both of steps and grid.

    Source: Zhang et al. 2023 (arXiv 2308.02157), sec. 3.3; ComfyUI, sample_res_multistep_ancestral, for the noise.

    >>> import diffcore as dc
    >>> dc.samplers.res_multistep(dc.schedules.Cosine(), 10).memory
    1
    """
    check_noise("samplers.res_multistep", eta, noise_scale)
    pairs = steps_of("samplers.res_multistep", schedule, steps, grid, both_ways=eta == 0.0)
    t, s = (point(level, schedule.scaling) for level in (pairs.t, pairs.s))
    with np.errstate(all="ignore"):  # where a step ends on clean data
        d, share = down(t, s, eta)
        end = np.where(pairs.clean, 0.0, d.half)
        h = np.where(pairs.clean, 1.0, end - t.half)
        weights = np.zeros((len(pairs), *pairs.lead, 2))
        weights[..., 0] = -np.expm1(t.half - d.half)
        if len(pairs) > 1:
            back = (t.half[:-1] - end[:-1]) / h[1:]
            both = interpolation_weights(h[1:], np.stack([np.zeros_like(back), back], axis=-1))
            weights[1:] = np.where((pairs.clean[1:])[..., None], weights[1:], both)
        up = s.alpha / d.alpha
        noise = 0.0 if share is None else noise_scale * s.sigma * share
        of_z = up * d.sigma / t.sigma
        weights = weights * (up * d.alpha)[..., None]
        noise = np.where(pairs.clean, 0.0, noise)
    settings = {"eta": eta, "noise_scale": noise_scale}
    return multistep("res_multistep", schedule, pairs, of_z, weights, noise, settings=settings)
