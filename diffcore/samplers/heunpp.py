r"""Heun++: Heun's method that looks one step further ahead."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffcore.levels import Level
from diffcore.plan import Plan
from diffcore.samplers._build import steps_of
from diffcore.samplers._written import (
    Denoise,
    Draw,
    Point,
    Vector,
    advance,
    flat,
    joined,
    point,
    slope,
    some,
    split_clean,
    written,
)
from diffcore.schedules import Schedule


def heunpp(schedule: Schedule, steps: int | None = None, *, grid: Any = None) -> Plan:
    r"""Return the plan of Heun++ 2: slopes at a step's start, its end and the end of the next, weighted by their noise.

        z_s = z_t + (rho_s - rho_t) [(1 - w_s - w_r) d_t + w_s d_s + w_r d_r],    w = rho / (3 rho_first)

    where d_s and d_r are the slopes at Euler's results at s and at the next level r. The last step but one has w_r = 0 and
    w_s = rho_s / (2 rho_first); the last is Euler's. The weights fade with the noise, so that late steps are Euler's, too:
    the order is 1.

    Args:
        schedule: gives the levels and the scaling.
        steps: how many steps N, at least 1, uniform in time from 1 to clean data, which take 3 N - 3 calls, or one if N is 1; or
            give `grid`.
        grid: strictly monotone log-SNRs (N + 1, *lead) instead of `steps`.

    Raises:
        ValueError: pure noise, but for "flow"; a bad grid, or neither or both of steps and grid.

    Source: Wei 2023 (sample_heunpp2 of ComfyUI, after github.com/Carzit/sd-webui-samplers-scheduler).

    >>> import diffcore as dc
    >>> len(dc.samplers.heunpp(dc.schedules.Karras(), 10))
    27
    """
    pairs = steps_of("samplers.heunpp", schedule, steps, grid, both_ways=True)
    inner, last = split_clean("heunpp", pairs)
    if not len(last.at):
        inner, last = (
            some(inner, slice(len(pairs) - 1)),
            written("heunpp", schedule, some(inner, slice(-1, None)), _euler),
        )
    whole, before = some(inner, slice(0, max(len(inner) - 1, 0))), some(inner, slice(max(len(inner) - 1, 0), None))
    beyond = flat(some(pairs, slice(1, len(whole) + 1)).s, schedule.scaling)
    first = point(Level(*(part[:1] for part in pairs.t)), schedule.scaling).rho

    def ends(z: Vector, t: Point, s: Point, denoise: Denoise) -> tuple[Vector, Vector, Vector]:
        d_t = slope(z, denoise(z, t), t)
        end = advance(z, d_t, t, s)
        return d_t, end, slope(end, denoise(end, s), s)

    def heun(z: Vector, t: Point, s: Point, denoise: Denoise, _: Draw) -> Vector:
        d_t, _end, d_s = ends(z, t, s, denoise)
        w = s.rho / (2.0 * first.reshape(-1))
        return advance(z, (1.0 - w) * d_t + w * d_s, t, s)

    def step(z: Vector, t: Point, s: Point, denoise: Denoise, _: Draw) -> Vector:
        d_t, end, d_s = ends(z, t, s, denoise)
        after = advance(end, d_s, s, beyond)
        d_r = slope(after, denoise(after, beyond), beyond)
        total = 3.0 * np.broadcast_to(first, (len(whole), *pairs.lead)).reshape(-1)
        w_s, w_r = s.rho / total, beyond.rho / total
        return advance(z, (1.0 - w_s - w_r) * d_t + w_s * d_s + w_r * d_r, t, s)

    parts = [written("heunpp", schedule, whole, step), written("heunpp", schedule, before, heun), last]
    return joined("heunpp", schedule, parts)


def _euler(z: Vector, t: Point, s: Point, denoise: Denoise, _: Draw) -> Vector:
    return advance(z, slope(z, denoise(z, t), t), t, s)
