r"""Grids by rules for the timesteps of a table, by their names in diffusers and ComfyUI; see `leading` for what they share."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from diffcore import _check
from diffcore.grids._base import Float64
from diffcore.grids._rules import by_rule
from diffcore.schedules import Schedule
from diffcore.schedules._base import scaling_of


def leading(
    schedule: Schedule,
    steps: int,
    *,
    offset: int = 0,
    drop_last: bool = False,
    timesteps: int | None = None,
    start: npt.ArrayLike = 1.0,
    end: npt.ArrayLike = 0.0,
    clean: bool | None = None,
) -> Float64:
    r"""Return the grid of "leading" timesteps, multiples of floor(T / N), which begins below the noisiest level.

        i_k = (N - 1 - k) floor(T / N) + offset

    A rule picks timesteps of 0, ..., T - 1, and timestep i is the time i / (T - 1), as `schedules.Table` has it, or (i + 1) / T
    where lambda(0) is inf, as flow models have it. Then comes the clean point, or without it the level at `end`, for which a rule
    that ends there already picks N + 1. From a `start` below 1 or to an `end` above 0 the rule is applied to the part of the table
    between them: T is the number of timesteps there, and t_k = end + (start - end) i_k / (T - 1).

    Args:
        schedule: turns the times into log-SNRs.
        steps: N, an int in [1, T].
        offset: added to all, `steps_offset` of diffusers: 1 for Stable Diffusion.
        drop_last: the rule for N + 1 without the last one, as the DPM-Solver, DEIS, UniPC and SA of diffusers have it.
        timesteps: T of the whole range of times; None is the length of the schedule's table, or 1000.
        start, end, clean: as for `uniform`.

    Returns:
        A float64 array (N + 1, *lead).

    Raises:
        ValueError: as `uniform`; more steps than timesteps; an offset that leads beyond the last timestep.
        TypeError: as `uniform`.

    Source: diffusers, `timestep_spacing="leading"`; Lin et al. 2023 (arXiv 2305.08891), table 2, on why to prefer `trailing`.

    >>> from diffcore.schedules import LinearLogSNR
    >>> schedule = LinearLogSNR()
    >>> (999 * schedule.time(leading(schedule, 4, offset=1))).round(6)
    array([751., 501., 251.,   1.,   0.])
    """
    shift = _check.integer("grids.leading", "offset", offset)
    whole = _check.flag("grids.leading", "drop_last", drop_last)

    def rule(count: int, entries: int) -> npt.ArrayLike:
        kept = np.arange(count + whole)[::-1][:count] * (entries // (count + whole)) + shift
        if kept[0] > entries - 1:
            raise _check.error(
                ValueError, "grids.leading", "offset", f"be at most {entries - 1 - int(kept[0]) + shift}", shift
            )
        return kept

    return by_rule("grids.leading", schedule, steps, timesteps, (start, end, clean), rule)


def trailing(
    schedule: Schedule,
    steps: int,
    *,
    timesteps: int | None = None,
    start: npt.ArrayLike = 1.0,
    end: npt.ArrayLike = 0.0,
    clean: bool | None = None,
) -> Float64:
    r"""Return the grid of "trailing" timesteps, which begins at the noisiest level.

        i_k = round(T - k T / N) - 1

    Arguments and errors as for `leading`. Source: diffusers, `timestep_spacing="trailing"`; Lin et al. 2023 (arXiv 2305.08891),
    table 2.

    >>> from diffcore.schedules import LinearLogSNR
    >>> (999 * LinearLogSNR().time(trailing(LinearLogSNR(), 4))).round(6)
    array([999., 749., 499., 249.,   0.])
    """

    def rule(count: int, entries: int) -> npt.ArrayLike:
        return np.round(entries - np.arange(count) * (entries / count)) - 1

    return by_rule("grids.trailing", schedule, steps, timesteps, (start, end, clean), rule)


def linspace(
    schedule: Schedule,
    steps: int,
    *,
    drop_last: bool = False,
    rounded: bool = True,
    timesteps: int | None = None,
    start: npt.ArrayLike = 1.0,
    end: npt.ArrayLike = 0.0,
    clean: bool | None = None,
) -> Float64:
    r"""Return the grid of evenly spaced timesteps, both ends included.

        i_k = round((T - 1) (1 - k / (N - 1)))

    A single step begins at the noisiest level (in diffusers, at timestep 0, from which nothing can be drawn). With `drop_last` and
    without rounding it is ComfyUI's "sgm_uniform", which is `uniform` where lambda(0) is finite.

    Args:
        rounded: False leaves the timesteps as they are, as schedulers of diffusers do that work on sigmas. Between the entries of a
            table these interpolate sigma, and this library log sigma.
        schedule, steps, drop_last, timesteps, start, end, clean: as for `leading`.

    Returns, raises: as `leading`.

    Source: diffusers, `timestep_spacing="linspace"`.

    >>> from diffcore.schedules import LinearLogSNR
    >>> (999 * LinearLogSNR().time(linspace(LinearLogSNR(), 4, drop_last=True))).round(6)
    array([999., 749., 500., 250.,   0.])
    """
    whole = _check.flag("grids.linspace", "drop_last", drop_last)
    in_whole = _check.flag("grids.linspace", "rounded", rounded)

    def rule(count: int, entries: int) -> npt.ArrayLike:
        if count + whole == 1:
            return np.array([entries - 1])
        found = np.linspace(0, entries - 1, count + whole)[::-1][:count]
        return np.round(found) if in_whole else found

    return by_rule("grids.linspace", schedule, steps, timesteps, (start, end, clean), rule)


def normal(
    schedule: Schedule,
    steps: int,
    *,
    start: npt.ArrayLike = 1.0,
    end: npt.ArrayLike = 0.0,
    clean: bool | None = None,
) -> Float64:
    r"""Return ComfyUI's "normal" grid: N times even from start to end, both included, then clean data.

    Where lambda(0) is inf the N-th is the time 1 / 1000; where sigma at the end is finite but below 1e-5, the end counts as the
    clean point: `uniform` with as many steps.

    Arguments and errors as for `uniform`. Source: ComfyUI, `normal_scheduler`.

    >>> from diffcore.schedules import LinearLogSNR
    >>> normal(LinearLogSNR(), 3)
    array([-10.,   0.,  10.,  inf])
    """

    def rule(count: int, entries: int) -> npt.ArrayLike:
        return np.linspace(entries - 1.0, 0.0, count) if count > 1 else np.array([entries - 1.0])

    def within(count: int, entries: int) -> npt.ArrayLike:
        return (entries - 1.0) * (1.0 - np.arange(count) / count)

    scaling_of("grids.normal", "schedule", schedule)
    last = np.asarray(schedule.log_snr(np.asarray(end, dtype=np.float64)))
    nothing_left = np.all(np.isfinite(last) & (last > -2.0 * math.log(1e-5)))
    return by_rule("grids.normal", schedule, steps, None, (start, end, clean), within if nothing_left else rule)


def simple(
    schedule: Schedule,
    steps: int,
    *,
    timesteps: int | None = None,
    start: npt.ArrayLike = 1.0,
    end: npt.ArrayLike = 0.0,
    clean: bool | None = None,
) -> Float64:
    r"""Return ComfyUI's "simple" grid, which drops fractions of the timesteps from the noisiest on.

        i_k = T - 1 - floor(k T / N)

    Arguments and errors as for `leading`. Source: ComfyUI, `simple_scheduler`.

    >>> from diffcore.schedules import LinearLogSNR
    >>> (999 * LinearLogSNR().time(simple(LinearLogSNR(), 3))).round(6)
    array([999., 666., 333.,   0.])
    """

    def rule(count: int, entries: int) -> npt.ArrayLike:
        return np.asarray(entries - 1 - np.floor(np.arange(count) * (entries / count)))

    return by_rule("grids.simple", schedule, steps, timesteps, (start, end, clean), rule)


def ddim_uniform(
    schedule: Schedule,
    steps: int,
    *,
    timesteps: int | None = None,
    start: npt.ArrayLike = 1.0,
    end: npt.ArrayLike = 0.0,
    clean: bool | None = None,
) -> Float64:
    r"""Return ComfyUI's "ddim_uniform" grid: the timesteps 1, 1 + s, 1 + 2 s, ... below T, s = floor(T / N).

    There may be more of them than N: 16 for N = 15 and T = 1000.

    Arguments and errors as for `leading`. Source: ComfyUI, `ddim_scheduler`.

    >>> from diffcore.schedules import LinearLogSNR
    >>> (999 * LinearLogSNR().time(ddim_uniform(LinearLogSNR(), 3))).round(6)
    array([667., 334.,   1.,   0.])
    """

    def rule(count: int, entries: int) -> npt.ArrayLike:
        return np.arange(1, entries, max(entries // count, 1))[::-1]

    return by_rule("grids.ddim_uniform", schedule, steps, timesteps, (start, end, clean), rule)
