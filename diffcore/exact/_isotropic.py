r"""Many components of one variance in every direction (data sets, kernel densities of video), by matrix products.

With C_k = c_k I only ||z - alpha m_k||^2 and weighted sums of the m_k are needed: products of (B, D) with (D, K),
and no temporary of B K D numbers. The distances are written out as alpha^2 ||m||^2 - 2 alpha z . m, after the centre
of the means is subtracted, which leaves an absolute error of about eps ||z|| ||m||: in float32, means nearer to each
other than 3e-4 of the data's spread cannot be distinguished. Small problems go through `diffcore.exact._components`, which
subtracts first.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from diffcore._array import Array
from diffcore.exact._components import CHUNK, SCORE, above
from diffcore.exact._parts import Diagonal, Parts


class Isotropic(NamedTuple):
    """Components c_k I: centred means (K, D), their centre (1, D), their squared norms (K,), and c (K,) or (1,)."""

    points: Array
    centre: Array
    norms: Array
    variance: Array


def isotropic_of(parts: Parts) -> Isotropic | None:
    """Return components for matrix products, or None where they are too few or not of one variance each."""
    if not isinstance(parts, Diagonal) or parts.variance.shape[1] != 1 or parts.mean.size <= CHUNK:
        return None
    centre = parts.mean.mean(axis=0, keepdims=True, dtype=np.float64)
    points = (parts.mean - centre).astype(parts.mean.dtype, copy=False)
    norms = np.einsum("kd,kd->k", points, points, dtype=np.float64)
    variance = parts.variance[:, 0]
    return Isotropic(points, centre, norms, variance[:1] if np.all(variance == variance[0]) else variance.copy())


def logits(
    xp: Any, parts: Isotropic, log_weights: Array, z: Array, alpha: Array, sigma: Array
) -> tuple[Array, Array, Array]:
    """Return log(w_k q_k(z)) + offset, (B, K), the offset (B, 1), and alpha^2 c + sigma^2, (B, K) or (B, 1 or D).

    Levels that differ between elements need one variance for all components.
    """
    centred = z - alpha * parts.centre
    total = above(xp, alpha**2 * parts.variance + sigma**2)
    if alpha.shape[1] == 1 and sigma.shape[1] == 1:
        inner = xp.matmul(alpha * centred, parts.points.T)
        distance = alpha**2 * parts.norms - 2.0 * inner
        weight: Any = 1.0
        determinant = z.shape[1] * xp.log(total)
    else:
        weight = 1.0 / total
        squares = xp.matmul(weight * alpha**2, (parts.points * parts.points).T)
        distance = squares - 2.0 * xp.matmul(weight * alpha * centred, parts.points.T)
        determinant = xp.sum(xp.log(total), axis=1, keepdims=True)
    nearest = xp.take(parts.points, xp.argmin(distance, axis=1), axis=0)
    base = xp.sum(weight * (centred - alpha * nearest) ** 2, axis=1, keepdims=True)  # nothing cancels in this one
    excess = distance - xp.min(distance, axis=1, keepdims=True)
    if isinstance(weight, float):
        first = total[:, :1]
        offset = 0.5 * (base / first + determinant[:, :1])
        relative = base * (1.0 / total - 1.0 / first) + excess / total + (determinant - determinant[:, :1])
    else:
        offset, relative = 0.5 * (base + determinant), excess
    return log_weights - 0.5 * relative, offset, total


def combine(xp: Any, parts: Isotropic, weights: Array, total: Array, z: Array, alpha: Array, want: str) -> Array:
    """Return sum_k rho_k E_k[x | z], or the score for SCORE, (B, D), for responsibilities rho (B, K)."""
    centred = z - alpha * parts.centre
    each = parts.variance.shape[0] != 1
    if want == SCORE:
        if each:
            pull = weights / total
            mean = xp.matmul(pull, parts.points)
            return alpha * mean - xp.sum(pull, axis=1, keepdims=True) * centred
        return -(centred - alpha * xp.matmul(weights, parts.points)) / total
    gain = alpha * parts.variance / total
    if each:
        mean = xp.matmul(weights * (1.0 - alpha * gain), parts.points)
        return parts.centre + mean + xp.sum(weights * gain, axis=1, keepdims=True) * centred
    return parts.centre + (1.0 - alpha * gain) * xp.matmul(weights, parts.points) + gain * centred
