r"""What Euler's and Heun's methods share as EDM has them: its settings and its churn.

In the noise-to-signal ratio r = sigma / alpha and with u = z / alpha, the ODE is du/dr = (u - x-hat) / r for every
scaling. Churn adds noise before a step, from level t to the noisier level t':

    r_t' = (1 + c) r_t,    z_t' = (alpha_t' / alpha_t) z_t + alpha_t' sqrt(r_t'^2 - r_t^2) s_noise eps

It needs no call of the denoiser, so a plan does it at the end of the stage before; a churned run starts at t'.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffcore import _check, grids, levels
from diffcore.levels import Level
from diffcore.plan import Float64, Form, Plan
from diffcore.samplers._build import Steps, empty, finish, steps_of
from diffcore.schedules import Schedule


@dataclass(frozen=True)
class Churn:
    """EDM's S_churn, (S_tmin, S_tmax) and S_noise, checked by `churned`."""

    churn: float
    churn_range: tuple[float, float]
    noise_scale: float


@dataclass(frozen=True)
class Churned:
    """The steps of a grid, the levels t' at which they begin, and the amplitude of the noise that leads there from t."""

    pairs: Steps
    start: Level
    noise: Float64
    scaling: str

    @property
    def half(self) -> Float64:
        """The step from t' to s in log(alpha / sigma)."""
        return np.asarray(0.5 * (self.pairs.s.log_snr - self.start.log_snr))


def churned(
    name: str,
    schedule: Schedule,
    steps: int | None,
    grid: Any,
    churn: Churn,
    spaced: Callable[[Schedule, int], Float64] = grids.uniform,
) -> Churned:
    """Return the steps of a sampler with churn.

    Raises:
        ValueError: a setting out of range; what `steps_of` refuses.
    """
    function = f"samplers.{name}"
    _check.number(function, "churn", churn.churn, 0, hint="0 is deterministic")
    _check.number(function, "noise_scale", churn.noise_scale, 0, open_low=True, hint="EDM uses 1.003")
    low, high = _check.interval(function, "churn_range", churn.churn_range, 0, equal=True, finite=False)
    pairs = steps_of(function, schedule, steps, grid, both_ways=churn.churn == 0.0, spaced=spaced)
    with np.errstate(over="ignore"):
        ratio = np.exp(-0.5 * pairs.t.log_snr)
    growth = min(churn.churn / len(pairs), math.sqrt(2.0) - 1.0)
    grown = np.where((ratio >= low) & (ratio <= high), growth, 0.0)
    start = levels.level(pairs.t.log_snr - 2.0 * np.log1p(grown), schedule.scaling)
    with np.errstate(invalid="ignore"):  # of a run that starts at lambda = -inf, whose first churn is not used
        noise = start.alpha * ratio * np.sqrt(grown * (2.0 + grown)) * churn.noise_scale
    return Churned(pairs, start, noise, schedule.scaling)


def eulers(run: Churned, memory: int, stages: int) -> Float64:
    """Return a table whose first stages of each step are Euler's, from t' to s."""
    update = empty(stages, run.pairs.lead, memory)
    first = update[:: 2 if stages > len(run.pairs) else 1]
    with np.errstate(invalid="ignore"):
        first[..., 0, 0] = run.pairs.s.sigma / run.start.sigma
        first[..., 0, Form(memory).x] = -run.pairs.s.alpha * np.expm1(-run.half)
    return update


def finished(
    name: str, schedule: Schedule, run: Churned, at: Float64, to: Float64, update: Float64, churn: Churn
) -> Plan:
    """Return the plan, in which the stage that arrives at a point of the grid goes on to the t' of the step that begins there."""
    count = len(run.pairs)
    if count > 1:
        per_step = 2 if len(update) > count else 1
        last = slice(per_step - 1, per_step * (count - 1), per_step)  # the stages that arrive at an inner point
        scale = run.start.alpha[1:] / run.pairs.t.alpha[1:]
        update[last, ..., 0, :] *= scale[..., None]
        update[last, ..., 0, Form(update.shape[-2] - 1).noise] = run.noise[1:]
        to[last] = run.start.log_snr[1:]
    return finish(name, schedule, at, to, update, **(vars(churn) if churn.churn else {}))
