r"""Gaussian data, whose denoiser, score, likelihood and posterior are all in closed form.

With C's eigenvalues c and everything in its eigenbasis, z ~ N(alpha m, alpha^2 c + sigma^2) and

    E[x | z] = m + g (z - alpha m),   g = alpha c / (alpha^2 c + sigma^2),   Var[x | z] = sigma^2 c / (alpha^2 c +
    sigma^2)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

from diffcore import _array, noise
from diffcore._array import Array
from diffcore.exact._denoiser import Aligned, Denoiser
from diffcore.exact._spectrum import Float64, LowRank, Spectrum, cast, spectrum_of

DENSE = 4096
"""Elements up to which a covariance is written out as a matrix."""


@dataclass(frozen=True, eq=False)
class Gaussian(Denoiser):
    r"""Gaussian data N(mean, covariance) and its exact denoiser E[x | z_t].

    Args:
        mean: (*event,), the shape of one sample.
        covariance: a number c (c I), an array of the mean's shape (the diagonal), a matrix (D, D) over the D elements
            of an
            event in row-major order, or `LowRank(factor, variance)`. Zero eigenvalues are allowed.
        scaling: "vp", "ve" or "flow"; None follows the plan in `diffcore.sample` and is "vp" in a call of one's own.

    Raises:
        ValueError: shapes that do not fit, a matrix that is not symmetric or not positive semidefinite.

    Called as `gaussian(z, log_snr)` with z (B, *event) and log_snr (), (B,) or (B, T); finite at lambda = +-inf.

    >>> data = Gaussian(np.zeros(2), np.diag([1.0, 0.0]))
    >>> data(np.ones((1, 2)), 0.0).round(6)
    array([[0.707107, 0.      ]])
    """

    mean: Array
    covariance: Any
    scaling: str | None = None
    spectrum: Spectrum = field(init=False, repr=False)

    def __post_init__(self) -> None:
        function = "exact.Gaussian"
        if self.scaling is not None:
            self._check_scaling(function)
        mean = np.asarray(self.mean, dtype=np.float64)
        if mean.ndim < 1 or not np.all(np.isfinite(mean)):
            raise ValueError(
                f"{function}: `mean` has shape {mean.shape}, but takes finite (*event,), at least one axis"
            )
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "spectrum", spectrum_of(function, mean, self.covariance))

    def _check_scaling(self, function: str) -> None:
        from diffcore.levels import check_scaling

        check_scaling(function, self.scaling)

    @property
    def event(self) -> tuple[int, ...]:  # type: ignore[override]
        """The shape of one sample."""
        return tuple(self.mean.shape)

    def to(self, like: Array) -> Self:
        """Return it with its arrays in like's library, device and dtype, so that calls there convert nothing."""
        moved = replace(self)
        object.__setattr__(moved, "mean", cast(self.mean, like))
        object.__setattr__(moved, "spectrum", self.spectrum.to(like))
        return moved

    def denoise(self, z: Array, log_snr: Array) -> Array:
        r"""Return E[x | z_t] = m + alpha C (alpha^2 C + sigma^2)^{-1} (z - alpha m), of the shape and dtype of z.

        Raises:
            TypeError: z is no floating array. ValueError: z or log_snr has another shape.

        Source: Bishop 2006, Pattern Recognition and Machine Learning, eq. 2.116.
        """
        at, wide, dtype = self._enter("denoise", z, log_snr)
        mean = cast(self.mean, wide)
        found = mean + self._apply(at, wide - at.alpha * mean, _gain)
        return at.xp.astype(found, dtype, copy=False)

    def log_likelihood(self, z: Array, log_snr: Array) -> Array:
        r"""Return log N(z; alpha m, alpha^2 C + sigma^2 I) in nats, (B,); log_snr = inf gives the density of the data.

        A direction without variance at sigma = 0 has no density: it counts as one of variance eps^2 of the dtype.
        """
        at, wide, _ = self._enter("log_likelihood", z, log_snr)
        xp = at.xp
        floor = float(xp.finfo(wide.dtype).eps) ** 2
        residual = wide - at.alpha * cast(self.mean, wide)
        if at.lead > 1 and self.spectrum.basis is not None:
            raise ValueError("exact.Gaussian.log_likelihood: levels per frame need a diagonal covariance")

        def variance(values: Array) -> Array:
            alpha, sigma = self._beside(at)
            return alpha**2 * values + sigma**2 + floor

        quadratic = self.spectrum.quadratic(xp, lambda v: 1.0 / variance(v), residual)
        logarithms = self.spectrum.total(xp, lambda v: xp.log(variance(v)), residual)
        return -0.5 * (quadratic + logarithms + self.spectrum.size * math.log(2.0 * math.pi))

    def posterior_covariance(self, z: Array, log_snr: Array) -> Array:
        r"""Return Cov[x | z_t] = sigma^2 C (alpha^2 C + sigma^2)^{-1}, (B, D, D); it does not depend on z's values.

        Raises:
            ValueError: events of more than 4096 elements.
        """
        at, wide, _ = self._enter("posterior_covariance", z, log_snr)
        xp, size = at.xp, self.spectrum.size
        self._check_dense("posterior_covariance")
        unit = xp.eye(size, dtype=wide.dtype, device=_array.device(wide))
        each = []
        for sample in range(wide.shape[0]):
            one = Aligned(
                xp, at.alpha[sample % at.alpha.shape[0]][None], at.sigma[sample % at.sigma.shape[0]][None], at.lead
            )
            columns = self._apply(one, xp.reshape(unit, (size, *self.event)), _posterior_variance)
            each.append(xp.reshape(columns, (size, size)))
        return xp.stack(each)

    def conditional(self, observed: Array, mask: Array) -> Gaussian:
        r"""Return the distribution of x given its elements under the mask: a Gaussian that is certain of those.

            m_b + C_ba C_aa^+ (x_a - m_a),   C_bb - C_ba C_aa^+ C_ab

        Args:
            observed: (*event,); only its elements under the mask count.
            mask: booleans or 0 and 1 that broadcast to the event; true is known.

        Raises:
            ValueError: the mask or the observation does not broadcast to the event; too many elements for a matrix.

        Source: Bishop 2006, eq. 2.81-2.82.
        """
        known, values = check_mask("exact.Gaussian.conditional", observed, mask, self.event)
        mean = np.asarray(self.mean, dtype=np.float64)
        if self.spectrum.basis is None:
            variances = np.where(known, 0.0, np.asarray(self.spectrum.values, dtype=np.float64))
            return Gaussian(np.where(known, values, mean), variances, scaling=self.scaling)
        self._check_dense("conditional")
        a, matrix, flat = known.ravel(), self.spectrum.dense(), mean.ravel()
        gain = matrix[:, a] @ np.linalg.pinv(matrix[np.ix_(a, a)], hermitian=True)
        new_mean = np.where(a, values.ravel(), flat + gain @ (values.ravel()[a] - flat[a]))
        reduced = matrix - gain @ matrix[a, :]
        reduced[a, :] = reduced[:, a] = 0.0
        return Gaussian(new_mean.reshape(self.event), 0.5 * (reduced + reduced.T), scaling=self.scaling)

    def conditional_denoise(self, z: Array, log_snr: Array, observed: Array, mask: Array) -> Array:
        """Return E[x | z_t, x^a]: the known elements exactly, the others without a look at z^a. See `conditional`."""
        return self.conditional(observed, mask).denoise(z, log_snr)

    def sample(self, seed: Any, count: int) -> Float64:
        """Return `count` samples of the data, (count, *event) in float64 on the host, by the library's own noise."""
        eps = noise.normal(seed, 0, (count, *self.event), dtype=np.dtype(np.float64), stream=2)
        spectrum = replace(
            self.spectrum,
            values=np.asarray(self.spectrum.values, dtype=np.float64),
            basis=None if self.spectrum.basis is None else np.asarray(self.spectrum.basis, dtype=np.float64),
        )
        drawn = spectrum.apply(np, np.sqrt, eps)
        return np.asarray(np.asarray(self.mean, dtype=np.float64) + drawn)

    def _beside(self, at: Aligned) -> tuple[Array, Array]:
        """Return alpha and sigma beside eigenvalues: along the event for a diagonal, (B, 1) beside a basis's."""
        if self.spectrum.basis is None:
            return at.alpha, at.sigma
        return tuple(at.xp.reshape(part, (part.shape[0], 1)) for part in (at.alpha, at.sigma))

    def _apply(self, at: Aligned, residual: Array, gain: Any) -> Array:
        if at.lead > 1 and self.spectrum.basis is not None:
            return self._dense_apply(at, residual, gain)
        return self.spectrum.apply(at.xp, lambda v: gain(at.xp, v, *self._beside(at)), residual)

    def _dense_apply(self, at: Aligned, residual: Array, gain: Any) -> Array:
        """Levels per frame mix with a full covariance: C A (A C A + S)^{-1} r, by a solve a sample."""
        if gain is not _gain:
            raise ValueError("exact.Gaussian.posterior_covariance: levels per frame need a diagonal covariance")
        self._check_dense("denoise")
        xp, size = at.xp, self.spectrum.size
        matrix = cast(self.spectrum.dense(), residual)
        alpha, sigma = (xp.reshape(xp.broadcast_to(p, residual.shape), (-1, size)) for p in (at.alpha, at.sigma))
        unit = xp.eye(size, dtype=residual.dtype, device=_array.device(residual))
        system = alpha[:, :, None] * matrix * alpha[:, None, :] + unit * (sigma**2)[:, None, :]
        solved = xp.linalg.solve(system, xp.reshape(residual, (-1, size, 1)))
        return xp.reshape(xp.matmul(matrix * alpha[:, None, :], solved), residual.shape)

    def _check_dense(self, method: str) -> None:
        if self.spectrum.size > DENSE:
            raise ValueError(
                f"exact.Gaussian.{method}: events of {self.spectrum.size} elements need a matrix too large; up to {DENSE} "
                f"are taken, or any number with a diagonal covariance where there is one"
            )


def _gain(xp: Any, values: Array, alpha: Array, sigma: Array) -> Array:
    """Return alpha c / (alpha^2 c + sigma^2), 0 for c = 0 also where sigma = 0; sigma may be inf."""
    variance = alpha**2 * values + sigma**2
    safe = xp.where(variance > 0, variance, xp.ones_like(variance))
    return xp.where(values > 0, alpha * values / safe, xp.zeros_like(safe))


def _posterior_variance(xp: Any, values: Array, alpha: Array, sigma: Array) -> Array:
    variance = alpha**2 * values + sigma**2
    safe = xp.where(variance > 0, variance, xp.ones_like(variance))
    return values * (sigma**2 / safe)


def check_mask(function: str, observed: Array, mask: Array, event: tuple[int, ...]) -> tuple[Any, Float64]:
    """Return (known, values) of the event's shape on the host, or raise ValueError naming what does not broadcast."""
    found = []
    for argument, value in (("mask", mask), ("observed", observed)):
        try:
            found.append(np.broadcast_to(np.asarray(value), event))
        except ValueError:
            raise ValueError(
                f"{function}: `{argument}` has shape {np.shape(value)}, which does not broadcast to an event of shape {event}"
            ) from None
    known = found[0].astype(bool)
    values = np.where(known, found[1], 0.0).astype(np.float64)
    if not np.all(np.isfinite(values)):
        raise ValueError(f"{function}: `observed` has entries under the mask that are not finite")
    return known, values


__all__ = ["Gaussian", "LowRank"]
