r"""Mixtures of Gaussians: each component's own answer, weighed by its responsibility for z.

E[x | z] = sum_k rho_k E_k[x | z],    rho_k = w_k N(z; alpha m_k, alpha^2 C_k + sigma^2 I) / sum_j (the same)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffcore import _array, _streams, noise
from diffcore._array import Array
from diffcore.exact import _components
from diffcore.exact._conditional import check_observation, condition
from diffcore.exact._denoiser import Weighed
from diffcore.exact._parts import (
    Covariance,
    Float64,
    LowRank,
    cast,
    check_covariance,
    check_event,
    check_weights,
    parts_of,
)
from diffcore.exact._weighing import Entered, joint, model_of, softmax
from diffcore.exact.gaussian import Gaussian, check_count, coloured, gaussian_of, in_event, normals


@dataclass(frozen=True, eq=False)
class Mixture(Weighed):
    r"""Data from a mixture of K Gaussians, and its exact denoiser E[x | z_t].

    Args:
        weights: (K,), finite, not negative, not all zero; normalised to sum to one. None weighs all alike.
        means: (K, *event), of any library; kept on the host in float64.
        covariances: one number for all; (K,) numbers; (K, *event) diagonals; (K, D, D) matrices; `LowRank` of factors
            (K, D, r); or a list of K covariances as `Gaussian` takes them.
        scaling: "vp", "ve" or "flow"; None is the plan's in `diffcore.sample`, and "vp" in a call of one's own.

    Raises:
        ValueError: as for `Gaussian`, and numbers of components that differ.

    Mixtures of many isotropic components of video's size are two matrix products; `LowRank` ones, mixtures of
    probabilistic principal components, three for each component. Nothing as large as (B, K, D) is made.

    >>> data = Mixture([0.5, 0.5], np.array([[-1.0], [1.0]]), 0.0)
    >>> data(np.array([[0.5]]), 40.0), data(np.array([[0.5]]), -np.inf)
    (array([[1.]]), array([[0.]]))
    """

    weights: Array
    means: Array
    covariances: Any

    def __post_init__(self) -> None:
        function = self._begin()
        means = check_event(function, "means", self.means, 1)
        weights = check_weights(function, self.weights, means.shape[0])
        covariances = _per_component(function, self.covariances, means)
        model = model_of(weights, parts_of(function, "covariances", means, covariances))
        self._set(weights=weights, means=means, covariances=tuple(covariances), event=means.shape[1:], model=model)

    def __repr__(self) -> str:
        return f"Mixture({self.weights.size} components, event={self.event}, scaling={self.scaling!r})"

    @property
    def components(self) -> tuple[Gaussian, ...]:
        """The K Gaussians, without their weights."""
        parts = self.model.parts
        assert parts is not None
        return tuple(
            gaussian_of(mean, covariance, _components.some(parts, slice(k, k + 1)), self.scaling)
            for k, (mean, covariance) in enumerate(zip(self.means, self.covariances, strict=True))
        )

    def conditional(self, observed: Array, mask: Array) -> Mixture:
        r"""Return the distribution of all of x given its elements under the mask.

        Each component is conditioned as a Gaussian, and its weight times N(x^a; m_a, C_aa), how well it explains x^a.

        Args, raises: as for `Gaussian.conditional`.

        >>> data = Mixture([0.5, 0.5], np.array([[-1.0, -2.0], [1.0, 2.0]]), 0.1)
        >>> data.conditional(np.array([1.0, 0.0]), [True, False]).weights.round(6)
        array([0., 1.])
        """
        function = "exact.Mixture.conditional"
        given, known = check_observation(function, observed, mask, self.event)
        flat, where = given.reshape(1, -1), known.reshape(1, -1)
        # an unknown element is at pure noise, where all components look the same
        at = Entered(_array.library(flat), flat, where * 1.0, 1.0 - where, (1, *self.event), np.float64)
        weights = softmax(at.xp, joint(self._model(at, direct=True), at), axis=0)[0][:, 0]
        found = [
            condition(function, mean.ravel(), covariance, flat[0], where[0])
            for mean, covariance in zip(self.means, self.covariances, strict=True)
        ]
        means = np.stack([mean for mean, _ in found]).reshape(self.means.shape)
        each = [in_event(c, self.event) for _, c in found]
        return Mixture(weights, means, each, scaling=self.scaling)

    def sample(self, seed: Any, count: int, *, like: Array | None = None) -> Array:
        """Return samples of the data, (count, *event); see `Gaussian.sample`."""
        function = "exact.Mixture.sample"
        choice = choose(function, self.weights, seed, count, math.prod(self.event))
        eps = normals(function, seed, count, self.event)
        drawn = np.empty_like(eps)
        for k in range(self.weights.size):
            drawn[choice == k] = coloured(self.model.parts, k, eps[choice == k])
        drawn = drawn.reshape(count, *self.event)
        return drawn if like is None else cast(drawn, like)


def choose(function: str, weights: Float64, seed: Any, count: int, size: int) -> Any:
    """Return the number of a component for each of `count` samples, by its weight, for events of `size` elements."""
    check_count(function, count, size)
    words = np.asarray(noise.bits(seed, 0, (count, 1), stream=_streams.CHOICES), dtype=np.float64)[:, 0]
    return np.searchsorted(np.cumsum(weights)[:-1], (words + 0.5) * 2.0**-32, side="right")


def _per_component(function: str, covariances: Any, means: Float64) -> list[Covariance]:
    count, event = means.shape[0], means.shape[1:]
    size = math.prod(event)
    each: Any
    if isinstance(covariances, LowRank):
        factor, variance = (_array.to_host(part) for part in covariances)
        if factor.ndim != 3 or factor.shape[:2] != (count, size):
            raise ValueError(
                f"{function}: `covariances.factor` must have shape ({count}, {size}, r), got {factor.shape}; or give a list "
                f"of LowRank"
            )
        if variance.shape not in ((), (count,), (count, size)):
            raise ValueError(
                f"{function}: `covariances.variance` must be a number, ({count},) or {(count, size)}, got shape "
                f"{variance.shape}"
            )
        variance = np.broadcast_to(variance, (count,)) if variance.ndim == 0 else variance
        each = [LowRank(f, v) for f, v in zip(factor, variance, strict=True)]
    elif isinstance(covariances, list | tuple):
        each = covariances
    else:
        array = _array.to_host(covariances, np.float64, function=function, argument="covariances")
        if array.shape not in ((), (count,), (count, *event), (count, size, size)):
            raise ValueError(
                f"{function}: `covariances` must be a number, ({count},), {(count, *event)}, {(count, size, size)}, LowRank, "
                f"or a list of {count}, got shape {array.shape}"
            )
        each = list(np.broadcast_to(array, (count,)) if array.ndim == 0 else array)
    if len(each) != count:
        raise ValueError(f"{function}: `covariances` must have {count} entries, one per mean, got {len(each)}")
    return [check_covariance(function, f"covariances[{k}]", c, event) for k, c in enumerate(each)]
