r"""Where the probability-flow ODE of Gaussian data leads: the flow map, its average velocity and its consistency function.

In the eigen-direction of an eigenvalue c the ODE keeps the number of standard deviations from the mean,

    z_s = alpha_s m + g (z_t - alpha_t m),    g = sqrt(n_s / n_t),    n = alpha^2 c + sigma^2

Source: Karras et al. 2022 (arXiv 2206.00364), app. B.2, for one Gaussian under "ve"; it follows from the ODE for any.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffcore import _check
from diffcore._array import Array
from diffcore.exact import _components
from diffcore.exact._parts import Diagonal, Parts
from diffcore.exact._weighing import Entered


def flow_map(parts: Parts, t: Entered, s: Entered) -> Array:
    """Return z_s, laid flat, for z at t."""
    xp = t.xp

    def gain(c: Array) -> Array:
        return _gain(xp, c, t, s)

    return s.alpha * parts.mean + _scaled(parts, t, s, gain)


def average_velocity(parts: Parts, t: Entered, s: Entered) -> Array:
    """Return (z_t - z_s) / (sigma_t - sigma_s) under "flow", free of its cancellation, and the velocity where s = t."""
    xp = t.xp

    def gain(c: Array) -> Array:
        n = _components.above(xp, t.alpha**2 * c + t.sigma**2)
        return ((t.sigma + s.sigma) * (1.0 + c) - 2.0 * c) / (n * (1.0 + _gain(xp, c, t, s)))

    return _scaled(parts, t, s, gain) - parts.mean


def _gain(xp: Any, c: Array, t: Entered, s: Entered) -> Array:
    before, after = (_components.above(xp, at.alpha**2 * c + at.sigma**2) for at in (t, s))
    return xp.sqrt(after / before)


def _scaled(parts: Parts, t: Entered, s: Entered, gain: Callable[[Array], Array]) -> Array:
    """Return gain(C) (z - alpha m), a function of the covariance."""
    xp, residual = t.xp, t.z - t.alpha * parts.mean
    if isinstance(parts, Diagonal):
        return gain(parts.variance) * residual
    if any(part.shape[1] != 1 for at in (t, s) for part in (at.alpha, at.sigma)):
        must = "have one level for each sample, since the covariance mixes the elements"
        raise _check.error(ValueError, "exact.Gaussian", "log_snr", must, t.alpha, "use independent elements")
    basis = parts.basis[0, ...]
    inside = xp.matmul(residual, basis)
    found = xp.matmul(gain(parts.values) * inside, xp.matrix_transpose(basis))
    if parts.rest is None:
        return found
    return found + gain(parts.rest) * (residual - xp.matmul(inside, xp.matrix_transpose(basis)))
