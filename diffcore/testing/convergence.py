r"""Orders of convergence, measured on Gaussian data, where the answer is known in closed form.

In a direction of variance c the probability-flow ODE scales z by the standard deviation of the marginal,

    z_s / z_t = sqrt(alpha_s^2 c + sigma_s^2) / sqrt(alpha_t^2 c + sigma_t^2),

and the reverse SDE takes the marginal N(alpha_t m, alpha_t^2 c + sigma_t^2) to that at s. A plan's own map is exact too
(`exact.moments`), so the error of N steps is computed without drawing a sample, and falls as N^-order.

A multistep solver takes its first steps at a lower order. That costs nothing where a run starts in noise, since x-hat
hardly changes there; started amid signal, at lambda = -6 say, DPM-Solver++ 3M measures 2 for its first-order start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from diffcore import exact, levels
from diffcore.plan import Plan
from diffcore.testing._arrays import Float64, fail_unless
from diffcore.testing._naming import maker_of

__all__ = ["UNEVEN", "Convergence", "check_order", "order_of_convergence"]

UNEVEN = (1.0, 2.0, 1.5, 0.75)
"""Gaps whose ratio does not tend to 1: a multistep coefficient that takes it for 1 loses an order on them."""


class Convergence(NamedTuple):
    """What `order_of_convergence` measures.

    Fields:
        order: the slope of -log error against log steps, over the last three grids.
        steps: how many steps each grid has.
        errors: the largest error over the directions, for each grid.
        orders: the slope between each two grids that follow one another.
    """

    order: float
    steps: tuple[int, ...]
    errors: tuple[float, ...]
    orders: tuple[float, ...]


def order_of_convergence(
    make_plan: Callable[[Float64], Plan],
    *,
    variances: Sequence[float] = (0.03, 0.3, 1.7, 9.0),
    steps: Sequence[int] = (32, 64, 128, 256, 512),
    log_snrs: tuple[float, float] = (-12.0, 6.0),
    floor: float = 1e-12,
    gaps: Sequence[float] = (1.0,),
) -> Convergence:
    r"""Return the order at which a sampler's error falls on Gaussian data, on grids even in log-SNR or of given gaps.

    Of a deterministic plan it is the order of the map z_start -> z_end. Of a noisy one it is the weak order, of mean and
    variance at the end, started from the true marginal.

    Args:
        make_plan: the sampler, a grid (N + 1,) of log-SNRs -> plan; no churn, which changes with N.
        variances: c of the directions. The error is the largest over them, relative to the marginal's deviation, so
            that a zero of one direction's error does not spoil the slope.
        steps: N of the grids, each the double of the one before.
        log_snrs: (first, last) of the grids; see the module's text for what a start amid signal does.
        floor: errors below it are rounding; such grids are left out.
        gaps: the gaps of a grid in log-SNR relative to each other, repeated along it, such as `UNEVEN`.

    Returns:
        `Convergence`.

    Raises:
        ValueError: fewer than three grids have an error above the floor.

    Source: Kloeden & Platen 1992, sec. 9.6-9.7, for the two notions of order.

    >>> import diffcore as dc
    >>> schedule = dc.schedules.Cosine()
    >>> round(order_of_convergence(lambda grid: dc.samplers.ddim(schedule, grid=grid)).order)
    1
    """
    maker_of("testing.order_of_convergence", make_plan)
    grids = (np.concatenate([[0.0], np.cumsum(np.resize(gaps, count))]) for count in steps)
    spread = log_snrs[1] - log_snrs[0]
    errors = tuple(_error(make_plan(log_snrs[0] + spread * (at / at[-1])), variances, log_snrs) for at in grids)
    kept = [(count, error) for count, error in zip(steps, errors, strict=True) if error > floor]
    if len(kept) < 3:
        raise ValueError(
            f"testing.order_of_convergence: at least 3 errors must be above rounding, got {errors} at {tuple(steps)} steps; "
            f"take fewer steps"
        )
    log_steps, log_errors = (np.log(np.array(part)) for part in zip(*kept, strict=True))
    orders = -np.diff(log_errors) / np.diff(log_steps)
    slope = -float(np.polyfit(log_steps[-3:], log_errors[-3:], 1)[0])
    return Convergence(slope, tuple(steps), errors, tuple(float(order) for order in orders))


def _error(plan: Plan, variances: Sequence[float], log_snrs: tuple[float, float]) -> float:
    c = np.asarray(variances, dtype=np.float64)
    first, last = (levels.level(at, plan.scaling) for at in log_snrs)
    before, after = (at.alpha**2 * c + at.sigma**2 for at in (first, last))
    if not plan.stochastic:
        data = exact.Gaussian(np.zeros(c.size), c)
        scale, _ = exact.moments(plan, data, levels.Gaussian(np.sqrt(before), np.zeros(c.size)))
        return float(np.max(np.abs(scale / np.sqrt(after) - 1.0)))
    data = exact.Gaussian(np.ones(c.size), c)
    mean, variance = exact.moments(plan, data, levels.Gaussian(first.alpha * np.ones(c.size), before))
    return float(max(np.max(np.abs(mean - last.alpha) / np.sqrt(after)), np.max(np.abs(variance / after - 1.0))))


def check_order(
    make_plan: Callable[[Float64], Plan], order: float, *, within: float = 0.25, **settings: object
) -> float:
    """Check that a sampler converges at the order that it claims, on even and on uneven grids.

    Args:
        make_plan, settings: as for `order_of_convergence`; with `gaps`, on those alone.
        order: the order that is claimed.
        within: how far the slope may be off; above the claimed order is no failure of less than 1.

    Returns:
        The smallest slope.

    Raises:
        AssertionError: with the errors on all grids.

    >>> import diffcore as dc
    >>> schedule = dc.schedules.Cosine()
    >>> check_order(lambda grid: dc.samplers.heun(schedule, grid=grid), 2) > 1.9
    True
    """
    maker_of("testing.check_order", make_plan)
    given = [settings.pop("gaps")] if "gaps" in settings else [(1.0,), UNEVEN]
    slopes = []
    for gaps in given:
        found = order_of_convergence(make_plan, gaps=gaps, **settings)  # type: ignore[arg-type]
        fail_unless(
            abs(found.order - order) <= within,
            f"order of convergence of {make_plan(np.linspace(-1.0, 1.0, 3)).sampler}",
            f"{found.order:.2f}, but should be {order} within {within}; errors {[f'{e:.2e}' for e in found.errors]} at "
            f"{found.steps} steps with gaps as {gaps}",
        )
        slopes.append(found.order)
    return min(slopes)
