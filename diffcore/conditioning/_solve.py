r"""Solvers that the methods share: the covariance of x given z_t as a product, and (A R A^T + s^2 I) u = y - A x-hat.

    moment matching   R = C = (sigma^2 / alpha) d x-hat / dz        PiGDM, DiffPIR   R = r^2 I

Only products are used, and the terms of several conditions are solved for together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from diffcore import _array, _check
from diffcore._array import Array
from diffcore._dispatch import backend_of
from diffcore._wrapping import along
from diffcore.conditioning._guided import Linear, Pull, Seen, Term
from diffcore.levels import Level

Parts = tuple[Array, ...]
"""An array for each term."""

Variance = float | Callable[[Array], Array]
"""The variance of the elements of the data, or a function of log_snr that returns that of x given z_t."""


def variance_of(function: str, value: Any) -> Variance:
    """Return what is assumed of the data's variance, a number above 0 or a function, or raise."""
    if callable(value):
        return value  # type: ignore[no-any-return]
    hint = "or a function of log_snr that returns the variance of x given z_t"
    return _check.number(function, "data_variance", value, 0, open_low=True, hint=hint)


def posterior_variance(variance: Variance, level: Level) -> Any:
    """Return r^2 of x given z_t for independent elements of variance c, c sigma^2 / (alpha^2 c + sigma^2)."""
    if callable(variance):
        return variance(level.log_snr)
    return variance * level.sigma**2 / (level.alpha**2 * variance + level.sigma**2)


def covariance(function: str, at: Linear, *, exact: bool = True) -> Pull:
    """Return u -> C u, or a multiple of it, which is as good where nothing but A C A^T is inverted."""
    xp = _array.library(at.x)
    if not exact and getattr(at.level.alpha, "ndim", 0) < 2:
        return at.pull
    floor = float(xp.finfo(at.x.dtype).smallest_normal) ** 0.5
    alpha, sigma = (along(function, part, at.x) for part in (at.level.alpha, at.level.sigma))
    alpha = max(alpha, floor) if isinstance(alpha, float) else xp.where(alpha > floor, alpha, floor)
    scale = sigma**2 / alpha
    if not exact:
        largest = xp.max(scale, axis=tuple(range(1, scale.ndim)), keepdims=True)
        scale = scale / xp.where(largest > 0, largest, xp.ones_like(largest))
    return lambda u: scale * at.pull(u)


def gathered(seen: Sequence[Seen], parts: Parts) -> Array:
    """Return the sum over the terms of A^T u."""
    total = seen[0].adjoint(parts[0])
    for one, part in zip(seen[1:], parts[1:], strict=True):
        total = total + one.adjoint(part)
    return total


def solve(x: Array, seen: Sequence[Seen], terms: Sequence[Term], spread: Pull, iterations: int) -> Parts:
    """Return u with (A R A^T + s^2 I) u = y - A x-hat for all terms at once; `spread` is v -> R v."""

    def system(parts: Parts) -> Parts:
        inside = spread(gathered(seen, parts))
        return tuple(
            one.product(inside) + term.strength**2 * part for one, term, part in zip(seen, terms, parts, strict=True)
        )

    return conjugate_residuals(backend_of(x), system, tuple(one.residual for one in seen), iterations)


def conjugate_residuals(backend: Any, system: Callable[[Parts], Parts], right: Parts, iterations: int) -> Parts:
    """Return an approximate solution of system(u) = right, sample by sample, after a fixed number of iterations.

    The residual never grows, for any system. A sample stops once its residual is down to rounding, and does not move in
    directions that the system maps to rounding (for a singular system this gives the least solution).
    """
    xp = _array.library(right[0])
    rounding = (10.0 * float(xp.finfo(right[0].dtype).eps)) ** 2

    def dot(a: Parts, b: Parts) -> Array:
        sums = [xp.sum(_array.flat(p * q), axis=1) for p, q in zip(a, b, strict=True)]
        return sum(sums[1:], sums[0])

    def step(a: Parts, factor: Array, b: Parts) -> Parts:
        return tuple(p + xp.reshape(factor, (-1,) + (1,) * (q.ndim - 1)) * q for p, q in zip(a, b, strict=True))

    tops = [xp.max(xp.reshape(xp.abs(part), (part.shape[0], -1)), axis=1) for part in right]
    top = tops[0]
    for other in tops[1:]:
        top = xp.maximum(top, other)
    large = top > float(xp.finfo(top.dtype).max) ** 0.25  # a unit in which no square overflows
    unit = xp.where(large, top, xp.ones_like(top))
    right = step(tuple(xp.zeros_like(part) for part in right), 1.0 / unit, right)
    first = dot(right, right)
    zero, one = xp.zeros_like(first), xp.ones_like(first)

    def move(solution: Parts, residual: Parts, direction: Parts, image: Parts, largest: Array) -> tuple[Any, ...]:
        """Step along a direction with a known image; also return the factor that makes the next one conjugate."""
        squared, against = dot(image, image), dot(direction, direction)
        gain = squared / xp.where(against > 0, against, one)
        largest = xp.where(gain > largest, gain, largest)  # of the squared norm of the system, from below
        going = (gain > rounding * largest) & (dot(residual, residual) > rounding * first)
        inverse = xp.where(going, one / xp.where(going, squared, one), zero)
        length = dot(residual, image) * inverse
        return step(solution, length, direction), step(residual, -length, image), largest, inverse

    def iterate(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        _, _, direction, image, _ = carry
        solution, residual, largest, inverse = move(*carry)
        turned = system(residual)
        turn = -dot(turned, image) * inverse
        return solution, residual, step(residual, turn, direction), step(turned, turn, image), largest

    nothing = tuple(xp.zeros_like(part) for part in right)
    start = (nothing, right, right, system(right), zero)
    solution: Parts = move(*backend.repeat(iterations - 1, iterate, start))[0]  # the last needs no next direction
    return step(nothing, unit, solution)
