r"""Restart: go back to more noise and come down again, which contracts the errors made so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from diffcore import _check
from diffcore.plan import Plan
from diffcore.samplers._build import scaled, steps_of
from diffcore.samplers._written import Part, joined
from diffcore.samplers.heun import heun
from diffcore.schedules import Schedule


def restart(
    schedule: Schedule,
    steps: int | None = None,
    *,
    intervals: Sequence[tuple[float, float, int, int]] = ((0.06, 0.3, 3, 1),),
    noise_scale: float = 1.0,
    grid: Any = None,
) -> Plan:
    r"""Return the plan of Restart: Heun's method that, once at a level, goes back to more noise and comes down again.

        z_high = (alpha_high / alpha_low) z_low + alpha_high sqrt(r_high^2 - r_low^2) eps,    r = sigma / alpha

    then `heun` from high to low in steps even in r^(1/7), so many times, and on. An interval begins at the inner level of the grid
    whose r is nearest to its low, on average over samples and frames, and ends at high / low times that. A run of one step has
    none.

    Args:
        schedule: gives the levels and the scaling.
        steps: how many steps N of the run itself, at least 1, uniform in time from 1 to clean data; or give `grid`.
        intervals: (low, high, how many steps down, how many times) each, 0 < low < high, in units of r.
        noise_scale: a factor > 0 of the noise that leads back, S_noise of the paper.
        grid: increasing log-SNRs (N + 1, *lead) instead of `steps`.

    Raises:
        ValueError: a bad interval; as for `heun`.

    Source: Xu et al. 2023 (arXiv 2306.14878), alg. 2 and app. B.

    >>> import diffcore as dc
    >>> len(dc.samplers.restart(dc.schedules.Karras(), grid=dc.grids.karras(dc.schedules.Karras(), 18)))
    41
    """
    function = "samplers.restart"
    for low, high, inner, times in intervals:
        if not 0.0 < low < high < np.inf:
            raise _check.error(ValueError, function, "intervals", "have 0 < low < high, finite", (low, high))
        _check.count(function, "intervals", inner, 1)
        _check.count(function, "intervals", times, 1)
    _check.number(function, "noise_scale", noise_scale, 0.0, open_low=True)
    pairs = steps_of(function, schedule, steps, grid)
    points = np.concatenate([pairs.t.log_snr, pairs.s.log_snr[-1:]])
    parts: list[Plan] = []
    begun = 0
    inside = points[1:-1].mean(axis=tuple(range(1, points.ndim)))
    for low, high, inner, times in sorted(intervals, reverse=True) if len(pairs) > 1 else ():
        index = 1 + int(np.argmin(np.abs(inside + 2.0 * np.log(low))))
        r_low = np.exp(-0.5 * points[index])
        share = np.linspace(1.0, 0.0, inner + 1).reshape(-1, *(1,) * r_low.ndim)
        down = -2.0 * np.log(r_low) - 14.0 * np.log1p(share * ((high / low) ** (1 / 7) - 1.0))
        down[-1] = points[index]
        first = [heun(schedule, grid=points[begun : index + 1])] if index > begun else [parts.pop()]
        plans = [*first, *[heun(schedule, grid=down)] * times]
        parts += [plan.noised(down[0]) for plan in plans[:-1]] + plans[-1:]
        begun = index
    parts.append(heun(schedule, grid=points[begun:]))
    stages = [Part(plan.log_snr, plan.next_log_snr, plan.update.copy()) for plan in parts]
    for part, plan in zip(stages, parts, strict=True):
        part.update[..., plan.form.noise] *= noise_scale
    settings = {"intervals": tuple(tuple(interval) for interval in intervals), **scaled(noise_scale)}
    return joined("restart", schedule, stages, **settings)
