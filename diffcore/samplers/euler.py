r"""Euler's method on the probability-flow ODE, with the churn of EDM."""

from __future__ import annotations

import math
from typing import Any

from diffcore.plan import Plan
from diffcore.samplers._churn import Churn, churned, eulers, finished
from diffcore.schedules import Schedule


def euler(
    schedule: Schedule,
    steps: int | None = None,
    *,
    churn: float = 0.0,
    churn_range: tuple[float, float] = (0.0, math.inf),
    noise_scale: float = 1.0,
    grid: Any = None,
) -> Plan:
    r"""Return the plan of Euler's method with churn: a step of order 1, one call of the denoiser.

        z_s = alpha_s (u + (r_s - r_t) (u - x-hat) / r_t),    u = z_t / alpha_t,    r = sigma / alpha

    Without churn this is `ddim(eta=0)`.

    Args:
        schedule: gives the levels and the scaling.
        steps: how many steps N, at least 1, uniform in time from 1 to clean data; or give `grid`, such as
            `grids.karras(schedule, 18)`.
        churn: EDM's S_churn >= 0; a step's noise grows by the factor 1 + min(churn / N, sqrt(2) - 1).
        churn_range: EDM's (S_tmin, S_tmax), the range of r = sigma / alpha in which churn acts.
        noise_scale: EDM's S_noise > 0.
        grid: strictly monotone log-SNRs (N + 1, *lead) instead of `steps`; decreasing only without churn.

    Raises:
        ValueError: a setting out of range, a bad grid, or neither or both of steps and grid.

    Source: Karras et al. 2022 (arXiv 2206.00364), alg. 2 without the second-order correction.

    >>> import diffcore as dc
    >>> schedule = dc.schedules.Karras()
    >>> len(dc.samplers.euler(schedule, grid=dc.grids.karras(schedule, 18)))
    18
    """
    settings = Churn(churn, churn_range, noise_scale)
    run = churned("euler", schedule, steps, grid, settings)
    update = eulers(run, 0, len(run.pairs))
    return finished("euler", schedule, run, run.start.log_snr, run.pairs.s.log_snr.copy(), update, settings)
