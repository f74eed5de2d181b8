r"""Explicit Runge-Kutta methods on the probability-flow ODE, by any Butcher tableau, and two that go by names of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from diffcore import _check
from diffcore.plan import Float64, Plan
from diffcore.samplers._build import steps_of
from diffcore.samplers._tableaux import Tableau, checked
from diffcore.samplers._written import Denoise, Draw, Point, Vector, single_step, slope
from diffcore.schedules import Schedule


def runge_kutta(
    schedule: Schedule,
    steps: int | None = None,
    *,
    tableau: str | Tableau = "rk4",
    variable: str = "rho",
    grid: Any = None,
) -> Plan:
    r"""Return the plan of an explicit Runge-Kutta method, given by its Butcher tableau (A, b, c).

        k_i = f(w + h sum_{j<i} a_ij k_j, at c_i h),    w <- w + h sum_i b_i k_i

    where w and what it moves over are, by `variable`,

        "rho":    z / alpha over sigma / alpha, f = eps-hat; under "flow" z over sigma, f = the velocity
        "ratio":  z / alpha over sigma / alpha under every scaling
        "lambda": (z - alpha x-hat_1) / sigma over log(alpha / sigma), f = (alpha / sigma) (x-hat - x-hat_1)

    The last is an exponential method: x-hat_1, the step's first estimate, is integrated exactly, so that steps may be long.
    The step to clean data is x-hat.

    Args:
        schedule: gives the levels and the scaling.
        steps: how many steps N, at least 1, uniform in time from 1 to clean data; or give `grid`. Each calls the denoiser once for
            every stage of the tableau, the step to clean data once.
        tableau: "midpoint", "ralston" (order 2), "kutta3" (3), "rk4" (4), "dopri5" (5), or (A, b, c) with c_1 = 0 and c in [0, 1].
        variable: "rho", "ratio" or "lambda".
        grid: strictly monotone log-SNRs (N + 1, *lead) instead of `steps`.

    Raises:
        ValueError: an unknown name, a tableau that is not explicit or whose c are not the sums of the rows of A; pure noise, but
            for "rho" under "flow"; a bad grid, or neither or both of steps and grid.

    Source: Hairer, Norsett & Wanner 1993, sec. II.1; Krogstad 2005 (J. Comput. Phys. 203), sec. 3, for "lambda".

    >>> import diffcore as dc
    >>> plan = dc.samplers.runge_kutta(dc.schedules.Flow(), 10)
    >>> len(plan), plan.memory
    (37, 2)
    """
    a, b, c = checked(tableau)
    _check.choice("samplers.runge_kutta", "variable", variable, ("rho", "ratio", "lambda"))
    pairs = steps_of("samplers.runge_kutta", schedule, steps, grid, both_ways=True)

    def step(z: Vector, t: Point, s: Point, denoise: Denoise, _: Draw) -> Vector:
        first = denoise(z, t)
        along = _variable(variable, first)
        w, h, slopes = along.w(z, t), along.where(s) - along.where(t), [along.slope(z, first, t)]
        for row, node in zip(a[1:], c[1:], strict=True):
            at = s if node == 1.0 else along.level(t, along.where(t) + node * h)
            inner = along.z(w + h * _total(row, slopes), at)
            slopes.append(along.slope(inner, denoise(inner, at), at))
        return along.z(w + h * _total(b, slopes), s)

    return single_step("runge_kutta", schedule, pairs, step, tableau=tableau, variable=variable)


class _Variable(NamedTuple):
    """What a method moves over, the w that it moves, and the slope of w."""

    where: Callable[[Point], Float64]
    level: Callable[[Point, Float64], Point]
    w: Callable[[Vector, Point], Vector]
    z: Callable[[Vector, Point], Vector]
    slope: Callable[[Vector, Vector, Point], Vector]


def _variable(name: str, first: Vector) -> _Variable:
    """Return a variable by name, in a step whose first estimate is given."""
    if name == "lambda":
        return _Variable(
            lambda at: at.half,
            Point.at_half,
            lambda z, at: (z - at.alpha * first) / at.sigma,
            lambda w, at: at.sigma * w + at.alpha * first,
            lambda _, x, at: (x - first) / at.ratio,
        )
    if name == "ratio":
        return _Variable(
            lambda at: at.ratio,
            Point.at_ratio,
            lambda z, at: z / at.alpha,
            lambda w, at: w * at.alpha,
            lambda z, x, at: (z / at.alpha - x) / at.ratio,
        )
    return _Variable(lambda at: at.rho, Point.at_rho, lambda z, at: z / at.norm, lambda w, at: w * at.norm, slope)


def _total(numbers: Sequence[float], slopes: list[Vector]) -> Vector:
    return sum((number * k for number, k in zip(numbers, slopes, strict=True)), start=0.0 * slopes[0])
