r"""DPM-Solver and DPM-Solver++ as single-step methods: exponential Runge-Kutta methods over log(alpha / sigma)."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffcore import _check
from diffcore.plan import Float64, Plan
from diffcore.samplers._build import steps_of
from diffcore.samplers._down import check_noise, down, up
from diffcore.samplers._exponential import phi
from diffcore.samplers._written import Denoise, Draw, Point, Vector, single_step
from diffcore.schedules import Schedule


def dpm_solver(
    schedule: Schedule, steps: int | None = None, *, order: int = 2, middle: float = 0.5, grid: Any = None
) -> Plan:
    r"""Return the plan of single-step DPM-Solver, which interpolates eps-hat.

        z_c = (alpha_c / alpha_t) z_t - sigma_c [(e^{c h} - 1) eps-hat_t + w_c (eps-hat_b - eps-hat_t)]

    at c = 0 .. 1 of the step h in log(alpha / sigma), and with phi(H) = (e^H - 1) / H - 1:

        order 2: c = m: w = 0;      c = 1: b = m, w = (e^h - 1) / (2 m)
        order 3: c = 1/3: w = 0;    c = 2/3: b = 1/3, w = 2 phi(2 h / 3);    c = 1: b = 2/3, w = (3/2) phi(h)

    Args:
        schedule: gives the levels and the scaling.
        steps: how many steps N, at least 1, uniform in time from 1 to clean data; or give `grid`. Each takes `order` calls, but
            one for the step to clean data, which returns x-hat.
        order: 2 or 3.
        middle: m, where a step of order 2 has its second call, in (0, 1); the paper's r_1.
        grid: strictly monotone log-SNRs (N + 1, *lead) instead of `steps`.

    Raises:
        ValueError: an order out of range, pure noise, a bad grid, or neither or both of steps and grid.

    Source: Lu et al. 2022 (arXiv 2206.00927), alg. 1 and 2.

    >>> import diffcore as dc
    >>> len(dc.samplers.dpm_solver(dc.schedules.Cosine(), 10, order=3))
    28
    """
    _check.choice("samplers.dpm_solver", "order", order, (2, 3))
    _check.number("samplers.dpm_solver", "middle", middle, 0.0, 1.0, open_low=True, open_high=True)
    pairs = steps_of("samplers.dpm_solver", schedule, steps, grid, both_ways=True)

    def step(z: Vector, t: Point, s: Point, denoise: Denoise, _: Draw) -> Vector:
        return solver_step(z, t, s, denoise, order, middle)

    more = {"middle": middle} if middle != 0.5 else {}
    return single_step("dpm_solver", schedule, pairs, step, order=order, **more)


def solver_step(z: Vector, t: Point, s: Point, denoise: Denoise, order: int, middle: float = 0.5) -> Vector:
    """Return z at s by one step of DPM-Solver of order 1, 2 or 3."""
    h = s.half - t.half
    first = (z - t.alpha * denoise(z, t)) / t.sigma

    def to(c: float, at: Point, e: Vector | None = None, weight: Float64 | float = 0.0) -> Vector:
        end = (at.alpha / t.alpha) * z - at.sigma * np.expm1(c * h) * first
        return end if e is None else end - at.sigma * weight * (e - first)

    def eps(z: Vector, at: Point) -> Vector:
        return (z - at.alpha * denoise(z, at)) / at.sigma

    if order == 1:
        return to(1.0, s)
    if order == 2:
        m = t.at_half(t.half + middle * h)
        return to(1.0, s, eps(to(middle, m), m), np.expm1(h) / (2.0 * middle))
    m, n = t.at_half(t.half + h / 3.0), t.at_half(t.half + 2.0 * h / 3.0)
    second = eps(to(1.0 / 3.0, m), m)
    third = eps(to(2.0 / 3.0, n, second, -2.0 * phi(-2.0 * h / 3.0)), n)
    return to(1.0, s, third, -1.5 * phi(-h))


def dpm_solver_pp_2s(
    schedule: Schedule, steps: int | None = None, *, eta: float = 0.0, noise_scale: float = 1.0, grid: Any = None
) -> Plan:
    r"""Return the plan of single-step DPM-Solver++ of order 2, and of its ancestral form.

        z_m = (sigma_m / sigma_t) z_t + alpha_m (1 - e^{-h/2}) x-hat_t,    m half-way to d in log(alpha / sigma), h the whole way
        z_d = (sigma_d / sigma_t) z_t + alpha_d (1 - e^{-h}) x-hat_m,      then noise from d up to s, as for `euler_ancestral`

    Args:
        schedule: gives the levels and the scaling.
        steps: how many steps N, at least 1, uniform in time from 1 to clean data, which take 2 N - 1 calls; or give `grid`.
        eta: in [0, 1]; 0 is deterministic, where d is s.
        noise_scale: a factor > 0 of the noise.
        grid: increasing log-SNRs (N + 1, *lead) instead of `steps`; decreasing only with eta = 0.

    Raises:
        ValueError: a setting out of range, pure noise, a bad grid, or neither or both of steps and grid.

    Source: Lu et al. 2022 (arXiv 2211.01095), alg. 1; Crowson 2022 (k-diffusion, sample_dpmpp_2s_ancestral) for the noise.

    >>> import diffcore as dc
    >>> len(dc.samplers.dpm_solver_pp_2s(dc.schedules.Cosine(), 10))
    19
    """
    check_noise("samplers.dpm_solver_pp_2s", eta, noise_scale)
    pairs = steps_of("samplers.dpm_solver_pp_2s", schedule, steps, grid, both_ways=eta == 0.0)

    def step(z: Vector, t: Point, s: Point, denoise: Denoise, draw: Draw) -> Vector:
        d = down(t, s, eta)
        m = t.at_half(0.5 * (t.half + d.level.half))
        middle = toward(z, denoise(z, t), t, m)
        return up(toward(z, denoise(middle, m), t, d.level), d, s, noise_scale, draw)

    return single_step("dpm_solver_pp_2s", schedule, pairs, step, eta=eta, noise_scale=noise_scale)


def toward(z: Vector, x: Vector, t: Point, s: Point) -> Vector:
    """Return z at s, exactly if x-hat stayed as it is."""
    return (s.sigma / t.sigma) * z - s.alpha * np.expm1(t.half - s.half) * x


def dpm_solver_pp_3s(schedule: Schedule, steps: int | None = None, *, grid: Any = None) -> Plan:
    r"""Return the plan of single-step DPM-Solver++ of order 3.

        z_c = (sigma_c / sigma_t) z_t + alpha_c [(1 - e^{-c h}) x-hat_t + w_c (x-hat_b - x-hat_t)],    phi(H) = (e^{-H} - 1) / H + 1
        c = 1/3: w = 0;    c = 2/3: b = 1/3, w = 2 phi(2 h / 3);    c = 1: b = 2/3, w = (3/2) phi(h)

    Args:
        schedule: gives the levels and the scaling.
        steps: how many steps N, at least 1, uniform in time from 1 to clean data, which take 3 N - 2 calls; or give `grid`.
        grid: strictly monotone log-SNRs (N + 1, *lead) instead of `steps`.

    Raises:
        ValueError: pure noise, a bad grid, or neither or both of steps and grid.

    Source: Lu et al. 2022 (arXiv 2211.01095), app. B, and the authors' code (dpm_solver_pytorch, singlestep third update).

    >>> import diffcore as dc
    >>> len(dc.samplers.dpm_solver_pp_3s(dc.schedules.Cosine(), 10))
    28
    """
    pairs = steps_of("samplers.dpm_solver_pp_3s", schedule, steps, grid, both_ways=True)

    def step(z: Vector, t: Point, s: Point, denoise: Denoise, _: Draw) -> Vector:
        h, x = s.half - t.half, denoise(z, t)
        m, n = t.at_half(t.half + h / 3.0), t.at_half(t.half + 2.0 * h / 3.0)
        second = denoise(toward(z, x, t, m), m) - x
        third = denoise(toward(z, x, t, n) + n.alpha * 2.0 * phi(2.0 * h / 3.0) * second, n) - x
        return toward(z, x, t, s) + s.alpha * 1.5 * phi(h) * third

    return single_step("dpm_solver_pp_3s", schedule, pairs, step)
