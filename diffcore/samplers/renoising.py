r"""Samplers that go to x-hat, or most of the way, and add fresh noise: for consistency models and others distilled to few steps."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffcore import _check, levels, process
from diffcore.plan import Plan
from diffcore.samplers._build import NOISE, X, Z, empty, finish, scaled, steps_of
from diffcore.schedules import Schedule


def lcm(
    schedule: Schedule, steps: int | None = None, *, floor: float = 0.0, noise_scale: float = 1.0, grid: Any = None
) -> Plan:
    r"""Return the plan of multistep consistency sampling: x-hat with fresh noise at every level.

        z_s = alpha_s (x-hat + sqrt(r_s^2 - floor^2) noise_scale eps),    r = sigma / alpha

    That is the sampler of latent consistency models and of DMD2, and under "flow" the stochastic Euler method of distilled flow
    models and of rCM, each on its own levels.

    Args:
        schedule: gives the levels and the scaling.
        steps: how many steps, at least 1, uniform in time from 1 to clean data; or give `grid`.
        floor: the least sigma / alpha of a consistency model, whose x-hat has that much noise; at least 0.
        noise_scale: a factor > 0 of the noise.
        grid: increasing log-SNRs (N + 1, *lead) instead of `steps`.

    Raises:
        ValueError: a setting out of range, a bad grid, or neither or both of steps and grid.

    Source: Song et al. 2023 (arXiv 2303.01469), alg. 1; Luo et al. 2023 (arXiv 2310.04378), alg. 3.

    >>> import diffcore as dc
    >>> len(dc.samplers.lcm(dc.schedules.Cosine(), 4))
    4
    """
    _check.number("samplers.lcm", "floor", floor, 0.0)
    _check.number("samplers.lcm", "noise_scale", noise_scale, 0.0, open_low=True)
    pairs = steps_of("samplers.lcm", schedule, steps, grid)
    update = empty(len(pairs), pairs.lead)
    update[..., 0, X] = pairs.s.alpha
    update[..., 0, NOISE] = noise_scale * np.sqrt(np.maximum(pairs.s.sigma**2 - (floor * pairs.s.alpha) ** 2, 0.0))
    settings = {"floor": floor, "noise_scale": noise_scale}
    return finish("lcm", schedule, pairs.t.log_snr, pairs.s.log_snr, update, **settings)


def tcd(
    schedule: Schedule, steps: int | None = None, *, gamma: float = 0.3, noise_scale: float = 1.0, grid: Any = None
) -> Plan:
    r"""Return the plan of strategic stochastic sampling, that of trajectory consistency distillation (TCD).

        z_d = alpha_d x-hat + sigma_d eps-hat,    d the level at time (1 - gamma) time(s)
        z_s = (alpha_s / alpha_d) z_d + sqrt(sigma_s^2 - (alpha_s sigma_d / alpha_d)^2) eps

    gamma = 0 is `ddim(eta=0)`; gamma = 1 is `lcm` where the schedule ends on clean data.

    Args:
        schedule: gives the levels, the scaling and the time.
        steps: how many steps, at least 1, uniform in time from 1 to clean data; or give `grid`.
        gamma: in [0, 1].
        noise_scale: a factor > 0 of the noise.
        grid: increasing log-SNRs (N + 1, *lead) instead of `steps`; decreasing only with gamma = 0.

    Raises:
        ValueError: gamma out of range, a bad grid, or neither or both of steps and grid.

    Source: Zheng et al. 2024 (arXiv 2402.19159), alg. 4.

    >>> import diffcore as dc
    >>> dc.samplers.tcd(dc.schedules.Cosine(), 4).stochastic
    True
    """
    _check.number("samplers.tcd", "gamma", gamma, 0.0, 1.0)
    _check.number("samplers.tcd", "noise_scale", noise_scale, 0.0, open_low=True)
    pairs = steps_of("samplers.tcd", schedule, steps, grid, both_ways=gamma == 0.0)
    t, s = pairs.t, pairs.s
    log_snr = np.asarray(schedule.log_snr((1.0 - gamma) * np.asarray(schedule.time(s.log_snr)))) if gamma else s.log_snr
    d = levels.level(np.maximum(log_snr, s.log_snr), schedule.scaling)
    update = empty(len(pairs), pairs.lead)
    update[..., 0, Z] = s.alpha / d.alpha * d.sigma / t.sigma
    update[..., 0, X] = s.alpha - s.alpha / d.alpha * d.sigma * t.alpha / t.sigma
    with np.errstate(invalid="ignore"):  # where both are clean
        update[..., 0, NOISE] = np.where(d.log_snr > s.log_snr, s.sigma * np.sqrt(process.novelty(d, s)), 0.0)
    update[..., 0, NOISE] *= noise_scale
    return finish("tcd", schedule, t.log_snr, s.log_snr, update, gamma=gamma, **scaled(noise_scale))
