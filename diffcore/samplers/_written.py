"""Samplers written as their papers have them: one step as a function, or weights of past estimates. The table follows.

A step computes with `Vector`s, combinations of its inputs: run once on unit vectors, for all steps of the grid at once, it
shows its coefficients, and `_least.realise` gives it the least memory between its calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, NoReturn

import numpy as np

from diffcore import _check, levels
from diffcore.levels import Level
from diffcore.plan import Float64, Form, Plan
from diffcore.plan.parts import with_memory
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
    """A level in the variables that solvers are written in, (P,) each: `half` = log(alpha / sigma), `ratio` = sigma / alpha.

    Solvers of the probability-flow ODE follow z / norm over rho: z / alpha over sigma / alpha, and under "flow" z over sigma, as
    those who train it do. In both the slope is (z / norm - x-hat) / rho: eps-hat, or the velocity.
    """

    alpha: Float64
    sigma: Float64
    half: Float64
    ratio: Float64
    scaling: str

    @property
    def norm(self) -> Float64:
        """The divisor of z: alpha, or 1 under "flow"."""
        return np.ones_like(self.alpha) if self.scaling == "flow" else self.alpha

    @property
    def rho(self) -> Float64:
        """The variable of integration: sigma / alpha, or sigma under "flow"."""
        return self.sigma if self.scaling == "flow" else self.ratio

    def at_half(self, half: Float64) -> Point:
        """Return the level of another half log-SNR under the same scaling."""
        return point(levels.level(2.0 * np.asarray(half), self.scaling), self.scaling)

    def at_ratio(self, ratio: Float64) -> Point:
        """Return the level of another sigma / alpha under the same scaling."""
        with np.errstate(divide="ignore"):
            return self.at_half(-np.log(ratio))

    def at_rho(self, rho: Float64) -> Point:
        """Return the level of another rho under the same scaling."""
        if self.scaling != "flow":
            return self.at_ratio(rho)
        with np.errstate(divide="ignore"):
            return self.at_half(np.log1p(-rho) - np.log(rho))


def point(level: Level, scaling: str) -> Point:
    """Return a level as a `Point`."""
    with np.errstate(over="ignore"):
        return Point(level.alpha, level.sigma, 0.5 * level.log_snr, np.exp(-0.5 * level.log_snr), scaling)


def slope(z: Vector, x: Vector, at: Point) -> Vector:
    """Return the slope of z / norm over rho."""
    return (z / at.norm - x) / at.rho


def advance(z: Vector, along: Vector, t: Point, s: Point) -> Vector:
    """Return z at s, from t along a slope."""
    return (z / t.norm + (s.rho - t.rho) * along) * s.norm


Denoise = Callable[[Vector, Point], Vector]
"""(z, level) -> x-hat."""

Draw = Callable[[], Vector]
"""() -> fresh noise."""

Step = Callable[[Vector, Point, Point, Denoise, Draw], Vector]
"""One step (z, t, s, denoise, draw) -> z at s; the first call of the denoiser is at z and t, and a call has one draw at most."""


class Part(NamedTuple):
    """Some stages of a plan: where they begin and end, and their table."""

    at: Float64
    to: Float64
    update: Float64


def flat(level: Level, scaling: str) -> Point:
    """Return levels (steps, *lead) as a `Point` of (P,)."""
    return point(Level(*(np.reshape(part, -1) for part in level)), scaling)


def some(pairs: Steps, part: slice) -> Steps:
    """Return some of the steps of a grid."""
    t, s = (Level(*(values[part] for values in level)) for level in (pairs.t, pairs.s))
    return Steps(t, s, pairs.half[part], pairs.clean[part])


def joined(name: str, schedule: Schedule, parts: Sequence[Part], **settings: object) -> Plan:
    """Return the plan of parts that follow one another, each of which begins with nothing remembered."""
    parts = [part for part in parts if len(part.at)]
    memory = max(part.update.shape[-2] for part in parts) - 1
    update = np.concatenate([with_memory(part.update, memory) for part in parts])
    at, to = (np.concatenate([getattr(part, name) for part in parts]) for name in ("at", "to"))
    return finish(name, schedule, at, to, update, **settings)


def split_clean(name: str, pairs: Steps) -> tuple[Steps, Part]:
    """Return the steps that end amid noise, and the stage of the step to clean data, where there is one: z = x-hat.

    Raises:
        ValueError: samples of which only some end on clean data.
    """
    clean = np.asarray(pairs.clean).reshape(len(pairs), -1)
    if np.any(clean.any(axis=1) != clean.all(axis=1)):
        raise ValueError(f"samplers.{name}: `grid` must end on clean data for all samples or for none")
    steps = len(pairs) - int(clean[-1, 0])
    last = empty(len(pairs) - steps, pairs.lead)
    last[..., 0, Form().x] = 1.0
    return some(pairs, slice(steps)), Part(pairs.t.log_snr[steps:], pairs.s.log_snr[steps:], last)


def single_step(name: str, schedule: Schedule, pairs: Steps, step: Step, **settings: object) -> Plan:
    """Return the plan of a method that begins every step anew; a step that ends on clean data is x-hat, one call."""
    pairs, last = split_clean(name, pairs)
    return joined(name, schedule, [written(name, schedule, pairs, step), last], **settings)


def written(name: str, schedule: Schedule, pairs: Steps, step: Step) -> Part:
    """Return the stages of steps that are all written in the same way and end amid noise.

    Raises:
        ValueError: a method that has no value from pure noise, where a run starts there.
    """
    steps, lead, scaling = len(pairs), pairs.lead, schedule.scaling
    if not steps:
        return Part(pairs.t.log_snr, pairs.s.log_snr, empty(0, lead))
    t, s = flat(pairs.t, scaling), flat(pairs.s, scaling)
    columns = 1 + 2 * 16  # more than any step has calls; cut off below
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

    with np.errstate(all="ignore"):  # undefined coefficients are refused below
        end = step(unit(0), t, s, denoise, draw)
    count = len(calls)
    response = np.stack([z.rows for z, _ in calls] + [end.rows])[..., : 1 + 2 * count]
    half = np.stack([level.half for _, level in calls]).reshape(count, steps, *lead)
    if not np.all(np.isfinite(response)) or np.any(np.isnan(half)):
        refuse_pure_noise(name, pairs)
    found = realise(response, 2)  # (calls, steps * leads, 1 + M, M + 3)
    size = found.shape[-2:]
    update = np.moveaxis(found.reshape(count, steps, *lead, *size), 0, 1).reshape(steps * count, *lead, *size)
    at = np.moveaxis(2.0 * half, 0, 1).reshape(steps * count, *lead)
    at[::count] = pairs.t.log_snr
    to = np.concatenate([at[1:], pairs.s.log_snr[-1:]])
    to[count - 1 :: count] = pairs.s.log_snr
    return Part(at, to, update)


def refuse_pure_noise(name: str, pairs: Steps) -> NoReturn:
    """Raise ValueError for a step whose coefficients have no value, with the way out."""
    hint = "see schedules.truncate, or use unipc or dpm_solver_pp, which can start from pure noise"
    found = float(pairs.t.log_snr.min())
    raise _check.error(ValueError, f"samplers.{name}", "grid", "start at a finite log-SNR", found, hint)


def multistep(
    name: str,
    schedule: Schedule,
    pairs: Steps,
    of_z: Float64,
    weights: Float64,
    noise: Float64 | float = 0.0,
    *,
    keeps: Literal["x", "slope"] = "x",
    settings: Mapping[str, object],
) -> Plan:
    r"""Return the plan of a linear multistep method, which remembers the last estimates or slopes as a chain.

        z_s = of_z z_t + sum_j weights_j f_j + noise eps,    f_0 that of this stage, f_1 of the last, ...

    Args:
        of_z: (N, *lead).
        weights: (N, *lead, order), 0 where there is no such f yet; a step to clean data with one weight is x-hat.
        noise: (N, *lead), 0 for steps without.
        keeps: f is "x", x-hat, or "slope", that of z / norm over rho (see `Point`): eps-hat, or the velocity under "flow".
        settings: of the sampler.

    Raises:
        ValueError: a method that has no value from pure noise, where a run starts there.
    """
    form = Form(memory=min(weights.shape[-1], len(pairs)) - 1)
    t = point(pairs.t, schedule.scaling)
    head = np.zeros((len(pairs), *pairs.lead, form.columns))
    update = empty(len(pairs), pairs.lead, form.memory)
    with np.errstate(all="ignore"):  # undefined coefficients are refused below
        head[..., form.x] = 1.0 if keeps == "x" else -1.0 / t.rho
        head[..., 0] = 0.0 if keeps == "x" else 1.0 / (t.norm * t.rho)
        update[..., 0, :] = weights[..., :1] * head
        update[..., 0, 0] += of_z
    update[..., 0, 1 : 1 + form.memory] = weights[..., 1 : 1 + form.memory]
    update[..., 0, form.noise] = noise
    alone = pairs.clean & ~np.any(weights[..., 1:] != 0.0, axis=-1)
    update[alone, 0] = np.arange(form.columns) == form.x
    for row in range(1, form.memory + 1):
        update[..., row, :] = head if row == 1 else np.arange(form.columns) == row - 1
    if not np.all(np.isfinite(update)):
        refuse_pure_noise(name, pairs)
    return finish(name, schedule, pairs.t.log_snr, pairs.s.log_snr, update, **settings)
