r"""Gaussian data N(m, C): the denoiser, score, likelihood and posterior, all in closed form.

In C's eigenbasis every direction is on its own: with an eigenvalue c, z ~ N(alpha m, alpha^2 c + sigma^2) and

    E[x | z] = m + alpha c / (alpha^2 c + sigma^2) (z - alpha m),    Var[x | z] = c sigma^2 / (alpha^2 c + sigma^2)

Source: Bishop 2006, Pattern Recognition and Machine Learning, eq. 2.116.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffcore import _array, _check, _memory, _streams, noise
from diffcore._array import Array
from diffcore.exact import _flow
from diffcore.exact._conditional import check_observation, condition
from diffcore.exact._denoiser import Denoiser
from diffcore.exact._parts import (
    Covariance,
    Diagonal,
    Float64,
    LowRank,
    Parts,
    Spectral,
    cast,
    check_covariance,
    check_event,
    parts_of,
)
from diffcore.exact._weighing import model_of


@dataclass(frozen=True, eq=False)
class Gaussian(Denoiser):
    r"""Gaussian data N(mean, covariance), and its exact denoiser E[x | z_t].

    Args:
        mean: (*event,), of any library; kept on the host in float64.
        covariance: a number c, for c I; the mean's shape, the variance of each element; (D, D) with D the number of
            elements of an event, in row-major order; or `LowRank(factor, variance)`. Variances of 0 are allowed.
        scaling: "vp", "ve" or "flow"; None is the plan's in `diffcore.sample`, and "vp" in a call of one's own.

    Raises:
        ValueError: a shape that does not fit, entries that are not finite, a matrix that is not symmetric or has a
            negative eigenvalue, an unknown scaling.

    Called as `data(z, log_snr)`, see `denoise`.

    >>> data = Gaussian(np.zeros(2), np.diag([1.0, 0.0]))
    >>> data(np.ones((1, 2)), 0.0).round(6)
    array([[0.707107, 0.      ]])
    """

    mean: Array
    covariance: Any

    def __post_init__(self) -> None:
        function = self._begin()
        mean = check_event(function, "mean", self.mean, 0)
        covariance = check_covariance(function, "covariance", self.covariance, mean.shape)
        model = model_of(np.ones(1), parts_of(function, "covariance", mean[None], [covariance]))
        self._set(mean=mean, event=mean.shape, model=model, covariance=in_event(covariance, mean.shape))

    def __repr__(self) -> str:
        return f"Gaussian(event={self.event}, covariance={kind(self.covariance, self.event)}, scaling={self.scaling!r})"

    def conditional(self, observed: Array, mask: Array) -> Gaussian:
        r"""Return the distribution of all of x given its elements under the mask: a Gaussian that is certain of those.

            m_b + C_ba C_aa^{-1} (x^a - m_a),    C_bb - C_ba C_aa^{-1} C_ab

        Args:
            observed: broadcasts to the event; only the elements under the mask count.
            mask: booleans, or 0 and 1, that broadcast to the event; true (1) is known.

        Raises:
            ValueError: `observed` or `mask` does not broadcast, or a known element is not finite.

        Source: Bishop 2006, eq. 2.81-2.82.

        >>> Gaussian(np.zeros(2), np.array([[1.0, 0.5], [0.5, 1.0]])).conditional(np.ones(2), [True, False]).mean
        array([1. , 0.5])
        """
        function = "exact.Gaussian.conditional"
        given, known = check_observation(function, observed, mask, self.event)
        covariance = self.covariance
        if isinstance(covariance, np.ndarray) and covariance.shape == self.event:
            covariance = covariance.ravel()
        mean, left = condition(function, self.mean.ravel(), covariance, given.ravel(), known.ravel())
        return Gaussian(mean.reshape(self.event), in_event(left, self.event), scaling=self.scaling)

    def flow_map(self, z: Array, log_snr: Array, next_log_snr: Array) -> Array:
        r"""Return where the probability-flow ODE leads from z at one level to another, in either direction.

            z_s = alpha_s m + (alpha_s^2 C + sigma_s^2 I)^{1/2} (alpha_t^2 C + sigma_t^2 I)^{-1/2} (z_t - alpha_t m)

        Args:
            z, log_snr: as for `denoise`.
            next_log_snr: the level that it leads to, of a shape as `log_snr`; inf is clean data.

        Raises:
            as `denoise`; ValueError: levels that differ between elements which the covariance mixes.

        >>> Gaussian(np.zeros(1), 4.0).flow_map(np.ones((1, 1)), -np.inf, np.inf)
        array([[2.]])
        """
        return self._carried(_flow.flow_map, "flow_map", z, log_snr, next_log_snr)

    def consistency(self, z: Array, log_snr: Array) -> Array:
        """Return the consistency function, the clean end of z's trajectory: `flow_map` to log_snr = inf.

        Args, raises: as for `flow_map`.

        Source: Song et al. 2023 (arXiv 2303.01469), sec. 3.
        """
        return self.flow_map(z, log_snr, np.inf)

    def average_velocity(self, z: Array, log_snr: Array, next_log_snr: Array) -> Array:
        r"""Return the average velocity (z_t - z_s) / (sigma_t - sigma_s) of the ODE under "flow": what MeanFlow learns.

        At equal levels it is the velocity E[eps - x | z]. As a denoiser under `samplers.flow_map`, of prediction "flow", it takes
        any step exactly.

        Args:
            z, log_snr, next_log_snr: as for `flow_map`.

        Raises:
            as `flow_map`; ValueError: the scaling is neither "flow" nor None.

        Source: Geng et al. 2025 (arXiv 2505.13447), eq. 3.

        >>> Gaussian(np.ones(1), 0.0).average_velocity(np.zeros((1, 1)), -np.inf, np.inf)     # eps - x
        array([[-1.]])
        """
        if self.scaling not in (None, "flow"):
            must, hint = "be 'flow' or None for a velocity in sigma", "use with_scaling('flow')"
            raise _check.error(ValueError, "exact.Gaussian.average_velocity", "scaling", must, self.scaling, hint)
        flow = self._with(scaling="flow")
        return flow._carried(_flow.average_velocity, "average_velocity", z, log_snr, next_log_snr)

    def _carried(self, function: Any, method: str, z: Array, log_snr: Array, next_log_snr: Array) -> Array:
        t, s = self._enter(method, z, log_snr), self._enter(method, z, next_log_snr)
        parts = self._model(t, direct=True).parts
        with _array.quiet(t.xp):
            return t.leave(function(parts, t, s))

    def sample(self, seed: Any, count: int, *, like: Array | None = None) -> Array:
        """Return samples of the data, m + C^{1/2} eps, (count, *event), by the noise of the library.

        Args:
            seed: one int, of which each sample gets its own key, or one int or key per sample: see `noise.keys`. So fewer
                samples are the first of more.
            count: how many.
            like: an array that gives library, dtype and device; NumPy float64 without one.
        """
        eps = normals("exact.Gaussian.sample", seed, count, self.event)
        drawn = coloured(self.model.parts, 0, eps).reshape(count, *self.event)
        return drawn if like is None else cast(drawn, like)


def gaussian_of(mean: Float64, covariance: Covariance, parts: Parts, scaling: str | None) -> Gaussian:
    """Return the Gaussian of one component that is already checked and decomposed."""
    made = object.__new__(Gaussian)
    model = model_of(np.ones(1), parts)
    made._set(mean=mean, covariance=in_event(covariance, mean.shape), scaling=scaling, event=mean.shape, model=model)
    return made


def in_event(covariance: Covariance, event: tuple[int, ...]) -> Covariance:
    """Return a covariance, a diagonal in the shape of the event."""
    return covariance.reshape(event) if isinstance(covariance, np.ndarray) and covariance.ndim == 1 else covariance


def normals(function: str, seed: Any, count: int, event: tuple[int, ...]) -> Float64:
    """Return standard normal noise for samples of data, (count, D) on the host."""
    check_count(function, count, math.prod(event))
    drawn = noise.normal(seed, 0, (count, math.prod(event)), dtype=np.dtype(np.float64), stream=_streams.DATA)
    return np.asarray(drawn)


def check_count(function: str, count: int, size: int) -> None:
    """Raise unless samples of so many float64 elements fit in memory, with what makes them."""
    _check.integer(function, "count", count)
    hint = "draw them in parts: sample(noise.keys(seed, n, first=k), n)"
    _memory.fits(function, "count", count, 8 * count * (3 * size + 4), hint=hint)


def coloured(parts: Any, component: int, eps: Float64) -> Float64:
    """Return m + C^{1/2} eps of one component on the host, for eps (n, D)."""
    mean = parts.mean[component]
    if isinstance(parts, Diagonal):
        return np.asarray(mean + np.sqrt(parts.variance[component]) * eps)
    assert isinstance(parts, Spectral)
    basis, values = parts.basis[component], parts.values[component]
    inside = eps @ basis
    if parts.rest is None or parts.plain is None:
        return np.asarray(mean + (inside * np.sqrt(values)) @ basis.T)
    spread = (np.sqrt(values) - np.sqrt(parts.plain[component])) * inside
    return np.asarray(mean + np.sqrt(parts.rest[component]) * eps + spread @ basis.T)


def kind(covariance: Any, event: tuple[int, ...]) -> str:
    """Return in a few words what form a covariance has."""
    if isinstance(covariance, LowRank):
        return f"low rank {covariance.factor.shape[-1]}"
    if np.ndim(covariance) == 0:
        return f"{float(covariance):g}"
    return "diagonal" if np.shape(covariance)[-len(event) :] == event else "full"
