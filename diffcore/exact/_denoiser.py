r"""What the exact distributions share: they are called with data and levels of any library, and have the same methods.

Gaussian data is one component, a mixture K, a finite data set one of variance 0 for each point.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np

from diffcore import _array, levels
from diffcore._array import Array
from diffcore.exact import _components, _isotropic
from diffcore.exact._components import DENSITY, SCORE, X
from diffcore.exact._parts import cast, fits
from diffcore.exact._weighing import Entered, Model, by_components, joint, softmax


@dataclass(frozen=True, eq=False)
class Denoiser:
    """A distribution of data, which is at once its own denoiser E[x | z_t]: final classes give it an `event` and a `model`."""

    prediction: ClassVar[str] = "x"
    scaling: str | None = field(default=None, kw_only=True)
    event: tuple[int, ...] = field(init=False, repr=False)
    model: Model = field(init=False, repr=False)
    near: Model | None = field(init=False, repr=False, default=None)

    def _begin(self) -> str:
        """Check the scaling, and return what messages call the class."""
        function = f"exact.{type(self).__name__}"
        if self.scaling is not None:
            levels.check_scaling(function, self.scaling)
        return function

    def _set(self, **fields: Any) -> None:
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def __call__(self, z: Array, log_snr: Array) -> Array:
        """Return E[x | z_t]; see `denoise`."""
        return self.denoise(z, log_snr)

    def denoise(self, z: Array, log_snr: Array) -> Array:
        r"""Return E[x | z_t], the best prediction of x in the squared error, finite at lambda = +-inf.

            one Gaussian: m + alpha C (alpha^2 C + sigma^2 I)^{-1} (z - alpha m); else their average by responsibility

        Args:
            z: noisy data (B, *event), a floating array of any library; half precision is computed in float32.
            log_snr: a number, or an array of shape (), (B,) or (B, T) in z's library or NumPy.

        Returns:
            An array of the shape, dtype, library and device of `z`.

        Raises:
            TypeError: an integer array, or arrays of two libraries.
            ValueError: `z` is not (B, *event), or `log_snr` does not align with its leading axes.

        Source: Bishop 2006, Pattern Recognition and Machine Learning, eq. 2.116 and 9.13.
        """
        at = self._enter("denoise", z, log_snr)
        return at.leave(self._evaluate(at, X)[1])

    def score(self, z: Array, log_snr: Array) -> Array:
        r"""Return grad_z log q(z_t), of the shape of z, = (alpha x-hat - z) / sigma^2 but free of its cancellation.

        Args, raises: as for `denoise`. A direction with no variance left at sigma = 0 has no score; it gets a large
        finite number.

        Source: Efron 2011 (doi 10.1198/jasa.2011.tm11181), eq. 1.4 (Tweedie's formula).
        """
        at = self._enter("score", z, log_snr)
        return at.leave(self._evaluate(at, SCORE)[1])

    def log_likelihood(self, z: Array, log_snr: Array) -> Array:
        r"""Return log q(z_t) in nats, (B,), of at least float32; at log_snr = inf the log-density of the data.

        Args, raises: as for `denoise`. A direction with no variance left at sigma = 0 has no density: it counts as one
        of a variance near the smallest number of the dtype, so the result is large and finite.
        """
        at = self._enter("log_likelihood", z, log_snr)
        return self._evaluate(at, DENSITY)[0] - 0.5 * at.z.shape[1] * math.log(2.0 * math.pi)

    def posterior_covariance(self, z: Array, log_snr: Array) -> Array:
        r"""Return Cov[x | z_t] = (sigma^2 / alpha) d x-hat / dz, (B, D, D) with D the number of elements of an event.

            sum_k rho_k (Cov_k + (x_k - x-hat)(x_k - x-hat)^T),   Cov_k = sigma^2 C_k (alpha^2 C_k + sigma^2 I)^{-1}

        Args, raises: as for `denoise`. One Gaussian's does not depend on the values of z.

        Source: Bishop 2006, eq. 2.117.

        >>> from diffcore.exact import Empirical
        >>> Empirical(np.array([[-1.0], [1.0]])).posterior_covariance(np.zeros((1, 1)), 0.0)
        array([[[1.]]])
        """
        xp = _array.namespace("exact.posterior_covariance", z=z)

        def between(weighted: Array, apart: Array) -> Array:
            return xp.matmul(xp.permute_dims(weighted, (1, 2, 0)), xp.permute_dims(apart, (1, 0, 2)))

        return self._spread("posterior_covariance", z, log_snr, _components.posterior_covariance, between)[1]

    def posterior_variance(self, z: Array, log_snr: Array) -> Array:
        """Return Var[x | z_t] of each element, of the shape of z: the diagonal of `posterior_covariance`, on its own.

        Args, raises: as for `denoise`.
        """
        xp = _array.namespace("exact.posterior_variance", z=z)

        def between(weighted: Array, apart: Array) -> Array:
            return xp.sum(weighted * apart, axis=0)

        at, found = self._spread("posterior_variance", z, log_snr, _components.posterior_variance, between)
        return at.leave(found)

    def conditional_denoise(self, z: Array, log_snr: Array, observed: Array, mask: Array) -> Array:
        r"""Return E[x | z_t, x^a], the target of every method that conditions without a conditional model.

        What is known is an element at lambda = inf: z^a is replaced by x^a and its level by alpha = 1, sigma = 0. So
        the result does not depend on z^a.

        Args:
            z, log_snr: as for `denoise`.
            observed: x, of which only the elements under the mask count; broadcasts to z, and is of its library.
            mask: booleans, or 0 and 1, that broadcast to z; true (1) is known.

        Returns:
            An array like `z`; under the mask it is `observed` exactly.

        Raises:
            as `denoise`; ValueError: `observed` or `mask` does not broadcast to z.

        Source: Ho et al. 2022 (arXiv 2204.03458), eq. 6 and above: the quantity that reconstruction guidance
        approximates.
        """
        at = self._enter("conditional_denoise", z, log_snr)
        function, xp = f"exact.{type(self).__name__}.conditional_denoise", at.xp
        known = xp.astype(_beside(function, "mask", mask, z, at), xp.bool)
        given = xp.astype(_beside(function, "observed", observed, z, at), at.z.dtype)
        one = xp.ones_like(at.z)
        inside = at._replace(
            z=xp.where(known, given, at.z),
            alpha=xp.where(known, one, at.alpha * one),
            sigma=xp.where(known, 0.0 * one, at.sigma * one),
        )
        return at.leave(xp.where(known, given, self._evaluate(inside, X, direct=True)[1]))

    def with_scaling(self, scaling: str) -> Self:
        """Return the same distribution as a denoiser for "vp", "ve" or "flow"."""
        levels.check_scaling(f"exact.{type(self).__name__}.with_scaling", scaling)
        return self._with(scaling=scaling)

    def to(self, like: Array) -> Self:
        """Return it with its parameters in like's library, dtype (at least float32) and device, where calls convert
        nothing; calls with other arrays still work, and convert.
        """
        xp = _array.namespace(f"exact.{type(self).__name__}.to", like=like)
        _array.check_floating(f"exact.{type(self).__name__}.to", like=like)
        wide = _array.widen(xp, like)
        keep = self.model if self.model.fast is None else self.model._replace(parts=None)
        return self._with(near=_map(lambda leaf: cast(leaf, wide), keep))

    def _with(self, **fields: Any) -> Self:
        """Return a copy with other values in some fields, without building it again."""
        moved = copy.copy(self)
        moved._set(**fields)
        return moved

    def _enter(self, method: str, z: Array, log_snr: Array) -> Entered:
        function = f"exact.{type(self).__name__}.{method}"
        xp = _array.namespace(function, z=z)
        _array.check_floating(function, z=z)
        if _array.library(z) is None or tuple(z.shape[1:]) != self.event or z.ndim == 0:
            shape = ", ".join(["B", *map(str, self.event)])
            raise ValueError(f"{function}: `z` must have shape ({shape}), got {np.shape(z)}")
        wide = _array.widen(xp, z)
        if not isinstance(log_snr, np.ndarray):
            _array.namespace(function, z=z, log_snr=log_snr)
        level = levels.level(log_snr, self.scaling or "vp")
        _array.check_lead(function, "log_snr", tuple(np.shape(level.alpha)), tuple(z.shape))
        large = 1.0 / _components.smallest(xp, wide.dtype) ** 0.5
        with _array.quiet(xp):
            alpha, sigma = (self._along(xp, part, wide) for part in (level.alpha, level.sigma))
            sigma = xp.where(sigma < large, sigma, xp.full_like(sigma, large))  # inf under "ve", where x is unknown
        flat = xp.reshape(wide, (z.shape[0], math.prod(self.event)))
        return Entered(xp, flat, alpha, sigma, tuple(z.shape), z.dtype)

    def _along(self, xp: Any, part: Array, z: Array) -> Array:
        """Return a level (), (B,), (B, T), ... as (1 or B, 1 or D)."""
        if _array.library(part) is not xp or isinstance(part, np.generic):
            part = xp.asarray(np.array(part, dtype=np.float64), device=_array.device(z), dtype=z.dtype)
        part = xp.astype(part, z.dtype, copy=False)
        if part.ndim < 2:
            return xp.reshape(part, (-1, 1))
        part = xp.reshape(part, tuple(part.shape) + (1,) * (z.ndim - part.ndim))
        return xp.reshape(xp.broadcast_to(part, (part.shape[0], *self.event)), (part.shape[0], -1))

    def _model(self, at: Entered, direct: bool = False) -> Model:
        """Return the model in the data's library: by matrix products where that can be done and is not refused."""
        fast = self.model.fast
        per_sample = at.alpha.shape[1] == 1 and at.sigma.shape[1] == 1
        if fast is not None and not direct and (per_sample or fast.variance.shape[0] == 1):
            chosen, other = "fast", "parts"
        else:
            chosen, other = "parts", "fast"
        near = self.near
        if near is not None and getattr(near, chosen) is not None and fits(near.log_weights, at.z):
            return near if getattr(near, other) is None else near._replace(**{other: None})
        found: Model = _map(lambda leaf: cast(leaf, at.z), self.model._replace(**{other: None}))
        return found

    def _evaluate(self, at: Entered, want: str, *, direct: bool = False) -> tuple[Array, Array]:
        """Return log q(z_t) but for the factor of 2 pi, (B,), and E[x | z_t] or the score, (B, D)."""
        model, xp = self._model(at, direct), at.xp
        with _array.quiet(xp):
            if model.fast is not None:
                logits, offset, total = _isotropic.logits(xp, model.fast, model.log_weights, at.z, at.alpha, at.sigma)
                weights, density = softmax(xp, logits, axis=1)
                vector = _isotropic.combine(xp, model.fast, weights, total, at.z, at.alpha, want)
                return density - offset[:, 0], vector
            return by_components(model, at, want)

    def _spread(self, method: str, z: Array, log_snr: Array, within: Any, between: Any) -> tuple[Entered, Array]:
        """Return sum_k rho_k (within_k + between(x_k - x-hat)), component by component."""
        at = self._enter(method, z, log_snr)
        model, xp = self._model(at, direct=True), at.xp
        assert model.parts is not None
        with _array.quiet(xp):
            rho = softmax(xp, joint(model, at), axis=0)[0]
            centre = by_components(model, at, X)[1]
            total: Any = 0.0
            for which in _components.turns(model.parts, levels_differ=True):
                part = _components.some(model.parts, which)
                apart = _components.solve(xp, part, at.z, at.alpha, at.sigma, X).vector - centre
                inside = within(xp, part, at.alpha, at.sigma)
                shape = rho[which, :].shape + (1,) * (inside.ndim - 2)
                total = total + between(rho[which, :, None] * apart, apart)
                total = total + xp.sum(xp.reshape(rho[which, :], shape) * inside, axis=0)
        return at, total


class Weighed(Denoiser):
    """A distribution of several components, each of which may have made z."""

    def responsibilities(self, z: Array, log_snr: Array) -> Array:
        """Return rho, (B, K): how likely each component, or point, is to have made z_t; rows sum to one, at lambda = +-inf too.

        At sigma = 0 it is 1 for the nearest of points. Args, raises: as for `denoise`.

        >>> from diffcore.exact import Mixture
        >>> Mixture([0.5, 0.5], np.array([[-1.0], [1.0]]), 0.1).responsibilities(np.zeros((1, 1)), 3.0)
        array([[0.5, 0.5]])
        """
        at = self._enter("responsibilities", z, log_snr)
        model, xp = self._model(at), at.xp
        with _array.quiet(xp):
            if model.fast is not None:
                logits = _isotropic.logits(xp, model.fast, model.log_weights, at.z, at.alpha, at.sigma)[0]
            else:
                logits = xp.matrix_transpose(joint(model, at))
            return softmax(xp, logits, axis=1)[0]


def _beside(function: str, argument: str, value: Array, z: Array, at: Entered) -> Array:
    """Return an array of the host or of z's library, broadcast to z and flattened."""
    xp = at.xp
    if isinstance(value, (*_array.NUMBERS, np.ndarray, list, tuple)):
        found = np.asarray(value)
        found = found if found.dtype == np.bool_ else found.astype(np.float64)
        value = xp.asarray(found.copy(), device=_array.device(z), dtype=None if found.dtype == np.bool_ else at.z.dtype)
    _array.namespace(function, z=z, **{argument: value})
    shape = tuple(value.shape)
    if len(shape) > z.ndim or any(n not in (1, m) for n, m in zip(shape[::-1], tuple(z.shape)[::-1], strict=False)):
        raise ValueError(f"{function}: `{argument}` must broadcast to `z`, {tuple(z.shape)}, got shape {shape}")
    return xp.reshape(xp.broadcast_to(value, z.shape), at.z.shape)


def _map(function: Any, tree: Any) -> Any:
    """Apply a function to the arrays of nested named tuples."""
    if tree is None:
        return None
    return type(tree)(*(_map(function, leaf) for leaf in tree)) if isinstance(tree, tuple) else function(tree)
