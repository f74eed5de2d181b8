"""Samplers written as their papers have them: one step as a function, or weights of past estimates. The table follows.

A step computes with `Vector`s, combinations of what it is given: run once on unit vectors, for all steps of the grid at once, it
shows its coefficients, and `_least.realise` gives it the least memory between its calls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from diffcore import levels
from diffcore.levels import Level
from diffcore.plan import Float64, Form, Plan
from diffcore.samplers._build import Steps, empty, finish
from diffcore.samplers._least import realise
from diffcore.schedules import Schedule


@dataclass(frozen=True, eq=False)
class Vector:
    """A combination of z, and of the noise and the estimate of each call so far: (P, columns) for P steps at once."""

    __array_ufunc__ = None  # arrays of numbers leave products to `__rmul__`
    rows: Float64

    def __add__(self, other: Vector) -> Vector:
        return Vector(self.rows + other.rows)

    def __sub__(self, other: Vector) -> Vector:
        return Vector(self.rows - other.rows)

    def __neg__(self) -> Vector:
        return Vector(-self.rows)

    def __mul__(self, number: Any) -> Vector:
        return Vector(self.rows * np.asarray(number)[..., None])

    __rmul__ = __mul__

    def __truediv__(self, number: Any) -> Vector:
        return Vector(self.rows / np.asarray(number)[..., None])


class Point(NamedTuple):
    """A level in the variables that solvers are written in, (P,) each: `half` = log(alpha / sigma), `ratio` = sigma / alpha."""

    alpha: Float64
    sigma: Float64
    half: Float64
    ratio: Float64
    scaling: str

    def at_half(self, half: Float64) -> Point:
        """Return the level of another half log-SNR under the same scaling."""
        return point(levels.level(2.0 * np.asarray(half), self.scaling), self.scaling)

    def at_ratio(self, ratio: Float64) -> Point:
        """Return the level of another sigma / alpha under the same scaling."""
        return self.at_half(-np.log(ratio))


def point(level: Level, scaling: str) -> Point:
    """Return a level as a `Point`."""
    with np.errstate(over="ignore"):
        return Point(level.alpha, level.sigma, 0.5 * level.log_snr, np.exp(-0.5 * level.log_snr), scaling)


Denoise = Callable[[Vector, Point], Vector]
"""(z, level) -> x-hat."""

Step = Callable[[Vector, Point, Point, Denoise, Callable[[], Vector]], Vector]
"""One step (z, t, s, denoise, draw) -> z at s; the first call of the denoiser is at z and t, and a call has one draw at most."""


def single_step(name: str, schedule: Schedule, pairs: Steps, step: Step, **settings: object) -> Plan:
    """Return the plan of a method that begins every step anew; a step that ends on clean data is x-hat, one call."""
    clean = np.asarray(pairs.clean).reshape(len(pairs), -1)
    if np.any(clean.any(axis=1) != clean.all(axis=1)):
        raise ValueError(
            f"samplers.{name}: `grid` ends on clean data for some samples only; end all of them there, or none"
        )
    steps = len(pairs) - int(clean[-1, 0])
    lead, scaling = pairs.lead, schedule.scaling
    last_at, last_to = pairs.t.log_snr[steps:], pairs.s.log_snr[steps:]
    last = empty(len(pairs) - steps, lead)
    last[..., 0, Form().x] = 1.0
    if not steps:
        return finish(name, schedule, last_at, last_to, last, **settings)
    t, s = (point(Level(*(part[:steps].reshape(-1) for part in level)), scaling) for level in (pairs.t, pairs.s))
    columns = 1 + 2 * 64  # more than any step has calls; cut to what it has below
    calls: list[tuple[Vector, Point]] = []
    drawn: set[int] = set()

    def unit(at: int) -> Vector:
        return Vector(np.broadcast_to(np.eye(columns)[at], (t.alpha.size, columns)))

    def denoise(z: Vector, level: Point) -> Vector:
        calls.append((z, level))
        return unit(2 * len(calls))

    def draw() -> Vector:
        assert len(calls) not in drawn, f"{name} draws twice after call {len(calls)}"
        drawn.add(len(calls))
        return unit(2 * len(calls) - 1)

    end = step(unit(0), t, s, denoise, draw)
    count = len(calls)
    response = np.stack([z.rows for z, _ in calls] + [end.rows])[..., : 1 + 2 * count]
    found = realise(response, 2)  # (calls, steps * leads, 1 + M, M + 3)
    size = found.shape[-2:]
    update = np.moveaxis(found.reshape(count, steps, *lead, *size), 0, 1).reshape(steps * count, *lead, *size)
    half = np.stack([level.half for _, level in calls]).reshape(count, steps, *lead)
    at = np.moveaxis(2.0 * half, 0, 1).reshape(steps * count, *lead)
    at[::count] = pairs.t.log_snr[:steps]
    to = np.concatenate([at[1:], pairs.s.log_snr[steps - 1 : steps]])
    to[count - 1 :: count] = pairs.s.log_snr[:steps]
    wide = empty(len(last), lead, size[0] - 1)
    wide[..., 0, -1] = 1.0
    return finish(
        name,
        schedule,
        np.concatenate([at, last_at]),
        np.concatenate([to, last_to]),
        np.concatenate([update, wide]),
        **settings,
    )
