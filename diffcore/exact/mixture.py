r"""Mixtures of Gaussians: the Gaussians' own answers, weighted by their responsibilities.

E[x | z] = sum_k rho_k(z) E_k[x | z],   rho_k(z) = w_k q_k(z) / sum_j w_j q_j(z)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

from diffcore import levels, noise
from diffcore._array import Array
from diffcore.exact._denoiser import Denoiser
from diffcore.exact._spectrum import Float64, LowRank
from diffcore.exact.gaussian import Gaussian, check_mask


@dataclass(frozen=True, eq=False)
class Mixture(Denoiser):
    r"""Data from a mixture of K Gaussians, and its exact denoiser.

    Args:
        weights: (K,), not negative, not all zero; normalised.
        means: (K, *event).
        covariances: one number for all; (K,) numbers; (K, *event) diagonals; (K, D, D) matrices; or a list of K
            covariances as `Gaussian` takes them, `LowRank` included.
        scaling: as for `Gaussian`.

    Raises:
        ValueError: numbers of components that differ, negative weights, and as for `Gaussian`.

    >>> data = Mixture([0.5, 0.5], np.array([[-1.0], [1.0]]), 0.0)
    >>> data(np.array([[0.5]]), 40.0).round(6)
    array([[1.]])
    """

    weights: Array
    means: Array
    covariances: Any
    scaling: str | None = None
    components: tuple[Gaussian, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        function = "exact.Mixture"
        if self.scaling is not None:
            levels.check_scaling(function, self.scaling)
        weights, means = np.asarray(self.weights, dtype=np.float64), np.asarray(self.means, dtype=np.float64)
        if weights.ndim != 1 or not np.all(weights >= 0.0) or not 0.0 < float(weights.sum()) < np.inf:
            raise ValueError(
                f"{function}: `weights` must be (K,), not negative and not all zero; got shape {weights.shape}"
            )
        if means.ndim < 2 or means.shape[0] != weights.size:
            raise ValueError(f"{function}: `means` has shape {means.shape}, but takes ({weights.size}, *event)")
        each = _per_component(function, self.covariances, means)
        object.__setattr__(self, "weights", weights / weights.sum())
        object.__setattr__(self, "means", means)
        object.__setattr__(
            self, "components", tuple(Gaussian(m, c, scaling=self.scaling) for m, c in zip(means, each, strict=True))
        )

    @property
    def event(self) -> tuple[int, ...]:  # type: ignore[override]
        """The shape of one sample."""
        return tuple(self.means.shape[1:])

    def to(self, like: Array) -> Self:
        """Return it with its arrays in like's library, device and dtype, so that calls there convert nothing."""
        moved = replace(self)
        object.__setattr__(moved, "components", tuple(part.to(like) for part in self.components))
        return moved

    def with_scaling(self, scaling: str) -> Self:
        """Return the same distribution, as a denoiser for another scaling."""
        moved = replace(self, scaling=scaling)
        object.__setattr__(moved, "components", tuple(part.with_scaling(scaling) for part in self.components))
        return moved

    def responsibilities(self, z: Array, log_snr: Array) -> Array:
        """Return rho, (B, K): how likely each component is to have made z_t; rows sum to one, at lambda = +-inf too."""
        xp, joint = self._joint(z, log_snr)
        raised = xp.exp(joint - xp.max(joint, axis=1, keepdims=True))
        return raised / xp.sum(raised, axis=1, keepdims=True)

    def denoise(self, z: Array, log_snr: Array) -> Array:
        """Return E[x | z_t] = sum_k rho_k E_k[x | z_t], of the shape and dtype of z; see `Gaussian.denoise`."""
        at, wide, dtype = self._enter("denoise", z, log_snr)
        rho = self.responsibilities(wide, log_snr)
        total = at.xp.zeros_like(wide)
        for k, part in enumerate(self.components):
            total = total + _beside(at.xp, rho[:, k], wide) * part.denoise(wide, log_snr)
        return at.xp.astype(total, dtype, copy=False)

    def log_likelihood(self, z: Array, log_snr: Array) -> Array:
        """Return log sum_k w_k q_k(z_t) in nats, (B,); see `Gaussian.log_likelihood`."""
        xp, joint = self._joint(z, log_snr)
        top = xp.max(joint, axis=1, keepdims=True)
        return top[:, 0] + xp.log(xp.sum(xp.exp(joint - top), axis=1))

    def posterior_covariance(self, z: Array, log_snr: Array) -> Array:
        """Return Cov[x | z_t] = sum_k rho_k (Cov_k + x_k x_k^T) - x x^T, (B, D, D); see `Gaussian`."""
        at, wide, _ = self._enter("posterior_covariance", z, log_snr)
        xp = at.xp
        rho, centre = self.responsibilities(wide, log_snr), self.denoise(wide, log_snr)
        total: Any = 0.0
        for k, part in enumerate(self.components):
            apart = xp.reshape(part.denoise(wide, log_snr) - centre, (wide.shape[0], -1))
            spread = part.posterior_covariance(wide, log_snr) + apart[:, :, None] * apart[:, None, :]
            total = total + rho[:, k, None, None] * spread
        return total

    def conditional(self, observed: Array, mask: Array) -> Mixture:
        """Return the distribution of x given its elements under the mask: the Gaussians' conditionals, reweighted by
        how well each explains what is known. See `Gaussian.conditional`.
        """
        known, values = check_mask("exact.Mixture.conditional", observed, mask, self.event)
        where = np.flatnonzero(known.ravel())
        log_weights = []
        with np.errstate(divide="ignore"):
            for weight, part in zip(self.weights, self.components, strict=True):
                fits = 0.0
                if where.size:
                    fits = float(_marginal(part, where).log_likelihood(values.ravel()[None, where], np.inf)[0])
                log_weights.append(np.log(weight) + fits)
        parts = [part.conditional(values, known) for part in self.components]
        weights = np.exp(np.asarray(log_weights) - max(log_weights))
        covariances = [part.covariance for part in parts]
        return Mixture(weights, np.stack([part.mean for part in parts]), covariances, scaling=self.scaling)

    def conditional_denoise(self, z: Array, log_snr: Array, observed: Array, mask: Array) -> Array:
        """Return E[x | z_t, x^a]: the known elements exactly, the others from z^b alone. See `conditional`."""
        return self.conditional(observed, mask).denoise(z, log_snr)

    def sample(self, seed: Any, count: int) -> Float64:
        """Return `count` samples of the data, (count, *event) in float64 on the host, by the library's own noise."""
        words = np.asarray(noise.bits(seed, 0, (count, 1), stream=3), dtype=np.float64)[:, 0]
        choice = np.searchsorted(np.cumsum(self.weights)[:-1], (words + 0.5) * 2.0**-32, side="right")
        drawn = np.empty((count, *self.event))
        for k, part in enumerate(self.components):
            drawn[choice == k] = part.sample(seed, count)[choice == k]
        return drawn

    def _joint(self, z: Array, log_snr: Array) -> tuple[Any, Array]:
        """Return log(w_k q_k(z)), (B, K)."""
        at, wide, _ = self._enter("denoise", z, log_snr)
        xp = at.xp
        with np.errstate(divide="ignore"):
            log_weights = np.log(np.asarray(self.weights))
        keep = [float(max(value, -1e30)) for value in log_weights]  # a weight of zero, without inf - inf
        each = [part.log_likelihood(wide, log_snr) + bias for part, bias in zip(self.components, keep, strict=True)]
        return xp, xp.stack(each, axis=1)


def _beside(xp: Any, weights: Array, like: Array) -> Array:
    return xp.reshape(weights, (weights.shape[0],) + (1,) * (like.ndim - 1))


def _marginal(part: Gaussian, where: Any) -> Gaussian:
    """Return the distribution of some elements of an event, as a vector."""
    mean = np.asarray(part.mean).ravel()[where]
    if part.spectrum.basis is None:
        return Gaussian(mean, np.asarray(part.spectrum.values).ravel()[where])
    if isinstance(part.covariance, LowRank):
        factor = np.asarray(part.covariance.factor)[where]
        if factor.shape[1] <= factor.shape[0]:
            return Gaussian(mean, LowRank(factor, part.covariance.variance))
    return Gaussian(mean, part.spectrum.dense()[np.ix_(where, where)])


def _per_component(function: str, covariances: Any, means: Float64) -> Sequence[Any]:
    count, event = means.shape[0], means.shape[1:]
    size = int(np.prod(event))
    if isinstance(covariances, LowRank):
        factor = np.asarray(covariances.factor)
        variances = np.broadcast_to(np.asarray(covariances.variance, dtype=np.float64), (count,))
        if factor.ndim != 3 or factor.shape[0] != count:
            raise ValueError(
                f"{function}: `covariances.factor` has shape {factor.shape}, but takes ({count}, {size}, r), or a list of "
                f"LowRank"
            )
        return [LowRank(f, float(v)) for f, v in zip(factor, variances, strict=True)]
    if isinstance(covariances, list | tuple):
        if len(covariances) != count:
            raise ValueError(f"{function}: `covariances` has {len(covariances)} entries for {count} means")
        return covariances
    array = np.asarray(covariances, dtype=np.float64)
    if array.ndim == 0:
        return [array] * count
    if array.shape in ((count,), (count, *event), (count, size, size)):
        return list(array)
    raise ValueError(
        f"{function}: `covariances` has shape {array.shape}, but takes a number, ({count},), {(count, *event)}, "
        f"{(count, size, size)}, LowRank, or a list of {count}"
    )
