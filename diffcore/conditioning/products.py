r"""Products of densities, as denoisers: sets of independent observations, and another prior, as in simulation-based inference.

For q(x) proportional to prod_k p_k(x)^{w_k} with sum w_k = 1, what is known of x at z factorises in the same way,

    q(x | z) = q(x) N(z; alpha x, sigma^2) / ... = prod_k p_k(x | z)^{w_k} / ...

since the one N(z; alpha x, sigma^2) is shared out by the powers. Where every p_k(x | z) is a Gaussian N(x-hat_k, S_k), so is the
product:

    x-hat = L^{-1} sum_k w_k S_k^{-1} x-hat_k,    L = sum_k w_k S_k^{-1}

which is exact for Gaussians at every level. With equal S_k it is sum_k w_k x-hat_k, the sum of the scores; but the noisy density
of a product is not the product of the noisy densities, and that sum is exact at the clean end only.

Source: Linhart et al. 2024 (arXiv 2404.07593), sec. 3; Geffner et al. 2023 (arXiv 2209.14249), sec. 3, for the sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from diffcore import _array, _brief, _check, _wrapping, levels, predictions
from diffcore._array import Array
from diffcore._dispatch import backend_of
from diffcore.predictions import Prediction

Denoise = Callable[[Array, Array], Array]


class _At(NamedTuple):
    """What a call works with: z and its level, laid flat (B, D), the shape of z, and the level itself.

    Where data is clean to rounding S_k = sigma^2 / alpha^2 for every k, and its square underflows: `sigma` is at least 1e-17 alpha.
    """

    xp: Any
    flat: Array
    alpha: Array
    sigma: Array
    clean: Array
    level: levels.Level
    z: Array
    log_snr: Array


@dataclass(frozen=True, eq=False)
class Product:
    """A denoiser of prod_k p_k^{w_k}, from `product`; it returns x-hat."""

    parts: ClassVar = ("denoisers", "covariances")
    denoisers: tuple[Denoise, ...]
    powers: tuple[float, ...]
    kinds: tuple[Prediction, ...]
    covariances: tuple[Any, ...] | str | None
    scaling: str | None
    prediction: ClassVar[str] = "x"
    __repr__ = _brief.fields

    def __call__(self, z: Array, log_snr: Array) -> Array:
        """Return x-hat of the product."""
        return self._solved(z, log_snr)[0]

    def posterior_covariance(self, z: Array, log_snr: Array) -> Array:
        """Return Cov[x | z] = L^{-1}, (B, D, D)."""
        _, at, spread, inverse = self._solved(z, log_snr)
        if self.covariances == "equal":
            must = "be None or those of the factors, for a covariance of their product"
            raise _check.error(ValueError, "conditioning.product", "covariances", must, "equal")
        scale = at.xp.where(at.clean, at.xp.zeros_like(spread), 1.0 / spread)
        if inverse.ndim == 2:
            unit = at.xp.eye(inverse.shape[1], dtype=inverse.dtype, device=_array.device(z))
            inverse = inverse[:, :, None] * unit
        return scale[:, :, None] * inverse * scale[:, None, :]

    def with_scaling(self, scaling: str) -> Self:
        """Return the same denoiser for "vp", "ve" or "flow"."""
        levels.check_scaling("conditioning.product", scaling)
        return replace(
            self, scaling=scaling, denoisers=tuple(_wrapping.scaled(part, scaling) for part in self.denoisers)
        )

    def _solved(self, z: Array, log_snr: Array) -> tuple[Array, _At, Array, Array]:
        """Return x-hat, the level, and the spread s with s L^{-1} s: s^2 = 1 + e^lambda keeps it finite at both ends."""
        at = _enter(z, log_snr, self.scaling or "vp")
        xp = at.xp
        found = [self._factor(k, at) for k in range(len(self.powers))]
        spread = xp.hypot(at.alpha / at.sigma, xp.ones_like(at.alpha))
        if self.covariances == "equal":
            x = sum(power * x for power, (x, _) in zip(self.powers, found, strict=True))
            return xp.astype(xp.reshape(x, z.shape), z.dtype, copy=False), at, spread, x
        full = any(covariance.ndim == 3 for _, covariance in found)
        precision: Any = 0.0
        pulled: Any = 0.0
        unit = xp.eye(at.flat.shape[1], dtype=at.flat.dtype, device=_array.device(z)) if full else None
        for power, (x, covariance) in zip(self.powers, found, strict=True):
            if full:
                covariance = covariance[:, :, None] * unit if covariance.ndim == 2 else covariance
                scaled = spread[:, :, None] * covariance * spread[:, None, :]
                inside = xp.linalg.inv(xp.where(at.clean[:, :, None] | at.clean[:, None, :], unit, scaled))
                pulled = pulled + power * xp.matmul(inside, (spread * x)[:, :, None])[..., 0]
            else:
                inside = 1.0 / xp.where(at.clean, xp.ones_like(spread), spread * spread * covariance)
                pulled = pulled + power * inside * spread * x
            precision = precision + power * inside
        inverse = xp.linalg.inv(precision) if full else 1.0 / precision
        x = (xp.matmul(inverse, pulled[:, :, None])[..., 0] if full else inverse * pulled) / spread
        return xp.astype(xp.reshape(x, z.shape), z.dtype, copy=False), at, spread, inverse

    def _factor(self, k: int, at: _At) -> tuple[Array, Array]:
        """Return x-hat (B, D) and Cov[x | z] of a factor, (B, D) or (B, D, D)."""
        denoise, xp, kind = self.denoisers[k], at.xp, self.kinds[k]

        def x_hat(z: Array) -> Array:
            y = _array.widen(xp, denoise(xp.astype(z, at.z.dtype, copy=False), at.log_snr))
            return predictions.convert(y, z, at.level, source=kind, target="x")

        wide = _array.widen(xp, at.z)
        if self.covariances == "equal":
            return xp.reshape(x_hat(wide), at.flat.shape), at.flat
        if self.covariances is not None:
            return xp.reshape(x_hat(wide), at.flat.shape), _of_data(self.covariances[k], at)
        if hasattr(denoise, "posterior_covariance"):
            return xp.reshape(x_hat(wide), at.flat.shape), denoise.posterior_covariance(wide, at.log_snr)
        known = _array.known(at.level.sigma), _array.known(at.level.alpha)
        if not any(part is None for part in known) and not np.all(np.isfinite(known[0]) & (known[1] > 0.0)):
            must, hint = "be finite for a covariance by the denoiser's Jacobian", "or give `covariances`"
            raise _check.error(ValueError, "conditioning.product", "log_snr", must, at.log_snr, hint)
        x, pull = backend_of(at.z).gradient(x_hat, wide)
        size = at.flat.shape[1]
        units = xp.eye(size, dtype=wide.dtype, device=_array.device(wide))
        rows = []
        for i in range(size):
            unit = xp.broadcast_to(xp.reshape(units[i, :], (1, *wide.shape[1:])), wide.shape)
            rows.append(xp.reshape(pull(unit), at.flat.shape))
        jacobian = xp.stack(rows, axis=1) * (at.sigma**2 / at.alpha)[:, None, :]
        return xp.reshape(x, at.flat.shape), 0.5 * (jacobian + xp.matrix_transpose(jacobian))


def product(
    denoisers: Sequence[Denoise],
    powers: Sequence[float],
    *,
    prediction: Prediction | None = None,
    covariances: Sequence[Any] | str | None = None,
    scaling: str | None = None,
) -> Product:
    r"""Return a denoiser of the density that is proportional to prod_k p_k(x)^{w_k}, given denoisers of all p_k.

        x-hat = L^{-1} sum_k w_k S_k^{-1} x-hat_k,    S_k = Cov_k[x | z],    L = sum_k w_k S_k^{-1}

    Exact where the p_k are Gaussian. Otherwise it takes every p_k(x | z) for the Gaussian of its two moments.

    Args:
        denoisers: K callables (z, log_snr) -> prediction.
        powers: K numbers w_k of sum 1, of any sign; their product must have a density.
        prediction: what all of them return; may be left out where each has an attribute `prediction`.
        covariances: S_k, in one of three ways. None: in closed form for denoisers with a `posterior_covariance`, as those of
            `diffcore.exact`, else (sigma^2 / alpha) d x-hat / dz by D pullbacks, for the few parameters of a simulator. K
            covariances C_k of the p_k themselves (a number, the variance of each element, or (D, D)), as if they were
            Gaussian, without gradients: S_k = (e^lambda I + C_k^{-1})^{-1}. "equal": x-hat = sum_k w_k x-hat_k, the sum of the
            scores, which is biased.
        scaling: "vp", "ve" or "flow"; None is the plan's in `diffcore.sample`.

    Returns:
        `Product`, a callable (z, log_snr) -> x-hat, clean data included, with a `posterior_covariance`, so that products nest.
        Where L is not positive, as it may be far from the data, the result is no mean of anything; "equal" is safe there.

    Raises:
        TypeError: a denoiser that is not callable, or whose prediction is unknown.
        ValueError: powers that do not sum to 1; other numbers of denoisers, powers and covariances.

    Source: Linhart et al. 2024 (arXiv 2404.07593), sec. 3, for the powers 1 and 1 - n; the module for any.

    >>> import diffcore as dc
    >>> narrow, wide = dc.exact.Gaussian(np.ones(1), 0.5), dc.exact.Gaussian(np.zeros(1), 1.0)
    >>> z = np.array([[0.3]])
    >>> both = product([narrow, narrow, wide], [1, 1, -1])          # precision 2 + 2 - 1, mean 4 / 3
    >>> both(z, 0.0).round(12) == dc.exact.Gaussian(np.array([4 / 3]), 1 / 3)(z, 0.0).round(12)
    array([[ True]])
    """
    function = "conditioning.product"
    for argument, value in (("denoisers", denoisers), ("powers", powers)):
        if not isinstance(value, list | tuple | np.ndarray):
            raise _check.error(TypeError, function, argument, "be a list", value)
    if not (covariances is None or isinstance(covariances, list | tuple | np.ndarray | str)):
        must = "be None, 'equal' or a list, one for each denoiser"
        raise _check.error(TypeError, function, "covariances", must, covariances)
    denoisers = tuple(
        _check.callable_(function, f"denoisers[{k}]", part, "a function of (z, log_snr)")
        for k, part in enumerate(denoisers)
    )
    numbers = tuple(_check.number(function, f"powers[{k}]", power) for k, power in enumerate(powers))
    if len(numbers) != len(denoisers) or not numbers:
        must = f"be one number for each of the {len(denoisers)} denoisers"
        raise _check.error(ValueError, function, "powers", must, numbers)
    if abs(math.fsum(numbers) - 1.0) > 1e-9:
        hint = "n posteriors of one prior go with the prior to the power 1 - n: see `conditioning.observations`"
        raise _check.error(ValueError, function, "powers", "sum to 1", numbers, hint)
    if isinstance(covariances, str):
        _check.choice(function, "covariances", covariances, ("equal",))
    elif covariances is not None:
        covariances = tuple(
            _array.to_host(part, np.float64, function=function, argument=f"covariances[{k}]", finite=True)
            for k, part in enumerate(covariances)
        )
        if len(covariances) != len(denoisers):
            must = f"be one for each of the {len(denoisers)} denoisers, None or 'equal'"
            raise _check.error(ValueError, function, "covariances", must, len(covariances))
    kinds = tuple(predictions.kind_of(function, part, prediction) for part in denoisers)
    found = [scaling, *(getattr(part, "scaling", None) for part in denoisers)]
    known = sorted({str(part) for part in found if part is not None})
    if len(known) > 1:
        raise _check.error(ValueError, function, "denoisers", "have one scaling", known)
    made = Product(denoisers, numbers, kinds, covariances, None)
    return made.with_scaling(known[0]) if known else made


def observations(
    posteriors: Sequence[Denoise],
    prior: Denoise,
    *,
    prediction: Prediction | None = None,
    covariances: Sequence[Any] | str | None = None,
    scaling: str | None = None,
) -> Product:
    r"""Return a denoiser of p(x | y_1, ..., y_n) for independent observations, from those of each p(x | y_i) and of the prior.

        p(x | y_1, ..., y_n) = p(x)^{1 - n} prod_i p(x | y_i) / ...

    So one network trained on single observations serves for sets of any size: `[partial(net, cond=y) for y in observed]`.

    Args:
        posteriors: n >= 1 denoisers, one for each observation.
        prior: the denoiser without observations.
        prediction, covariances, scaling: as for `product`; covariances in the order of the posteriors, then the prior.

    Raises:
        as `product`.

    Source: Geffner et al. 2023 (arXiv 2209.14249), sec. 3; Linhart et al. 2024 (arXiv 2404.07593), sec. 3.

    >>> import diffcore as dc
    >>> prior, posterior = dc.exact.Gaussian(np.zeros(1), 1.0), dc.exact.Gaussian(np.array([0.5]), 0.5)   # y = 1, noise 1
    >>> z = np.array([[0.3]])
    >>> found = observations([posterior] * 3, prior)(z, 0.0)                     # three times y = 1: N(3 / 4, 1 / 4)
    >>> bool(abs(found - dc.exact.Gaussian(np.array([0.75]), 0.25)(z, 0.0)) < 1e-12)
    True
    """
    if not isinstance(posteriors, list | tuple):
        must = "be a list of denoisers, one for each observation"
        raise _check.error(TypeError, "conditioning.observations", "posteriors", must, posteriors)
    found = list(posteriors)
    if not found:
        raise _check.error(ValueError, "conditioning.observations", "posteriors", "be at least one denoiser", found)
    powers = [1.0] * len(found) + [1.0 - len(found)]
    return product([*found, prior], powers, prediction=prediction, covariances=covariances, scaling=scaling)


def change_of_prior(
    posterior: Denoise,
    old: Denoise,
    new: Denoise,
    *,
    prediction: Prediction | None = None,
    covariances: Sequence[Any] | str | None = None,
    scaling: str | None = None,
) -> Product:
    r"""Return a denoiser of the posterior under another prior than that of training, p(x | y) p_new(x) / p_old(x).

    Args:
        posterior, old, new: denoisers of p(x | y), p_old(x) and p_new(x).
        prediction, covariances, scaling: as for `product`.

    Raises:
        as `product`.

    >>> import diffcore as dc
    >>> old, new = dc.exact.Gaussian(np.zeros(1), 1.0), dc.exact.Gaussian(np.ones(1), 0.5)
    >>> posterior = dc.exact.Gaussian(np.array([0.5]), 0.5)                      # y = 1, noise 1
    >>> z = np.array([[0.3]])
    >>> found = change_of_prior(posterior, old, new)(z, 0.0)                     # precision 2 + 1, mean 1
    >>> bool(abs(found - dc.exact.Gaussian(np.ones(1), 1 / 3)(z, 0.0)) < 1e-12)
    True
    """
    parts = [posterior, old, new]
    return product(parts, [1.0, -1.0, 1.0], prediction=prediction, covariances=covariances, scaling=scaling)


def _enter(z: Array, log_snr: Array, scaling: str) -> _At:
    function = "conditioning.product"
    xp = _array.namespace(function, z=z, log_snr=log_snr)
    _array.check_floating(function, z=z)
    wide = _array.widen(xp, z)
    level = levels.level(log_snr, scaling)

    def along(part: Array) -> Array:
        found = _array.along(function, "log_snr", part, wide, xp) * xp.ones_like(wide)
        return xp.reshape(found, (z.shape[0], math.prod(z.shape[1:])))

    flat = xp.reshape(wide, (z.shape[0], math.prod(z.shape[1:])))
    alpha, sigma = along(level.alpha), along(level.sigma)
    least = 1e-17 * alpha
    return _At(xp, flat, alpha, xp.maximum(sigma, least), sigma <= least, level, z, log_snr)


def _of_data(covariance: Any, at: _At) -> Array:
    """Return (e^lambda I + C^{-1})^{-1} for a covariance C of the data, (B, D) or (B, D, D)."""
    xp, (batch, size) = at.xp, at.flat.shape
    signal, noise = at.alpha**2, at.sigma**2  # e^lambda = signal / noise
    if covariance.shape != (size, size) or covariance.shape == tuple(at.z.shape[1:]):
        if covariance.shape not in ((), tuple(at.z.shape[1:])):
            must = f"be a number, {tuple(at.z.shape[1:])} or {(size, size)}"
            raise _check.error(ValueError, "conditioning.product", "covariances", must, covariance)
        variance = xp.asarray(np.broadcast_to(covariance, at.z.shape[1:]).reshape(1, size).copy(), dtype=at.flat.dtype)
        variance = xp.asarray(variance, device=_array.device(at.z))
        return noise * variance / (signal * variance + noise)
    matrix = xp.asarray(covariance, dtype=at.flat.dtype, device=_array.device(at.z))
    unit = xp.eye(size, dtype=at.flat.dtype, device=_array.device(at.z))
    inside = signal[:, :, None] * xp.broadcast_to(matrix, (batch, size, size)) + noise[:, :, None] * unit
    return noise[:, None, :] * xp.matmul(matrix, xp.linalg.inv(inside))  # C (e^lambda C + I)^{-1}
