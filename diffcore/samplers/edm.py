r"""Euler's and Heun's methods on the probability-flow ODE, with the churn of EDM.

In the noise-to-signal ratio r = sigma / alpha and with u = z / alpha, the ODE is du/dr = (u - x-hat) / r for every
scaling. Under "flow", alpha = 1 - sigma, it is also dz/d sigma = eps-hat - x-hat, the velocity, and those who train it average
that. Churn adds noise before a step, from level t to the noisier level t':

    r_t' = (1 + c) r_t,    z_t' = (alpha_t' / alpha_t) z_t + alpha_t' sqrt(r_t'^2 - r_t^2) s_noise eps

It needs no call of the denoiser, so a plan does it at the end of the stage before; a churned run starts at t'.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from diffcore import _check, grids, levels
from diffcore.levels import Level
from diffcore.plan import Float64, Form, Plan
from diffcore.samplers._build import Steps, empty, finish, steps_of
from diffcore.samplers._written import refuse_pure_noise
from diffcore.schedules import Schedule

LEVELS = (-2.0 * math.log(80.0), -2.0 * math.log(0.002))
"""The log-SNRs between which EDM samples."""


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
    return _plan("euler", schedule, steps, churn, churn_range, noise_scale, grid)


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
    return _plan("heun", schedule, steps, churn, churn_range, noise_scale, grid)


def _plan(
    name: str,
    schedule: Schedule,
    steps: int | None,
    churn: float,
    churn_range: tuple[float, float],
    noise_scale: float,
    grid: Any,
) -> Plan:
    function = f"samplers.{name}"
    _check.number(function, "churn", churn, 0, hint="0 is deterministic")
    _check.number(function, "noise_scale", noise_scale, 0, open_low=True, hint="EDM uses 1.003")
    _check.interval(function, "churn_range", churn_range, 0, equal=True, finite=False)
    spaced = _karras if name == "heun" and getattr(schedule, "scaling", "") != "flow" else grids.uniform
    pairs = steps_of(function, schedule, steps, grid, both_ways=churn == 0.0, spaced=spaced)
    if name == "heun" and schedule.scaling != "flow" and len(pairs) > 1 and np.any(np.isneginf(pairs.t.log_snr[0])):
        refuse_pure_noise(name, pairs)
    churned, noise = _churn(pairs, schedule.scaling, churn, churn_range, noise_scale)
    with np.errstate(divide="ignore", invalid="ignore"):
        half = 0.5 * (pairs.s.log_snr - churned.log_snr)
        from_z = pairs.s.sigma / churned.sigma
        if name == "heun":
            at, to, update = _heun(pairs, churned, half, from_z, schedule.scaling)
        else:
            at, to = churned.log_snr, pairs.s.log_snr.copy()
            update = empty(len(pairs), pairs.lead)
            update[..., 0, 0] = from_z
            update[..., 0, Form().x] = -pairs.s.alpha * np.expm1(-half)
    _fold(update, to, pairs, churned, noise)
    settings = {"churn": churn, "churn_range": churn_range, "noise_scale": noise_scale} if churn else {}
    return finish(name, schedule, at, to, update, **settings)


def _karras(schedule: Schedule, steps: int) -> Float64:
    """Return EDM's grid over what a schedule has of EDM's levels, or over all of it where it has none of them."""
    ends = [float(schedule.log_snr(1.0)), float(schedule.log_snr(0.0))]
    inside = [max(ends[0], LEVELS[0]), min(ends[1], LEVELS[1])]
    start, end = schedule.time(np.array(inside if inside[0] < inside[1] else ends))
    return grids.karras(schedule, steps, start=start, end=end, clean=True)


def _churn(
    pairs: Steps, scaling: str, churn: float, churn_range: tuple[float, float], noise_scale: float
) -> tuple[Level, Float64]:
    """Return the levels t' at which the steps begin, and the amplitude of the noise that leads there from t."""
    t = pairs.t
    with np.errstate(over="ignore"):
        ratio = np.exp(-0.5 * t.log_snr)
    growth = min(churn / len(pairs), math.sqrt(2.0) - 1.0)
    grown = np.where((ratio >= churn_range[0]) & (ratio <= churn_range[1]), growth, 0.0)
    churned = levels.level(t.log_snr - 2.0 * np.log1p(grown), scaling)
    with np.errstate(invalid="ignore"):  # of a run that starts at lambda = -inf, whose first churn is not used
        noise = churned.alpha * ratio * np.sqrt(grown * (2.0 + grown)) * noise_scale
    return churned, noise


def _heun(
    pairs: Steps, churned: Level, half: Float64, from_z: Float64, scaling: str
) -> tuple[Float64, Float64, Float64]:
    """Return the table of pairs of stages: Euler, which remembers what the correction needs of its start, then that."""
    clean = np.asarray(pairs.clean).reshape(len(pairs), -1)
    single = np.asarray(clean.all(axis=1))
    if np.any(clean.any(axis=1) != single):
        raise ValueError("samplers.heun: `grid` must end on clean data for all samples or for none")
    count = 2 * len(pairs) - int(single[-1])
    form = Form(memory=int(count > 1))
    update = empty(count, pairs.lead, form.memory)
    first, second = update[0::2], update[1::2]
    first[..., 0, 0] = from_z
    first[..., 0, form.x] = -pairs.s.alpha * np.expm1(-half)
    # z / norm moves straight, in r or in sigma; the step relative to that at its start and at its end
    if scaling == "flow":
        norm = norm_t = np.ones_like(half)
        of_start = pairs.s.alpha * np.expm1(-half)
        of_end = of_start * churned.sigma / pairs.s.sigma
    else:
        norm, norm_t = pairs.s.alpha, churned.alpha
        of_start, of_end = np.expm1(-half), -np.expm1(half)
    some = slice(0, len(second))
    if len(second):
        first[some, ..., 1, 0] = ((1.0 + 0.5 * of_start) * norm / norm_t)[some]
        first[some, ..., 1, form.x] = (-0.5 * norm * of_start)[some]
        second[..., 0, 1] = 1.0
        second[..., 0, 0] = (0.5 * of_end)[some]
        second[..., 0, form.x] = (-0.5 * norm * of_end)[some]
    at, to = np.empty(update.shape[:-2]), np.empty(update.shape[:-2])
    at[0::2], at[1::2] = churned.log_snr, pairs.s.log_snr[some]
    to[0::2], to[1::2] = pairs.s.log_snr, pairs.s.log_snr[some]
    return at, to, update


def _fold(update: Float64, to: Float64, pairs: Steps, churned: Level, noise: Float64) -> None:
    """Let the stage that arrives at a point of the grid go on to the churned level of the step that begins there."""
    if len(pairs) == 1:
        return
    per_step = 2 if len(update) > len(pairs) else 1
    last = slice(per_step - 1, per_step * (len(pairs) - 1), per_step)  # the stages that arrive at an inner point
    scale = churned.alpha[1:] / pairs.t.alpha[1:]
    update[last, ..., 0, :] *= scale[..., None]
    update[last, ..., 0, Form(update.shape[-2] - 1).noise] = noise[1:]
    to[last] = churned.log_snr[1:]
