r"""DDIM: keep the direction of the noise that the denoiser sees, exactly right for a fixed x-hat."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffcore import _check, process
from diffcore.plan import Plan
from diffcore.samplers._build import NOISE, X, Z, empty, finish, scaled, steps_of
from diffcore.schedules import Schedule


def ddim(
    schedule: Schedule, steps: int | None = None, *, eta: float = 0.0, noise_scale: float = 1.0, grid: Any = None
) -> Plan:
    r"""Return the plan of DDIM, from deterministic (eta = 0) to ancestral (eta = 1, equal to gamma = 0).

        z_s = alpha_s x-hat + sigma_s sqrt(1 - eta^2 n) eps-hat + sigma_s eta sqrt(n) eps,
        eps-hat = (z_t - alpha_t x-hat) / sigma_t,    n = 1 - e^{lambda_t - lambda_s}

    With eta = 0 one step t -> s -> u equals t -> u for a fixed x-hat, and a decreasing grid runs the sampler backwards,
    from data to noise (inversion). This is Euler's method on the probability-flow ODE in sigma / alpha.

    Args:
        schedule: gives the levels and the scaling.
        steps: how many steps, at least 1, uniform in time from 1 to clean data; or give `grid`.
        eta: in [0, 1].
        noise_scale: a factor > 0 of the noise.
        grid: strictly monotone log-SNRs (N + 1, *lead) instead of `steps`; decreasing only with eta = 0.

    Raises:
        ValueError: eta outside [0, 1], a bad grid, or neither or both of steps and grid.

    Source: Song, Meng & Ermon 2021 (arXiv 2010.02502), eq. 12 and 16.

    >>> import diffcore as dc
    >>> plan = dc.samplers.ddim(dc.schedules.Cosine(), steps=50)
    >>> plan.stochastic, len(plan)
    (False, 50)
    """
    function = "samplers.ddim"
    _check.number(function, "eta", eta, 0, 1, hint="0 is deterministic, 1 ancestral")
    _check.number(function, "noise_scale", noise_scale, 0.0, open_low=True)
    pairs = steps_of(function, schedule, steps, grid, both_ways=eta == 0.0)
    t, s = pairs.t, pairs.s
    update = empty(len(pairs), pairs.lead)
    new = process.novelty(s, t)
    with np.errstate(divide="ignore", invalid="ignore"):
        # log sqrt(1 - eta^2 n), the log of what is kept of eps-hat, from whichever form of 1 - eta^2 n does not cancel
        log_kept = 0.5 * np.where(
            new < 0.5, np.log1p(-(eta**2) * new), np.log((1.0 - eta**2) + eta**2 * np.exp(-2.0 * pairs.half))
        )
        update[..., 0, Z] = np.exp(log_kept) * s.sigma / t.sigma
    update[..., 0, X] = -s.alpha * np.expm1(log_kept - pairs.half)
    if eta:
        update[..., 0, NOISE] = noise_scale * s.sigma * eta * np.sqrt(new)
    return finish("ddim", schedule, t.log_snr, s.log_snr, update, eta=eta, **scaled(noise_scale))
