r"""Means and covariances as the arrays that the closed forms read, K components at a time, events laid flat (D).

A covariance is given as a number (c I), the diagonal, a matrix, or `LowRank`; it is kept in one of two forms:

* *Diagonal*: the variances themselves;
* *Spectral*: eigenvalues c on an orthonormal basis U, and, where the basis is not complete, the variance v of the rest:
  C = U diag(c) U^T + v (I - U U^T). An eigendecomposition is made once, on the host, in float64.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from diffcore import _array, _check
from diffcore._array import Array, to_host

Float64 = npt.NDArray[np.float64]

NEGATIVE = 1e-8
"""How far below zero, relative to the largest, rounding may have put an eigenvalue of a covariance."""


class LowRank(NamedTuple):
    r"""The covariance F F^T + v I, for data with far more elements than factors, such as video.

    Fields:
        factor: F, (D, r), or (K, D, r) for the K components of a mixture; D counts the elements of an event.
        variance: v >= 0, a number; (K,) for a mixture. An array (D,) is the variance of each element; it may differ
            only between elements whose row of F is zero (what is known has no variance: see `Gaussian.conditional`).

    Source: Tipping & Bishop 1999 (doi 10.1111/1467-9868.00196), eq. 6: probabilistic principal components.
    """

    factor: Array
    variance: Any = 0.0


Covariance = float | Float64 | LowRank
"""A checked covariance of one component: a number, (D,), (D, D), or `LowRank` of arrays."""


class Diagonal(NamedTuple):
    """Components with independent elements: mean (K, D), variance (K, 1) or (K, D)."""

    mean: Array
    variance: Array


class Spectral(NamedTuple):
    """Components in their eigenbases: mean (K, D), basis (K, D, R), values (K, R).

    `rest`, (K, 1) or (K, D), is the variance outside the basis and `plain`, (K, 1), its value wherever the basis is not
    zero; both are None for a complete basis.
    """

    mean: Array
    basis: Array
    values: Array
    rest: Array | None
    plain: Array | None


Parts = Diagonal | Spectral


def check_event(function: str, argument: str, array: Any, axes: int) -> Float64:
    """Return a parameter with `axes` axes before the event as finite float64 on the host, read-only."""
    found: Float64 = to_host(array, np.float64, function=function, argument=argument, finite=True).copy()
    if found.ndim < axes or found.size == 0:
        form = "(*event,)" if axes == 0 else "at least one of (*event,)"
        raise ValueError(f"{function}: `{argument}` must be {form}, without empty axes, got shape {found.shape}")
    found.setflags(write=False)
    return found


def check_weights(function: str, weights: Any, count: int) -> Float64:
    """Return weights, (count,), that sum to one; None gives equal weights."""
    found: Float64 = (
        np.ones(count) if weights is None else to_host(weights, np.float64, function=function, argument="weights")
    )
    if found.shape != (count,):
        raise ValueError(f"{function}: `weights` must have shape ({count},), got {found.shape}")
    if not np.all(found >= 0.0) or not 0.0 < float(np.sum(found)) < math.inf:
        raise _check.error(ValueError, function, "weights", "be finite numbers >= 0, not all zero", found.tolist())
    found = found / np.sum(found)
    found.setflags(write=False)
    return found


def check_covariance(function: str, argument: str, covariance: Any, event: tuple[int, ...]) -> Covariance:
    """Return a covariance in float64 on the host.

    Raises:
        ValueError: a shape that does not fit, entries that are not finite, a matrix that is not symmetric, a negative
            variance.
    """
    size = math.prod(event)
    if isinstance(covariance, LowRank):
        return _check_low_rank(function, argument, covariance, size)
    found: Float64 = to_host(covariance, np.float64, function=function, argument=argument, finite=True).copy()
    if found.shape in ((), event):
        if np.any(found < 0.0):
            raise ValueError(f"{function}: `{argument}` must not have a negative variance, got {float(found.min())!r}")
        return float(found) if found.ndim == 0 else found.reshape(size)
    if found.shape != (size, size):
        raise ValueError(
            f"{function}: `{argument}` must be a number, {event} (the diagonal), {(size, size)}, or "
            f"exact.LowRank(factor, variance), got shape {found.shape}"
        )
    largest = float(np.abs(found).max())
    if np.any(np.abs(found - found.T) > 1e-6 * largest):
        raise ValueError(f"{function}: `{argument}` must be symmetric; use (C + C.T) / 2")
    return 0.5 * (found + found.T)


def _check_low_rank(function: str, argument: str, covariance: LowRank, size: int) -> LowRank:
    factor: Float64 = to_host(covariance.factor, np.float64, function=function, argument=f"{argument}.factor").copy()
    variance: Float64 = to_host(
        covariance.variance, np.float64, function=function, argument=f"{argument}.variance"
    ).copy()
    if factor.ndim != 2 or factor.shape[0] != size:
        raise ValueError(f"{function}: `{argument}.factor` must have shape ({size}, r), got {factor.shape}")
    if variance.shape not in ((), (size,)):
        raise ValueError(f"{function}: `{argument}.variance` must be a number or ({size},), got shape {variance.shape}")
    if not np.all(np.isfinite(factor)) or not np.all(np.isfinite(variance)) or np.any(variance < 0.0):
        raise ValueError(f"{function}: `{argument}` must have finite factors and a finite variance >= 0")
    if variance.ndim == 0:
        return LowRank(factor, float(variance))
    used = variance[np.any(factor != 0.0, axis=1)]
    if used.size and np.any(used != used[0]):
        raise ValueError(
            f"{function}: `{argument}.variance` must be equal in all rows where the factor is not 0, got different numbers"
        )
    return LowRank(factor, variance)


def parts_of(function: str, argument: str, means: Float64, covariances: list[Covariance]) -> Parts:
    """Return the components with covariances in the simplest form that holds them all.

    Args:
        function, argument: for messages.
        means: (K, *event).
        covariances: K of `check_covariance`.
    """
    mean = means.reshape(means.shape[0], -1)
    size = mean.shape[1]
    if all(isinstance(c, float) for c in covariances):
        return Diagonal(mean, np.array(covariances)[:, None])
    if not any(isinstance(c, LowRank) or np.ndim(c) == 2 for c in covariances):
        return Diagonal(mean, np.stack([np.broadcast_to(np.asarray(c), (size,)) for c in covariances]))
    if not any(not isinstance(c, LowRank) and np.ndim(c) == 2 for c in covariances):
        low = [c if isinstance(c, LowRank) else LowRank(np.zeros((size, 0)), c) for c in covariances]
        return Spectral(mean, *_stack_low_rank(low, size))
    values, basis = np.linalg.eigh(np.stack([dense(c, size) for c in covariances]))
    largest = np.abs(values).max(axis=1, keepdims=True)
    if np.any(values < -NEGATIVE * largest):
        raise ValueError(
            f"{function}: `{argument}` must be positive semidefinite, got a negative eigenvalue, {float(values.min())!r}"
        )
    values = np.where(values > 4.0 * size * np.finfo(np.float64).eps * largest, values, 0.0)
    return Spectral(mean, basis, values, None, None)


def _stack_low_rank(covariances: list[LowRank], size: int) -> tuple[Float64, Float64, Float64, Float64]:
    rank = min(size, max(c.factor.shape[1] for c in covariances))
    basis, values = np.zeros((len(covariances), size, rank)), np.zeros((len(covariances), rank))
    plain = np.zeros((len(covariances), 1))
    for k, (factor, variance) in enumerate(covariances):
        used = np.any(factor != 0.0, axis=1)
        around = np.broadcast_to(variance, (size,))
        plain[k] = around[used][0] if np.any(used) else around[0]
        left, singular, _ = np.linalg.svd(factor, full_matrices=False)
        kept = singular > np.finfo(np.float64).eps * size * singular.max(initial=0.0)
        # a direction that is not kept stays a column of zeros, which every formula passes over
        basis[k, :, : singular.size] = np.where(kept & used[:, None], left, 0.0)
        values[k] = plain[k]
        values[k, : singular.size] += np.where(kept, singular, 0.0) ** 2
    if all(np.ndim(c.variance) == 0 for c in covariances):
        return basis, values, plain, plain
    rest = np.stack([np.broadcast_to(c.variance, (size,)) for c in covariances])
    return basis, values, rest, plain


def dense(covariance: Covariance, size: int) -> Float64:
    """Return a covariance as a matrix, (D, D)."""
    if isinstance(covariance, LowRank):
        low: Float64 = covariance.factor @ covariance.factor.T + dense(covariance.variance, size)
        return low
    found = np.asarray(covariance)
    matrix: Float64 = found if found.ndim == 2 else np.diag(np.broadcast_to(found, (size,)))
    return matrix


def cast(array: Array, like: Array) -> Array:
    """Return a parameter in the library, dtype and device of `like`; where it is there already, the same object."""
    if isinstance(array, np.ndarray):
        if isinstance(like, np.ndarray):
            return array.astype(like.dtype, copy=False)
        name = str(like.dtype).removeprefix("torch.").removeprefix("array_api_strict.")
        # a copy of its own: torch warns of read-only memory
        return _array.library(like).asarray(np.array(array, dtype=name), device=_array.device(like))
    return array


def fits(array: Array, like: Array) -> bool:
    """Return whether a converted parameter can meet `like` as it is."""
    xp = _array.library(like)
    if _array.library(array) is not xp or array.dtype != like.dtype:
        return False
    return _array.name(xp) != "torch" or bool(array.device == like.device)
