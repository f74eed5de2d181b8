r"""The closed forms for K Gaussian components at once, on events laid flat: z (B, D), alpha and sigma (B or 1, D or 1).

Levels may differ between elements: with A = diag(alpha) and S = diag(sigma^2), z ~ N(A m, A C A + S) and

    E[x | z]     = m + C A (A C A + S)^{-1} (z - A m)
    grad log q   = -(A C A + S)^{-1} (z - A m)
    Cov[x | z]   = C - C A (A C A + S)^{-1} A C

A Diagonal form does all of it element by element, a Spectral one in its basis where a sample has one level, else by
a solve: of size D for a complete basis, of size R (Woodbury) for a low rank.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from diffcore import _array
from diffcore._array import Array
from diffcore.exact._parts import Diagonal, Parts, Spectral

CHUNK = 1 << 18
"""Numbers in a temporary, for each sample, above which components are done in turns. It depends on no batch size, so
that a sample does not depend on its batch."""

X, SCORE, DENSITY = "x", "score", "density"


class Solved(NamedTuple):
    """Of each component: (z - A m)^T M^{-1} (z - A m) and log det M, (K, B); and E[x | z] or the score, (K, B, D)."""

    quadratic: Array
    log_determinant: Array
    vector: Array


def smallest(xp: Any, dtype: Any) -> float:
    """Return the variance that stands for none: a clean, certain element has one of this size instead of 0."""
    return math.sqrt(float(xp.finfo(dtype).smallest_normal))


def above(xp: Any, variance: Array) -> Array:
    """Return a variance that can be divided by."""
    floor = smallest(xp, variance.dtype)
    return xp.where(variance > floor, variance, xp.full_like(variance, floor))


def solve(xp: Any, parts: Parts, z: Array, alpha: Array, sigma: Array, want: str) -> Solved:
    """Return the estimate of each component at z; `want` is X, SCORE or DENSITY (then `vector` is unused)."""
    if isinstance(parts, Diagonal):
        return _diagonal(xp, parts, z, alpha, sigma, want)
    if alpha.shape[1] == 1 and sigma.shape[1] == 1:
        return _spectral(xp, parts, z, alpha, sigma, want)
    if parts.rest is None:
        return _by_matrix(xp, parts, z, alpha, sigma, want)
    return _by_woodbury(xp, parts, z, alpha, sigma, want)


def _diagonal(xp: Any, parts: Diagonal, z: Array, alpha: Array, sigma: Array, want: str) -> Solved:
    mean, variance = parts.mean[:, None, :], parts.variance[:, None, :]
    residual = z - alpha * mean
    total = above(xp, alpha**2 * variance + sigma**2)
    solved = residual / total
    determinant = xp.sum(xp.log(total), axis=2) * (z.shape[1] // total.shape[2])
    vector = mean + alpha * variance * solved if want == X else -solved
    return Solved(xp.sum(residual * solved, axis=2), determinant, vector)


def _spectral(xp: Any, parts: Spectral, z: Array, alpha: Array, sigma: Array, want: str) -> Solved:
    mean, values, back = parts.mean[:, None, :], parts.values[:, None, :], xp.matrix_transpose(parts.basis)
    residual = z - alpha * mean
    inside = xp.matmul(residual, parts.basis)
    total = above(xp, alpha**2 * values + sigma**2)
    quadratic, determinant = xp.sum(inside**2 / total, axis=2), xp.sum(xp.log(total), axis=2)
    vector = xp.matmul((alpha * values if want == X else -1.0) / total * inside, back)
    if parts.rest is not None and parts.plain is not None:
        # the residual is projected, not its square subtracted: |r|^2 - |U^T r|^2 cancels
        outside = residual - xp.matmul(inside, back)
        rest = parts.rest[:, None, :]
        around = above(xp, alpha**2 * rest + sigma**2)
        plain = above(xp, alpha**2 * parts.plain[:, None, :] + sigma**2)
        if around.shape[2] == 1:
            quadratic = quadratic + xp.sum(outside**2, axis=2) / around[:, :, 0]
        else:
            quadratic = quadratic + xp.sum(outside**2 / around, axis=2)
        logarithms = z.shape[1] // around.shape[2] * xp.sum(xp.log(around), axis=2)
        determinant = determinant + logarithms - values.shape[2] * xp.log(plain)[:, :, 0]
        vector = vector + (alpha * rest if want == X else -1.0) / around * outside
    return Solved(quadratic, determinant, mean + vector if want == X else vector)


def _by_matrix(xp: Any, parts: Spectral, z: Array, alpha: Array, sigma: Array, want: str) -> Solved:
    covariance, system = _system(xp, parts, alpha, sigma)
    residual = z - alpha * parts.mean[:, None, :]
    solved = xp.linalg.solve(system, residual[..., None])[..., 0]
    determinant = xp.linalg.slogdet(system)[1]
    vector = -solved
    if want == X:
        vector = parts.mean[:, None, :] + xp.matmul(covariance, (alpha * solved)[..., None])[..., 0]
    return Solved(xp.sum(residual * solved, axis=2), determinant, vector)


def _system(xp: Any, parts: Spectral, alpha: Array, sigma: Array) -> tuple[Array, Array]:
    """Return C, (K, 1, D, D), and A C A + S, (K, B, D, D)."""
    size = parts.mean.shape[1]
    unit = xp.eye(size, dtype=parts.mean.dtype, device=_array.device(parts.mean))
    scaled, back = parts.basis * parts.values[:, None, :], xp.matrix_transpose(parts.basis)
    covariance = xp.matmul(scaled, back)
    if parts.rest is not None and parts.plain is not None:
        outside = parts.basis * parts.plain[:, None, :]
        covariance = covariance + unit * parts.rest[:, None, :] - xp.matmul(outside, back)
    covariance = covariance[:, None, :, :]
    # elements that are clean and certain make the matrix singular: they get a variance of the size of its rounding
    scale = xp.max(xp.max(xp.abs(covariance), axis=3), axis=2)[:, :, None]
    floor = 4.0 * float(xp.finfo(scale.dtype).eps) * scale + smallest(xp, scale.dtype)
    noise = xp.where(sigma**2 > floor, sigma**2, floor)
    return covariance, alpha[:, :, None] * covariance * alpha[:, None, :] + unit * noise[..., None, :]


def _by_woodbury(xp: Any, parts: Spectral, z: Array, alpha: Array, sigma: Array, want: str) -> Solved:
    """x = m + F y + rest: the latent y has the posterior mean (I + F^T A W^{-1} A F)^{-1} F^T A W^{-1} (z - A m)."""
    assert parts.rest is not None
    assert parts.plain is not None
    spread = parts.values - parts.plain
    factor = parts.basis * xp.sqrt(xp.where(spread > 0, spread, xp.zeros_like(spread)))[:, None, :]
    mean, rest = parts.mean[:, None, :], parts.rest[:, None, :]
    residual = z - alpha * mean
    around = xp.broadcast_to(above(xp, alpha**2 * rest + sigma**2), residual.shape)
    pulled = xp.matmul(alpha * residual / around, factor)
    seen = (alpha**2 / around)[..., None] * factor[:, None, :, :]
    unit = xp.eye(factor.shape[2], dtype=z.dtype, device=_array.device(z))
    inner = unit + xp.matmul(xp.matrix_transpose(factor)[:, None, :, :], seen)
    latent = xp.linalg.solve(inner, pulled[..., None])[..., 0]
    moved = xp.matmul(latent, xp.matrix_transpose(factor))
    solved = (residual - alpha * moved) / around
    determinant = xp.sum(xp.log(around), axis=2) + xp.linalg.slogdet(inner)[1]
    vector = mean + rest * alpha * solved + moved if want == X else -solved
    return Solved(xp.sum(residual * solved, axis=2), determinant, vector)


def posterior_variance(xp: Any, parts: Parts, alpha: Array, sigma: Array) -> Array:
    """Return Var[x | z_t] of each element of each component, (K, B or 1, D or 1)."""
    if isinstance(parts, Diagonal):
        return _left(xp, parts.variance, alpha, sigma)
    if alpha.shape[1] != 1 or sigma.shape[1] != 1:
        return xp.linalg.diagonal(posterior_covariance(xp, parts, alpha, sigma))
    inside, around = _left_of(xp, parts, alpha, sigma)
    return xp.matmul(inside, xp.matrix_transpose(parts.basis**2)) + around


def posterior_covariance(xp: Any, parts: Parts, alpha: Array, sigma: Array) -> Array:
    """Return Cov[x | z_t] of each component, (K, B or 1, D, D)."""
    unit = xp.eye(parts.mean.shape[1], dtype=parts.mean.dtype, device=_array.device(parts.mean))
    if isinstance(parts, Diagonal):
        return _left(xp, parts.variance, alpha, sigma)[..., None] * unit
    if alpha.shape[1] != 1 or sigma.shape[1] != 1:
        covariance, system = _system(xp, parts, alpha, sigma)
        seen = alpha[:, :, None] * covariance + xp.zeros_like(system)
        return covariance - xp.matmul(xp.matrix_transpose(seen), xp.linalg.solve(system, seen))
    inside, around = _left_of(xp, parts, alpha, sigma)
    basis = parts.basis[:, None, :, :]
    return xp.matmul(basis * inside[..., None, :], xp.matrix_transpose(basis)) + around[..., None] * unit


def _left(xp: Any, variance: Array, alpha: Array, sigma: Array) -> Array:
    """Return c sigma^2 / (alpha^2 c + sigma^2) of variances (K, n): what z leaves of them."""
    variance = variance[:, None, :]
    return variance * (sigma**2 / above(xp, alpha**2 * variance + sigma**2))


def _left_of(xp: Any, parts: Spectral, alpha: Array, sigma: Array) -> tuple[Array, Array]:
    """Return what z leaves of a Spectral form in its basis, less what it leaves of the rest, and of the rest."""
    inside = _left(xp, parts.values, alpha, sigma)
    if parts.rest is None or parts.plain is None:
        return inside, xp.zeros_like(inside[..., :1])
    return inside - _left(xp, parts.plain, alpha, sigma), _left(xp, parts.rest, alpha, sigma)


def turns(parts: Parts, levels_differ: bool) -> list[slice]:
    """Return the components as slices that are done one after the other."""
    count, size = parts.mean.shape
    if isinstance(parts, Spectral) and levels_differ:
        size *= parts.basis.shape[2]
    step = max(1, CHUNK // size)
    return [slice(first, min(first + step, count)) for first in range(0, count, step)]


def some(parts: Parts, which: slice) -> Parts:
    """Return a slice of the components."""
    if which.stop - which.start == parts.mean.shape[0]:
        return parts
    return type(parts)(*(None if part is None else part[which, ...] for part in parts))
