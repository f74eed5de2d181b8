r"""ER-SDE: exact steps of reverse-time SDEs with any amount of noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from diffcore import _check
from diffcore.plan import Float64, Plan
from diffcore.samplers._build import steps_of
from diffcore.samplers._exponential import check_order
from diffcore.samplers._written import multistep, point
from diffcore.schedules import Schedule


def noise_functions() -> dict[str, Callable[[Float64], Float64]]:
    """Return phi(r) / r of r = sigma / alpha by name.

    >>> float(noise_functions()["sde"](np.float64(3.0)))
    3.0
    """
    return {
        "er": lambda r: np.exp(r**0.3) + 10.0,
        "sde": lambda r: 1.0 * r,
        "ode": lambda r: np.ones_like(r),
    }


def er_sde(
    schedule: Schedule,
    steps: int | None = None,
    *,
    order: int = 3,
    noise: str = "er",
    noise_scale: float = 1.0,
    grid: Any = None,
) -> Plan:
    r"""Return the plan of the ER-SDE solver of 1, 2 or 3 stages, a multistep method in x-hat.

        z_s / alpha_s = q z_t / alpha_t + (1 - q) x-hat + A D_1 + B D_2 + sqrt(r_s^2 - q^2 r_t^2) noise_scale eps
        q = phi(r_s) / phi(r_t),    A = r_s - r_t + phi(r_s) int_{r_s}^{r_t} d r / phi(r)
        B = (r_s - r_t)^2 / 2 + phi(r_s) int_{r_s}^{r_t} (r - r_t) / phi(r) d r

    with r = sigma / alpha and D_1, D_2 the first and second differences of the last two and three estimates,

        D_1 = (x-hat_0 - x-hat_1) / (r_0 - r_1),    D_2 = 2 (D_1 - D_1 of the last step) / (r_0 - r_2)

    as published: D_1 is the slope half-way back, not at r_0, so that the third stage does not raise the order, 2. The integrals
    are exact, where the authors' code sums 200 rectangles. The first steps have fewer differences; the step to clean data is x-hat.

    Args:
        schedule: gives the levels and the scaling.
        steps: how many steps, at least 1, uniform in time from 1 to clean data; or give `grid`.
        order: 1, 2 or 3, the number of stages.
        noise: which SDE: "er", phi = r (e^{r^0.3} + 10); "sde", phi = r^2; "ode", phi = r, none.
        noise_scale: a factor > 0 of the noise.
        grid: increasing log-SNRs (N + 1, *lead) instead of `steps`.

    Raises:
        ValueError: a setting out of range, a bad grid, or neither or both of steps and grid.

    Source: Cui et al. 2023 (arXiv 2309.06169), alg. 2 to 4.

    >>> import diffcore as dc
    >>> dc.samplers.er_sde(dc.schedules.Karras(), 10).memory
    2
    """
    function = "samplers.er_sde"
    check_order(function, order)
    share = noise_functions()[_check.choice(function, "noise", noise, tuple(noise_functions()))]
    _check.number(function, "noise_scale", noise_scale, 0.0, open_low=True)
    pairs = steps_of(function, schedule, steps, grid, both_ways=noise == "ode")
    t, s = point(pairs.t, schedule.scaling), point(pairs.s, schedule.scaling)
    with np.errstate(all="ignore"):  # steps from pure noise, whose differences are not used, and to clean data
        kept = np.where(pairs.clean, 0.0, share(s.ratio) / share(t.ratio))  # q r_t / r_s
        q = kept * s.ratio / t.ratio
        weights = np.zeros((len(pairs), *pairs.lead, order))
        weights[..., 0] = s.alpha * np.where(pairs.clean, 1.0, 1.0 - q)
        difference = np.zeros((len(pairs), *pairs.lead, 3))  # D_1, as weights of the estimates
        first, second = _integrals(share, t.ratio, s.ratio)
        for k in range(1, len(pairs) if order > 1 else 1):
            apart = t.ratio[k] - t.ratio[k - 1]
            difference[k, ..., 0], difference[k, ..., 1] = 1.0 / apart, -1.0 / apart
            added = first[k][..., None] * difference[k]
            if order == 3 and k > 1:
                before = np.roll(difference[k - 1], 1, axis=-1)
                added += (
                    second[k][..., None] * 2.0 * (difference[k] - before) / (t.ratio[k] - t.ratio[k - 2])[..., None]
                )
            weights[k] += np.where(pairs.clean[k][..., None], 0.0, s.alpha[k][..., None] * added[..., :order])
        of_z = kept * s.sigma / t.sigma
        amplitude = noise_scale * s.sigma * np.sqrt(np.maximum(1.0 - kept**2, 0.0))
    settings = {"order": order, "noise": noise, "noise_scale": noise_scale}
    amplitude = np.where(pairs.clean | (noise == "ode"), 0.0, amplitude)
    return multistep("er_sde", schedule, pairs, of_z, weights, amplitude, settings=settings)


def _integrals(share: Callable[[Float64], Float64], t: Float64, s: Float64) -> tuple[Float64, Float64]:
    """Return A and B of the steps, by Gauss's quadrature in log r."""
    nodes, width = np.polynomial.legendre.leggauss(64)
    log = np.log(s / t)[..., None]
    r = t[..., None] * np.exp(0.5 * log * (1.0 + nodes))
    of_s, width = (s * share(s))[..., None], 0.5 * -log * width / share(r)  # d r / phi(r)
    return s - t + (of_s * width).sum(axis=-1), 0.5 * (s - t) ** 2 + (of_s * width * (r - t[..., None])).sum(axis=-1)
