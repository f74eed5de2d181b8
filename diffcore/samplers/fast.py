r"""DPM-Solver-fast: steps of order 3, and lower orders at the end, so that any number of calls can be had."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from diffcore import _check
from diffcore.plan import Plan
from diffcore.samplers._build import steps_of
from diffcore.samplers._down import Down, check_noise, down, up
from diffcore.samplers._written import Denoise, Draw, Point, Vector, joined, some, split_clean, written
from diffcore.samplers.dpm_solver import solver_step
from diffcore.schedules import Schedule


def dpm_solver_fast(
    schedule: Schedule,
    steps: int | None = None,
    *,
    final: Sequence[int] = (2, 1),
    eta: float = 0.0,
    noise_scale: float = 1.0,
    grid: Any = None,
) -> Plan:
    r"""Return the plan of DPM-Solver-fast: single-step DPM-Solver of order 3, of lower orders in the last steps.

        z_d = the step of `dpm_solver` from t to d, of order 3, or as `final` says,    then noise from d up to s

    with d and the noise as for `euler_ancestral`, by sigma / alpha under every scaling, but d never below the end of the grid. So
    the last step has no noise where it ends amid noise, and is x-hat where it ends on clean data.

    The published rule for n calls takes floor(n / 3) + 1 steps uniform in log-SNR, and `final` (2, 1) where 3 divides n, else
    (n mod 3,).

    Args:
        schedule: gives the levels and the scaling.
        steps: how many steps N, at least 1, uniform in time from 1 to clean data; or give `grid`.
        final: the orders of the last steps, each 1, 2 or 3; all before have order 3.
        eta: in [0, 1]; 0 is the ODE.
        noise_scale: a factor > 0 of the noise.
        grid: increasing log-SNRs (N + 1, *lead) instead of `steps`; decreasing only with eta = 0.

    Raises:
        ValueError: a setting out of range, pure noise, a bad grid, or neither or both of steps and grid.

    Source: Lu et al. 2022 (arXiv 2206.00927), sec. 3.4; Crowson 2022 (k-diffusion, sample_dpm_fast), with its noise.

    >>> import diffcore as dc
    >>> len(dc.samplers.dpm_solver_fast(dc.schedules.Karras(), grid=dc.grids.uniform_log_snr(dc.schedules.Karras(), 6)))
    15
    """
    function, name = "samplers.dpm_solver_fast", "dpm_solver_fast"
    check_noise(function, eta, noise_scale)
    final = tuple(_check.integer(function, "final", order, 1, 3) for order in final)
    pairs = steps_of(function, schedule, steps, grid, both_ways=eta == 0.0)
    orders = ([3] * len(pairs) + list(final))[-len(pairs) :]
    inner, last = split_clean(name, pairs)
    end = 0.5 * pairs.s.log_snr[-1]

    def step(order: int, z: Vector, t: Point, s: Point, denoise: Denoise, draw: Draw) -> Vector:
        d = down(t, s, eta, by_ratio=True)
        if eta:
            half = np.minimum(d.level.half, np.broadcast_to(end, (t.half.size // end.size, *pairs.lead)).reshape(-1))
            d = Down(s.at_half(half), np.sqrt(-np.expm1(2.0 * (s.half - half))))
        return up(solver_step(z, t, d.level, denoise, order), d, s, noise_scale, draw)

    parts, first = [], 0
    for k in range(1, len(inner) + 1):
        if k == len(inner) or orders[k] != orders[first]:
            parts.append(written(name, schedule, some(inner, slice(first, k)), partial(step, orders[first])))
            first = k
    return joined(name, schedule, [*parts, last], final=final, eta=eta, noise_scale=noise_scale)
