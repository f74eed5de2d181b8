r"""Covariances as what they do: h(C) r for functions h of the eigenvalues, in any array library.

Three forms, one interface. *Diagonal*: eigenvalues of the event's shape. *Full*: an orthogonal basis Q and eigenvalues.
*Low rank*: C = F F^T + v I, that is an orthonormal basis U of F's range with eigenvalues s^2 + v, and v everywhere
else:

    h(C) r = h(v) r + U [(h(s^2 + v) - h(v)) U^T r]
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from diffcore import _array
from diffcore._array import Array

Float64 = npt.NDArray[np.float64]
Spectral = Callable[[Array], Array]


class LowRank(NamedTuple):
    """The covariance F F^T + variance I, of data with far more elements than factors.

    Fields:
        factor: F, (D, r), D the number of elements of the event.
        variance: v >= 0, the variance in every other direction.
    """

    factor: Array
    variance: float


@dataclass(frozen=True, eq=False)
class Spectrum:
    """A covariance: `values` (*event,) alone; or `basis` (D, R) with `values` (R,), and `rest` outside the basis.

    `rest` is None for a complete basis.
    """

    event: tuple[int, ...]
    values: Array
    basis: Array | None = None
    rest: float | None = None

    @property
    def size(self) -> int:
        """The number of elements of an event."""
        return math.prod(self.event)

    def to(self, like: Array) -> Spectrum:
        """Return it with arrays of like's library, device and dtype (at least float32)."""
        return replace(
            self, values=cast(self.values, like), basis=None if self.basis is None else cast(self.basis, like)
        )

    def apply(self, xp: Any, h: Spectral, residual: Array) -> Array:
        """Return h(C) r for residuals (B, *event); h maps eigenvalues, (*event,) or (R,) or (1,), to arrays (B or 1,
        ...)."""
        values = cast(self.values, residual)
        if self.basis is None:
            return h(values) * residual
        basis = cast(self.basis, residual)
        flat = xp.reshape(residual, (residual.shape[0], self.size))
        inside = xp.matmul(flat, basis)
        if self.rest is None:
            return xp.reshape(xp.matmul(h(values) * inside, basis.T), residual.shape)
        outside = h(xp.full((1,), self.rest, dtype=residual.dtype, device=_array.device(residual)))
        return xp.reshape(outside * flat + xp.matmul((h(values) - outside) * inside, basis.T), residual.shape)

    def total(self, xp: Any, h: Spectral, like: Array) -> Array:
        """Return the trace of h(C), (B or 1,): the sum over all directions."""
        values = h(cast(self.values, like))
        found = xp.sum(xp.reshape(values, (values.shape[0], -1)), axis=1)
        if self.rest is not None:
            rest = h(xp.full((1,), self.rest, dtype=like.dtype, device=_array.device(like)))
            found = found + (self.size - self.values.shape[0]) * rest[:, 0]
        return found

    def quadratic(self, xp: Any, h: Spectral, residual: Array) -> Array:
        """Return r^T h(C) r, (B,)."""
        product = residual * self.apply(xp, h, residual)
        return xp.sum(xp.reshape(product, (product.shape[0], -1)), axis=1)

    def dense(self) -> Float64:
        """Return C as a matrix (D, D) on the host."""
        values = np.asarray(self.values, dtype=np.float64)
        if self.basis is None:
            return np.diag(values.ravel())
        basis = np.asarray(self.basis, dtype=np.float64)
        matrix = (basis * (values - (self.rest or 0.0))) @ basis.T
        return matrix + (self.rest or 0.0) * np.eye(self.size) if self.rest is not None else matrix


def cast(array: Array, like: Array) -> Array:
    """Return a parameter in the library, device and dtype of `like`; nothing is copied where it is there already."""
    xp = _array.library(like)
    if not isinstance(array, np.ndarray) and array.dtype == like.dtype:
        return array
    if isinstance(array, np.ndarray) and isinstance(like, np.ndarray):
        return array.astype(like.dtype, copy=False)
    return xp.asarray(array, dtype=like.dtype, device=_array.device(like))


def spectrum_of(function: str, mean: Float64, covariance: Any) -> Spectrum:
    """Return the spectrum of a covariance as users give it: a number, (*event,), (D, D) or `LowRank`.

    Raises:
        ValueError: another shape, a matrix that is not symmetric, or a negative eigenvalue.
    """
    event, size = mean.shape, mean.size
    if isinstance(covariance, LowRank):
        return _low_rank(function, event, covariance)
    matrix = np.asarray(covariance, dtype=np.float64)
    if not np.all(np.isfinite(matrix)):
        raise ValueError(f"{function}: `covariance` has entries that are not finite")
    if matrix.shape in ((), event):
        values = np.broadcast_to(matrix, event).copy()
        _check_positive(function, values)
        return Spectrum(event, values)
    if matrix.shape != (size, size):
        raise ValueError(
            f"{function}: `covariance` has shape {matrix.shape} for a mean of shape {event}, but takes a number, {event} "
            f"(its diagonal), {(size, size)}, or exact.LowRank"
        )
    if not np.allclose(matrix, matrix.T, rtol=1e-8, atol=1e-12 * max(1.0, float(np.abs(matrix).max()))):
        raise ValueError(f"{function}: `covariance` is not symmetric; use (C + C.T) / 2")
    values, basis = np.linalg.eigh(0.5 * (matrix + matrix.T))
    tolerance = 1e-12 * size * max(float(np.abs(values).max(initial=0.0)), 1e-300)
    _check_positive(function, values, -tolerance)
    return Spectrum(event, np.where(values > tolerance, values, 0.0), basis)


def _low_rank(function: str, event: tuple[int, ...], covariance: LowRank) -> Spectrum:
    factor = np.asarray(covariance.factor, dtype=np.float64)
    size = math.prod(event)
    if factor.ndim != 2 or factor.shape[0] != size or factor.shape[1] > size:
        raise ValueError(
            f"{function}: `covariance.factor` has shape {factor.shape} for events of {size} elements, but takes "
            f"({size}, r), r <= {size}"
        )
    rest = float(covariance.variance)
    if not 0.0 <= rest < math.inf:
        raise ValueError(f"{function}: `covariance.variance` is {rest!r}, but takes a finite number >= 0")
    basis, singular, _ = np.linalg.svd(factor, full_matrices=False)
    return Spectrum(event, singular**2 + rest, basis, rest if factor.shape[1] < size else None)


def _check_positive(function: str, values: Float64, floor: float = 0.0) -> None:
    if np.any(values < floor):
        raise ValueError(
            f"{function}: `covariance` has a negative variance, {float(values.min())!r}; it must be positive semidefinite"
        )
