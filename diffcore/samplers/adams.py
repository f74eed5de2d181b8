r"""Linear multistep methods: the slopes of the last steps, at one call a step.

With rho = sigma / alpha the slope of z / alpha is eps-hat; under "flow" that of z over rho = sigma is the velocity, which these
methods then use instead. With f_0 the slope at this step, f_1 that at the last, ..., all of them are

    z_s / norm_s = z_t / norm_t + sum_j w_j f_j
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from diffcore import _check
from diffcore.plan import Float64, Plan
from diffcore.samplers._build import Steps, steps_of
from diffcore.samplers._written import multistep, point
from diffcore.schedules import Schedule


def adams_bashforth(count: int) -> list[float]:
    """Return the weights of the Adams-Bashforth method of even steps.

    >>> adams_bashforth(2)
    [1.5, -0.5]
    """
    return [[1.0], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]][count - 1]


def polynomial_weights(nodes: Float64) -> Float64:
    """Return the weights w_j, (..., K), that integrate polynomials through values at the nodes u_j (..., K) from 0 to 1."""
    powers = np.arange(nodes.shape[-1])
    return np.asarray(np.linalg.solve(nodes[..., None, :] ** powers[:, None], 1.0 / (1.0 + powers)[:, None])[..., 0])


def _fill(pairs: Steps, rho: Float64, order: int, final: str, weigh: Any) -> Float64:
    """Return the weights (N, *lead, order) of weigh(k, count) times the step, and Euler's at a clean end if so wanted."""
    weights = np.zeros((len(pairs), *pairs.lead, order))
    for k in range(len(pairs)):
        count = min(order, k + 1)
        weights[k, ..., :count] = weigh(k, count) * (rho[k + 1] - rho[k])[..., None]
        euler = pairs.clean[k][..., None] & (final == "euler")
        weights[k] = np.where(euler, np.eye(order)[0] * (rho[k + 1] - rho[k])[..., None], weights[k])
    return weights


def adams_plan(
    name: str, schedule: Schedule, pairs: Steps, count: int, end: str, weigh: Any, settings: Mapping[str, object]
) -> Plan:
    """Return the plan of a method with weights weigh(rho, k, count), of a step's length; its clean end is "euler" or "full"."""
    _check.choice(f"samplers.{name}", "final", end, ("euler", "full"))
    t, s = point(pairs.t, schedule.scaling), point(pairs.s, schedule.scaling)
    with np.errstate(all="ignore"):  # what has no value is refused by `multistep`
        rho = np.concatenate([t.rho, s.rho[-1:]])
        weights = s.norm[..., None] * _fill(pairs, rho, count, end, lambda k, use: weigh(rho, k, use))
        of_z = s.norm / t.norm
    return multistep(name, schedule, pairs, of_z, weights, keeps="slope", settings=settings)


def lms(
    schedule: Schedule, steps: int | None = None, *, order: int = 4, final: str = "euler", grid: Any = None
) -> Plan:
    r"""Return the plan of the linear multistep method in sigma / alpha, Adams-Bashforth with the steps as they are.

        w_j = int_{rho_t}^{rho_s} l_j(rho) d rho,    l_j the polynomial that is 1 at rho_j and 0 at the others

    The first steps have fewer slopes and so a lower order.

    Args:
        schedule: gives the levels and the scaling.
        steps: how many steps, at least 1, uniform in time from 1 to clean data; or give `grid`.
        order: 1 to 4.
        final: the step to clean data: "euler", which is x-hat, or "full", which uses the past as every other step does.
        grid: strictly monotone log-SNRs (N + 1, *lead) instead of `steps`.

    Raises:
        ValueError: an order out of range; pure noise, but for "flow"; a bad grid, or neither or both of steps and grid.

    iPNDM_v is this method with final="euler". Its published code closes a parenthesis late, (1 - a b) / 2 for (1 - a) b / 2 with
    a = h / (3 (h + h_1)) and b = h (h + h_1) / (h_1 (h_1 + h_2)), so that with three slopes and more it has the right weights
    only where steps are even.

    Source: Crowson 2022 (k-diffusion, sample_lms), which takes "full"; rho-AB of Zhang & Chen 2023 (arXiv 2204.13902).

    >>> import diffcore as dc
    >>> dc.samplers.lms(dc.schedules.Karras(), 10).memory
    3
    """
    _check.integer("samplers.lms", "order", order, 1, 4)
    pairs = steps_of("samplers.lms", schedule, steps, grid, both_ways=True)

    def weigh(rho: Float64, k: int, count: int) -> Float64:
        nodes = [(rho[k - j] - rho[k]) / (rho[k + 1] - rho[k]) for j in range(count)]
        return polynomial_weights(np.stack(nodes, axis=-1))

    return adams_plan("lms", schedule, pairs, order, final, weigh, {"order": order, "final": final})


def ipndm(
    schedule: Schedule, steps: int | None = None, *, order: int = 4, final: str = "euler", grid: Any = None
) -> Plan:
    r"""Return the plan of iPNDM: Adams-Bashforth with the weights of even steps, whatever the steps are.

        order 2: (3 f_0 - f_1) / 2,    order 3: (23 f_0 - 16 f_1 + 5 f_2) / 12,    order 4: (55 f_0 - 59 f_1 + 37 f_2 - 9 f_3) / 24

    times rho_s - rho_t. Where steps grow or shrink smoothly it converges at order 2 however many slopes it uses, on other grids at
    order 1; `lms` has the right weights.

    Args:
        schedule, grid: as for `lms`.
        steps: how many steps, at least 1, uniform in time from 1 to clean data; or give `grid`.
        order: 1 to 4, the number of slopes.
        final: "euler" or "full", as for `lms`.

    Raises:
        ValueError: as for `lms`.

    Source: Zhang & Chen 2023 (arXiv 2204.13902), app. H.1, after Liu et al. 2022 (arXiv 2202.09778).

    >>> import diffcore as dc
    >>> dc.samplers.ipndm(dc.schedules.Cosine(), 10).memory
    3
    """
    _check.integer("samplers.ipndm", "order", order, 1, 4)
    pairs = steps_of("samplers.ipndm", schedule, steps, grid, both_ways=True)
    settings = {"order": order, "final": final}
    return adams_plan("ipndm", schedule, pairs, order, final, lambda *at: np.array(adams_bashforth(at[-1])), settings)


def gradient_estimation(schedule: Schedule, steps: int | None = None, *, gamma: float = 2.0, grid: Any = None) -> Plan:
    r"""Return the plan of Euler's method with slopes extrapolated from the last one, "gradient estimation".

        z_s / norm_s = z_t / norm_t + (rho_s - rho_t) (gamma f_0 + (1 - gamma) f_1)

    The first step and that to clean data are Euler's. gamma = 1 is `euler`, 1.5 `ipndm(order=2)`; any other has order 1.

    Args:
        schedule, grid: as for `lms`.
        steps: how many steps, at least 1, uniform in time from 1 to clean data; or give `grid`.
        gamma: a number >= 1.

    Raises:
        ValueError: gamma out of range, and as for `lms`.

    Source: Permenter & Yuan 2024 (arXiv 2306.04848), alg. 2.

    >>> import diffcore as dc
    >>> dc.samplers.gradient_estimation(dc.schedules.Karras(), 10).memory
    1
    """
    _check.number("samplers.gradient_estimation", "gamma", gamma, 1.0)
    pairs = steps_of("samplers.gradient_estimation", schedule, steps, grid, both_ways=True)
    weights = [np.array([1.0]), np.array([gamma, 1.0 - gamma])]
    return adams_plan(
        "gradient_estimation", schedule, pairs, 2, "euler", lambda *at: weights[at[-1] - 1], {"gamma": gamma}
    )
