r"""Conditioning by the first two moments of q(x | z_t), both from the denoiser: its value, and its Jacobian.

    E[x | z_t] = x-hat,    Cov[x | z_t] = C = (sigma_t^2 / alpha_t) J,    J = d x-hat / dz

If q(x | z_t) is a Gaussian, so is (x, A x + noise) given z_t, and

    E[x | z_t, y] = x-hat + C A^T (A C A^T + s^2 I)^{-1} (y - A x-hat).

C is a matrix of the size of a clip squared, so only products with it are used, and the system is solved by conjugate
residuals. C is symmetric for the exact denoiser, C u = C^T u, so the pullback of the denoiser is all that is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diffcore import _array, _check
from diffcore._array import Array
from diffcore.conditioning._guided import Guided, Linear, Pull, Term, along, given, linearise, moved, see
from diffcore.conditioning._observed import refuse_soft
from diffcore.predictions import Prediction
from diffcore.schedules import Schedule

FUNCTION = "conditioning.moment_matching"

Parts = tuple[Array, ...]
"""An array for each term."""


@dataclass(frozen=True, eq=False)
class MomentMatching(Guided):
    """A denoiser conditioned by its own Jacobian: what `moment_matching` returns, which documents it."""

    iterations: int

    def __call__(self, z: Array, log_snr: Array) -> Array:
        """Return the guided prediction at z, of its shape and dtype."""
        from diffcore._dispatch import backend_of

        at = linearise(FUNCTION, self, z, log_snr)
        covariance = _covariance(at, exact=any(term.strength > 0.0 for term in self.terms))
        seen = [see(FUNCTION, term, at.x) for term in self.terms]

        def spread(parts: Parts) -> Array:
            """Return C A^T u."""
            total = seen[0].adjoint(parts[0])
            for one, part in zip(seen[1:], parts[1:], strict=True):
                total = total + one.adjoint(part)
            return covariance(total)

        def system(parts: Parts) -> Parts:
            inside = spread(parts)
            return tuple(
                one.product(inside) + term.strength**2 * part
                for one, term, part in zip(seen, self.terms, parts, strict=True)
            )

        residual = tuple(one.residual for one in seen)
        solved = conjugate_residuals(backend_of(z), system, residual, self.iterations)
        return moved(z, at, spread(solved))


def _covariance(at: Linear, *, exact: bool) -> Pull:
    """Return u -> C u, or a multiple of it, which is as good where nothing but A C A^T is inverted."""
    xp = _array.library(at.x)
    if not exact and getattr(at.level.alpha, "ndim", 0) < 2:
        return at.pull
    floor = float(xp.finfo(at.x.dtype).smallest_normal) ** 0.5
    alpha, sigma = (along(FUNCTION, part, at.x) for part in (at.level.alpha, at.level.sigma))
    alpha = max(alpha, floor) if isinstance(alpha, float) else xp.where(alpha > floor, alpha, floor)
    scale = sigma**2 / alpha
    if not exact:
        largest = xp.max(scale, axis=tuple(range(1, scale.ndim)), keepdims=True)
        scale = scale / xp.where(largest > 0, largest, xp.ones_like(largest))
    return lambda u: scale * at.pull(u)


def conjugate_residuals(backend: Any, system: Callable[[Parts], Parts], right: Parts, iterations: int) -> Parts:
    """Return an approximate solution of system(u) = right, sample by sample, after a fixed number of iterations.

    The residual never grows, for any system. A sample stops once its residual is down to rounding, and does not move in
    directions that the system maps to rounding (for a singular system this gives the least solution).
    """
    xp = _array.library(right[0])
    rounding = (10.0 * float(xp.finfo(right[0].dtype).eps)) ** 2

    def dot(a: Parts, b: Parts) -> Array:
        sums = [xp.sum(xp.reshape(p * q, (p.shape[0], -1)), axis=1) for p, q in zip(a, b, strict=True)]
        return sum(sums[1:], sums[0])

    def step(a: Parts, factor: Array, b: Parts) -> Parts:
        return tuple(p + xp.reshape(factor, (-1,) + (1,) * (q.ndim - 1)) * q for p, q in zip(a, b, strict=True))

    first = dot(right, right)
    zero, one = xp.zeros_like(first), xp.ones_like(first)

    def move(solution: Parts, residual: Parts, direction: Parts, image: Parts, largest: Array) -> tuple[Any, ...]:
        """Step along a direction with a known image; also return the factor that makes the next one conjugate."""
        squared, against = dot(image, image), dot(direction, direction)
        gain = squared / xp.where(against > 0, against, one)
        largest = xp.where(gain > largest, gain, largest)  # of the squared norm of the system, from below
        going = (gain > rounding * largest) & (dot(residual, residual) > rounding * first)
        inverse = xp.where(going, one / xp.where(going, squared, one), zero)
        length = dot(residual, image) * inverse
        return step(solution, length, direction), step(residual, -length, image), largest, inverse

    def iterate(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        _, _, direction, image, _ = carry
        solution, residual, largest, inverse = move(*carry)
        turned = system(residual)
        turn = -dot(turned, image) * inverse
        return solution, residual, step(residual, turn, direction), step(turned, turn, image), largest

    nothing = tuple(xp.zeros_like(part) for part in right)
    start = (nothing, right, right, system(right), zero)
    solution: Parts = move(*backend.repeat(iterations - 1, iterate, start))[0]  # the last needs no next direction
    return solution


def moment_matching(
    denoise: Callable[[Array, Array], Array],
    observed: Any,
    mask: Any = None,
    *,
    measure: Callable[[Array], Array] | None = None,
    noise_std: float = 0.0,
    iterations: int = 20,
    prediction: Prediction | None = None,
    schedule: Schedule | None = None,
) -> MomentMatching:
    r"""Return a denoiser conditioned by the covariance in its own Jacobian: exact on Gaussian data.

        x~ = x-hat + C A^T (A C A^T + s^2 I)^{-1} (y - A x-hat),    C = (sigma^2 / alpha) d x-hat / dz

    There is no weight to choose. For Gaussian data and a linear A this is E[x | z_t, y] itself, at every level, given
    enough iterations; elsewhere it approximates q(x | z_t) by a Gaussian. The known elements of x~ are x^a, so a run
    returns them; add `constraint=replacement(...)` to make that exact to the last bit. For
    a measurement that is not linear, A is its derivative at x-hat.

    Wrap twice for several conditions; they are solved for together.

    Args:
        denoise, observed, measure, prediction, schedule: as for `reconstruction`.
        mask: as for `reconstruction`; a weight m in (0, 1) makes the variance of the noise s^2 / m, so that s > 0 is needed.
        noise_std: s >= 0, the standard deviation of the noise in y.
        iterations: of conjugate residuals, at least 1; each takes one pullback of the denoiser, about twice the cost of
            calling it. As many as there are observed numbers solve the system exactly; fewer leave x~
            nearer to x-hat.

    Returns:
        `MomentMatching`, a callable (z, log_snr) -> prediction with the attributes `prediction` and `scaling`.

    Raises:
        as `reconstruction`; ValueError: a negative `noise_std`, or fewer than 1 iteration.

    Source: Finzi et al. 2023 (arXiv 2306.07261) and Boys et al. 2023 (arXiv 2310.06721) for the moments; Rozet et al.
    2024 (arXiv 2405.13712) for solving without the matrix, by conjugate gradients. Here it is by conjugate residuals
    (Saad 2003, Iterative Methods for Sparse Linear Systems, sec. 6.8), whose residual cannot grow: where the Jacobian is
    lost to rounding (eps in float32 below log-SNR -11) or a network's is not a covariance, x~ stays near x-hat.

    >>> import diffcore as dc, numpy as np
    >>> data = dc.exact.Gaussian(np.zeros(2), np.array([[1.0, 0.8], [0.8, 1.0]]))
    >>> x, mask = np.array([1.0, np.nan]), np.array([True, False])
    >>> guided = dc.conditioning.moment_matching(data, x, mask, schedule=dc.schedules.Cosine())
    >>> guided(np.zeros((1, 2)), 0.0).round(6)
    array([[1.      , 0.588235]])
    >>> data.conditional_denoise(np.zeros((1, 2)), 0.0, x, mask).round(6)
    array([[1.      , 0.588235]])
    """
    deviation = _check.number(FUNCTION, "noise_std", noise_std, 0)
    check_iterations(FUNCTION, iterations)
    if deviation == 0.0:
        refuse_soft(FUNCTION, mask, "they divide the variance of the noise; give `noise_std` > 0")
    term = Term(observed, mask, measure, deviation)
    inner = denoise.iterations if isinstance(denoise, MomentMatching) else 0
    checked = given(FUNCTION, MomentMatching, denoise, term, prediction, schedule)
    return MomentMatching(*checked, max(iterations, inner))


def check_iterations(function: str, iterations: Any) -> None:
    """Raise unless `iterations` is an int of at least 1."""
    _check.integer(function, "iterations", iterations, 1)
