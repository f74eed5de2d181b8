r"""A finite data set as a distribution: the lowest training loss that any network can have on it.

E[x | z] = sum_i rho_i x_i,   rho = softmax_i( log w_i - ||z - alpha x_i||^2 / (2 sigma^2) )
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from diffcore import levels, noise
from diffcore._array import Array
from diffcore.exact._denoiser import Denoiser
from diffcore.exact._spectrum import Float64, cast
from diffcore.exact.gaussian import check_mask

CHUNK = 1 << 22
"""Numbers that a pass over the points makes at a time, so that memory does not grow with their number."""


@dataclass(frozen=True, eq=False)
class Empirical(Denoiser):
    r"""The distribution of a finite data set, and its exact denoiser.

    Args:
        points: (N, *event), the data.
        weights: (N,), not negative, not all zero; None weighs all alike.
        scaling: as for `Gaussian`.

    Raises:
        ValueError: no points, entries that are not finite, weights that do not fit.

    >>> data = Empirical(np.array([[-1.0], [1.0]]))
    >>> data(np.array([[0.9]]), np.inf), data(np.array([[0.9]]), -np.inf)
    (array([[1.]]), array([[0.]]))
    """

    points: Array
    weights: Any = None
    scaling: str | None = None

    def __post_init__(self) -> None:
        function = "exact.Empirical"
        if self.scaling is not None:
            levels.check_scaling(function, self.scaling)
        points = (
            self.points if not isinstance(self.points, np.ndarray | list | tuple) else np.asarray(self.points, float)
        )
        if len(points.shape) < 2 or points.shape[0] < 1:
            raise ValueError(f"{function}: `points` has shape {tuple(points.shape)}, but takes (N, *event), N >= 1")
        if isinstance(points, np.ndarray) and not np.all(np.isfinite(points)):
            raise ValueError(f"{function}: `points` has entries that are not finite")
        count = int(points.shape[0])
        weights = np.ones(count) if self.weights is None else np.asarray(self.weights, dtype=np.float64)
        if weights.shape != (count,) or not np.all(weights >= 0.0) or not 0.0 < float(weights.sum()) < np.inf:
            raise ValueError(f"{function}: `weights` must be ({count},), not negative and not all zero")
        object.__setattr__(self, "points", points)
        object.__setattr__(self, "weights", weights / weights.sum())

    @property
    def event(self) -> tuple[int, ...]:  # type: ignore[override]
        """The shape of one sample."""
        return tuple(self.points.shape[1:])

    def to(self, like: Array) -> Self:
        """Return it with its points in like's library, device and dtype, so that calls there convert nothing."""
        return replace(self, points=cast(self.points, like))

    def responsibilities(self, z: Array, log_snr: Array) -> Array:
        """Return rho, (B, N): how likely each point is to have made z_t. At sigma = 0 the nearest point has it all."""
        xp, logits = self._logits(z, log_snr)
        raised = xp.exp(logits - xp.max(logits, axis=1, keepdims=True))
        return raised / xp.sum(raised, axis=1, keepdims=True)

    def denoise(self, z: Array, log_snr: Array) -> Array:
        """Return E[x | z_t] = sum_i rho_i x_i, of the shape and dtype of z."""
        at, wide, dtype = self._enter("denoise", z, log_snr)
        rho = self.responsibilities(wide, log_snr)
        flat = at.xp.reshape(cast(self.points, wide), (self.points.shape[0], -1))
        return at.xp.astype(at.xp.reshape(at.xp.matmul(rho, flat), wide.shape), dtype, copy=False)

    def log_likelihood(self, z: Array, log_snr: Array) -> Array:
        """Return log q(z_t) = log sum_i w_i N(z; alpha x_i, sigma^2) in nats, (B,), for sigma > 0."""
        at, wide, _ = self._enter("log_likelihood", z, log_snr)
        xp, logits = self._logits(wide, log_snr)
        top = xp.max(logits, axis=1, keepdims=True)
        floor = float(xp.finfo(wide.dtype).eps) ** 2
        logarithms = xp.broadcast_to(xp.log(2.0 * math.pi * (at.sigma**2 + floor)), wide.shape)
        normaliser = 0.5 * xp.sum(xp.reshape(logarithms, (wide.shape[0], -1)), axis=1)
        return top[:, 0] + xp.log(xp.sum(xp.exp(logits - top), axis=1)) - normaliser

    def posterior_covariance(self, z: Array, log_snr: Array) -> Array:
        """Return Cov[x | z_t] = sum_i rho_i (x_i - x-hat)(x_i - x-hat)^T, (B, D, D)."""
        at, wide, _ = self._enter("posterior_covariance", z, log_snr)
        xp = at.xp
        rho, centre = self.responsibilities(wide, log_snr), self.denoise(wide, log_snr)
        flat = xp.reshape(cast(self.points, wide), (1, self.points.shape[0], -1))
        apart = flat - xp.reshape(centre, (wide.shape[0], 1, -1))
        return xp.matmul(xp.permute_dims(apart * rho[:, :, None], (0, 2, 1)), apart)

    def conditional(self, observed: Array, mask: Array, *, noise_std: float = 0.0) -> Empirical:
        """Return the distribution given the elements under the mask: the points that agree with them.

        Args:
            observed, mask: as for `Gaussian.conditional`.
            noise_std: 0 keeps the points that agree exactly; positive weighs all by exp(-||x_a - observed||^2 / (2
                s^2)).

        Raises:
            ValueError: no point agrees; give `noise_std` > 0.
        """
        known, values = check_mask("exact.Empirical.conditional", observed, mask, self.event)
        points = np.asarray(self.points, dtype=np.float64)
        distance = np.sum(np.where(known, points - values, 0.0).reshape(points.shape[0], -1) ** 2, axis=1)
        if noise_std > 0.0:
            weights = self.weights * np.exp(-(distance - distance.min()) / (2.0 * noise_std**2))
        else:
            weights = np.where(distance == 0.0, self.weights, 0.0)
            if not np.any(weights):
                raise ValueError("exact.Empirical.conditional: no point agrees with `observed`; give `noise_std` > 0")
        return Empirical(points, weights, scaling=self.scaling)

    def conditional_denoise(
        self, z: Array, log_snr: Array, observed: Array, mask: Array, *, noise_std: float = 0.0
    ) -> Array:
        """Return E[x | z_t, x^a] over the points that agree with x^a: z^a is not looked at. See `conditional`."""
        known, _ = check_mask("exact.Empirical.conditional", observed, mask, self.event)
        kept = self.conditional(observed, mask, noise_std=noise_std)
        # given x^a, all that z^a could tell is known: with every point's x^a alike it cancels in the softmax
        if noise_std > 0.0:
            points = np.where(known, np.asarray(observed, dtype=np.float64), np.asarray(kept.points))
            kept = Empirical(points, kept.weights, scaling=self.scaling)
        return kept.denoise(z, log_snr)

    def sample(self, seed: Any, count: int) -> Float64:
        """Return `count` points drawn by their weights, (count, *event) in float64 on the host."""
        words = np.asarray(noise.bits(seed, 0, (count, 1), stream=3), dtype=np.float64)[:, 0]
        choice = np.searchsorted(np.cumsum(self.weights)[:-1], (words + 0.5) * 2.0**-32, side="right")
        drawn: Float64 = np.asarray(self.points, dtype=np.float64)[choice]
        return drawn

    def _logits(self, z: Array, log_snr: Array) -> tuple[Any, Array]:
        at, wide, _ = self._enter("denoise", z, log_snr)
        xp = at.xp
        floor = float(xp.finfo(wide.dtype).eps) ** 2
        precision = 0.5 / (at.sigma**2 + floor)  # the floor lets the nearest point win at sigma = 0
        points = cast(self.points, wide)
        with np.errstate(divide="ignore"):
            bias = np.maximum(np.log(np.asarray(self.weights)), -1e30)
        step = max(1, CHUNK // max(1, math.prod(wide.shape)))
        parts = []
        for first in range(0, points.shape[0], step):
            some = points[first : first + step, ...][None]
            distance = (wide[:, None] - at.alpha[:, None] * some) ** 2 * precision[:, None]
            parts.append(-xp.sum(xp.reshape(distance, (wide.shape[0], some.shape[1], -1)), axis=2))
        logits = parts[0] if len(parts) == 1 else xp.concat(parts, axis=1)
        return xp, logits + cast(bias[None, :], wide)
