r"""Pseudo numerical methods: Adams-Bashforth of order 4 with the weights of even steps, and two ways to start it."""

from __future__ import annotations

from typing import Any

from diffcore.plan import Plan
from diffcore.samplers._pseudo import pseudo_numerical
from diffcore.schedules import Schedule


def plms(schedule: Schedule, steps: int | None = None, *, final: str = "euler", grid: Any = None) -> Plan:
    r"""Return the plan of PLMS, the pseudo linear multistep method of order 4 in eps-hat whose first step is Heun's.

        z_s / norm_s = z_t / norm_t + (rho_s - rho_t) (55 f_0 - 59 f_1 + 37 f_2 - 9 f_3) / 24

    with f and rho as for `lms`, and fewer slopes in the second and third step as for `ipndm`, whose orders it has.

    Args:
        schedule: gives the levels and the scaling.
        steps: how many steps N, at least 1, uniform in time from 1 to clean data, which take N + 1 calls, or one if N is 1; or give
            `grid`.
        final: the step to clean data: "euler", which is x-hat, or "full", which uses the past as every other step does.
        grid: strictly monotone log-SNRs (N + 1, *lead) instead of `steps`.

    Raises:
        ValueError: pure noise, but for "flow"; a bad grid, or neither or both of steps and grid.

    Source: Liu et al. 2022 (arXiv 2202.09778), alg. 2, with the start of diffusers' PNDMScheduler(skip_prk_steps=True).

    >>> import diffcore as dc
    >>> plan = dc.samplers.plms(dc.schedules.Cosine(), 10)
    >>> len(plan), plan.memory
    (11, 3)
    """
    return pseudo_numerical("plms", schedule, steps, grid, final)


def pndm(schedule: Schedule, steps: int | None = None, *, final: str = "euler", grid: Any = None) -> Plan:
    r"""Return the plan of PNDM: as `plms`, but the first three steps are those of the classical Runge-Kutta method.

        f = (f_1 + 2 f_2 + 2 f_3 + f_4) / 6

    with f_2 and f_3 taken half-way in the time of the schedule, but with the weights of the middle of rho.

    Args:
        schedule, final, grid: as for `plms`.
        steps: how many steps N, at least 1, uniform in time from 1 to clean data, which take N + 9 calls from N = 4 on; or give
            `grid`.

    Raises:
        ValueError: as for `plms`.

    Source: Liu et al. 2022 (arXiv 2202.09778), alg. 2.

    >>> import diffcore as dc
    >>> plan = dc.samplers.pndm(dc.schedules.Cosine(), 10)
    >>> len(plan), plan.memory
    (19, 4)
    """
    return pseudo_numerical("pndm", schedule, steps, grid, final)
