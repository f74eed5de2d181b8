r"""Heun's method on the probability-flow ODE, with the churn of EDM.

Slopes are of u = z / alpha over r = sigma / alpha; under "flow", where alpha = 1 - sigma, those of z over sigma: it is also
dz/d sigma = eps-hat - x-hat, the velocity, and those who train it average that.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from diffcore import grids
from diffcore.plan import Float64, Form, Plan
from diffcore.samplers._churn import Churn, Churned, churned, eulers, finished
from diffcore.samplers._written import refuse_pure_noise
from diffcore.schedules import Schedule

LEVELS = (-2.0 * math.log(80.0), -2.0 * math.log(0.002))
"""The log-SNRs between which EDM samples."""


def heun(
    schedule: Schedule,
    steps: int | None = None,
    *,
    churn: float = 0.0,
    churn_range: tuple[float, float] = (0.0, math.inf),
    noise_scale: float = 1.0,
    grid: Any = None,
) -> Plan:
    r"""Return the plan of Heun's method with churn, EDM's sampler: order 2, two calls a step, one for the last.

        z_s = alpha_s (u + (r_s - r_t) [ (u - x-hat_t) / r_t + (u_E - x-hat_E) / r_s ] / 2)

    where u_E is Euler's result and x-hat_E the denoiser there. Under "flow" it averages the velocities instead,

        z_s = z_t + (sigma_s - sigma_t) [ (eps-hat_t - x-hat_t) + (eps-hat_E - x-hat_E) ] / 2

    which may begin at pure noise. Slopes in r want steps that cross few octaves of r where the data shows, so `steps` without
    a grid are EDM's: `grids.karras` over the levels of the schedule between r = 80 and 0.002, then clean data. (Uniform in
    time on `Cosine()` the first of 20 steps would lead from r = 22026 to 13, and the run draw 40 times the variance of unit
    data, where this draws 1.07 times it.) Under "flow" they are uniform in time.

    Args, raises: as for `euler`, but for the steps. N steps to clean data call the denoiser 2 N - 1 times.

    Source: Karras et al. 2022 (arXiv 2206.00364), alg. 1 and 2; Lipman et al. 2023 (arXiv 2210.02747), sec. 6, for the velocity.

    >>> import diffcore as dc
    >>> schedule = dc.schedules.Karras()
    >>> len(dc.samplers.heun(schedule, grid=dc.grids.karras(schedule, 18)))
    35
    """
    settings, flow = Churn(churn, churn_range, noise_scale), getattr(schedule, "scaling", "") == "flow"
    run = churned("heun", schedule, steps, grid, settings, grids.uniform if flow else _karras)
    if not flow and len(run.pairs) > 1 and np.any(np.isneginf(run.pairs.t.log_snr[0])):
        refuse_pure_noise("heun", run.pairs)
    with np.errstate(divide="ignore", invalid="ignore"):
        return finished("heun", schedule, run, *_stages(run), settings)


def _karras(schedule: Schedule, steps: int) -> Float64:
    """Return EDM's grid over what a schedule has of EDM's levels, or over all of it where it has none of them."""
    ends = [float(schedule.log_snr(1.0)), float(schedule.log_snr(0.0))]
    inside = [max(ends[0], LEVELS[0]), min(ends[1], LEVELS[1])]
    start, end = schedule.time(np.array(inside if inside[0] < inside[1] else ends))
    return grids.karras(schedule, steps, start=start, end=end, clean=True)


def _stages(run: Churned) -> tuple[Float64, Float64, Float64]:
    """Return the table of pairs of stages: Euler, which remembers what the correction needs of its start, then that."""
    s, start, half, count = run.pairs.s, run.start, run.half, len(run.pairs)
    clean = np.asarray(run.pairs.clean).reshape(count, -1)
    single = np.asarray(clean.all(axis=1))
    if np.any(clean.any(axis=1) != single):
        raise ValueError("samplers.heun: `grid` must end on clean data for all samples or for none")
    stages = 2 * count - int(single[-1])
    form = Form(memory=int(stages > 1))
    update = eulers(run, form.memory, stages)
    first, second = update[0::2], update[1::2]
    # z / norm moves straight, in r or in sigma; the step relative to that at its start and at its end
    of_start = np.expm1(-half)
    if run.scaling == "flow":
        norm = norm_t = np.ones_like(half)
        of_start = s.alpha * of_start
        of_end = of_start * start.sigma / s.sigma
    else:
        norm, norm_t, of_end = s.alpha, start.alpha, -np.expm1(half)
    some = slice(0, len(second))
    if len(second):
        first[some, ..., 1, 0] = ((1.0 + 0.5 * of_start) * norm / norm_t)[some]
        first[some, ..., 1, form.x] = (-0.5 * norm * of_start)[some]
        second[..., 0, 1] = 1.0
        second[..., 0, 0] = (0.5 * of_end)[some]
        second[..., 0, form.x] = (-0.5 * norm * of_end)[some]
    at, to = np.empty(update.shape[:-2]), np.empty(update.shape[:-2])
    at[0::2], at[1::2] = start.log_snr, s.log_snr[some]
    to[0::2], to[1::2] = s.log_snr, s.log_snr[some]
    return at, to, update
