r"""Shared by the guided denoisers: the terms they are conditioned on, and x-hat with its Jacobian.

A denoiser returns y at z. x-hat = p z + q y, so a change of x-hat by delta is a change of y by delta / q, and

    J^T u = p u + (dy/dz)^T (q u),    J = d x-hat / dz.

Neither p nor 1 / q is finite at every level: where y does not determine x (eps at alpha = 0) x-hat is unknown, and
where z alone determines it (sigma = 0) y cannot change it. In both cases y stays as it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from diffcore import _array, _check, _wrapping
from diffcore._array import Array
from diffcore._dispatch import backend_of
from diffcore._wrapping import along
from diffcore.conditioning._observed import check, known_of, weigh
from diffcore.levels import Level
from diffcore.predictions import Prediction
from diffcore.schedules import Schedule

Pull = Callable[[Array], Array]
"""A linear map as a function: a pullback u -> J^T u, or a product v -> A v."""


@dataclass(frozen=True, eq=False)
class Term:
    """One condition: A(x) = observed where the mask is true; A is the identity where `measure` is None."""

    parts: ClassVar = ("observed", "mask")
    observed: Any
    mask: Any
    measure: Callable[[Array], Array] | None
    strength: Any
    """The weight of reconstruction guidance or DPS, or the standard deviation of the observation's noise."""


@dataclass(frozen=True, eq=False)
class Guided(_wrapping.Staged, _wrapping.Scaled, ABC):
    """A denoiser (z, log_snr) -> prediction that is conditioned on terms: a method is its `shift` of x-hat."""

    parts: ClassVar = ("denoise", "terms")
    function: ClassVar[str]
    """What messages call it."""
    gradients: ClassVar[bool] = True
    """Whether it takes the Jacobian of the denoiser."""
    denoise: Callable[[Array, Array], Array]
    terms: tuple[Term, ...]
    prediction: Prediction
    scaling: str | None

    @abstractmethod
    def shift(self, at: Linear) -> Array:
        """Return what is added to x-hat."""

    def __call__(self, z: Array, log_snr: Array) -> Array:
        """Return the guided prediction at z, of its shape and dtype."""
        return self.with_unguided(z, log_snr)[0]

    def with_unguided(self, z: Array, log_snr: Array) -> tuple[Array, Array]:
        """Return the guided prediction at z and the one without guidance, for plans that read both."""
        at = linearise(self.function, self, z, log_snr, gradients=self.gradients)
        xp = _array.library(z)
        moved = at.y + at.from_x * self.shift(at)
        return xp.astype(moved, z.dtype, copy=False), xp.astype(at.y, z.dtype, copy=False)


def given(
    function: str,
    kind: type[Guided],
    denoise: Any,
    term: Term,
    prediction: Prediction | None,
    schedule: Schedule | None,
) -> tuple[Any, tuple[Term, ...], Prediction, str | None]:
    """Return the fields that all wrappers share, checked; a denoiser wrapped in the same way contributes its terms."""
    if term.measure is not None:
        _check.callable_(function, "measure", term.measure, "a function x -> array")
    check(function, term.observed, term.mask)
    denoise, prediction, scaling = _wrapping.given(function, denoise, prediction, schedule)
    if isinstance(denoise, kind):
        return denoise.denoise, (*denoise.terms, term), prediction, scaling
    return denoise, (term,), prediction, scaling


class Linear(NamedTuple):
    """A denoiser at z: its output y, x-hat, u -> J^T u, the step of y per step of x-hat, and the level; all widened."""

    y: Array
    x: Array
    pull: Pull
    from_x: Any
    level: Level


def linearise(function: str, guided: Guided, z: Array, log_snr: Array, *, gradients: bool = True) -> Linear:
    """Call the denoiser once, and return it with its Jacobian, where that is wanted."""
    xp = _array.namespace(function, z=z)
    _array.check_floating(function, z=z)
    wide, level = _array.widen(xp, z), _wrapping.level_of(function, log_snr, guided.scaling)
    p, q, from_x = _wrapping.mixing(function, level, guided.prediction, "x", wide)
    y, pull_y = _jacobian(function, guided, z, wide, log_snr, level, gradients)
    return Linear(y, p * wide + q * y, lambda u: p * u + pull_y(q * u), from_x, level)


def _jacobian(
    function: str, guided: Guided, z: Array, wide: Array, log_snr: Array, level: Level, gradients: bool
) -> tuple[Array, Pull]:
    """Return y and u -> (dy/dz)^T u: by the library's gradients, or in closed form for an exact denoiser on NumPy."""
    xp, denoise = _array.library(z), guided.denoise

    def predicted(at: Array) -> Array:
        y = denoise(xp.astype(at, z.dtype, copy=False), log_snr)
        if tuple(y.shape) != tuple(z.shape):
            raise ValueError(
                f"{function}: `denoise` must return the shape of z, {tuple(z.shape)}, got {tuple(y.shape)}"
            )
        return _array.widen(xp, y)

    if not gradients:
        return predicted(wide), xp.zeros_like
    if not isinstance(z, np.ndarray) or not hasattr(denoise, "posterior_covariance") or guided.prediction != "x":
        found: tuple[Array, Pull] = backend_of(z).gradient(predicted, wide)
        return found
    covariance = _array.widen(np, denoise.posterior_covariance(z, log_snr))  # = J diag(sigma^2 / alpha), symmetric
    sigma, alpha = (along(function, part, wide) for part in (level.sigma, level.alpha))
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.where(np.asarray(sigma) > 0.0, alpha / np.square(sigma), 0.0).astype(wide.dtype)

    def pull(u: Array) -> Array:
        flat = np.reshape(u, (u.shape[0], covariance.shape[-1], 1))
        return np.asarray(scale * np.reshape(np.matmul(covariance, flat), u.shape))

    return predicted(wide), pull


class Seen(NamedTuple):
    """A term at x-hat, all times the root of the mask's weights: observed - A(x-hat); u -> A^T u; v -> A v, at first order."""

    residual: Array
    adjoint: Pull
    product: Pull


def see(function: str, term: Term, x: Array) -> Seen:
    """Return a term's residual at x-hat, with A and A^T."""
    xp = _array.library(x)
    if term.measure is None:
        truth, known = known_of(function, term.observed, term.mask, x)
        only: Pull = lambda u: weigh(known, u, root=True)  # noqa: E731
        return Seen(only(truth - x), only, only)
    measure, backend = term.measure, backend_of(x)
    adjoint = getattr(measure, "adjoint", None)  # of a linear measurement that has one: no gradient is needed
    found, pull = backend.gradient(measure, x) if adjoint is None else (measure(x), adjoint)
    try:
        truth, known = known_of(function, term.observed, term.mask, found)
    except ValueError as error:
        raise ValueError(f"{error}; here the data is `measure(x)` for x of shape {tuple(x.shape)}") from None
    weighed: Pull = lambda u: weigh(known, u, root=True)  # noqa: E731

    def product(v: Array) -> Array:
        if adjoint is not None:
            return weighed(measure(v))
        # the pullback is linear in its cotangent, so its own pullback is A: no forward mode is needed
        transposed = backend.gradient(lambda u: backend.gradient(measure, x)[1](u), xp.zeros_like(found))[1]
        return weighed(transposed(v))

    return Seen(weighed(truth - found), lambda u: pull(weighed(u)), product)
