r"""Conditioning by the first two moments of q(x | z_t), both from the denoiser: its value, and its Jacobian.

If q(x | z_t) is a Gaussian, so is (x, A x + noise) given z_t. Its covariance C is a matrix of the size of a clip squared, so only
products with it are used, and the system is solved by conjugate residuals. C is symmetric for the exact denoiser, C u = C^T u, so
the pullback of the denoiser is all that is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from diffcore import _brief, _check
from diffcore._array import Array
from diffcore.conditioning._guided import Guided, Linear, Term, given, see
from diffcore.conditioning._observed import deviation_of
from diffcore.conditioning._solve import covariance, gathered, solve
from diffcore.predictions import Prediction
from diffcore.schedules import Schedule

FUNCTION = "conditioning.moment_matching"


@dataclass(frozen=True, eq=False)
class MomentMatching(Guided):
    """A denoiser conditioned by its own Jacobian: what `moment_matching` returns, which documents it."""

    function: ClassVar[str] = FUNCTION
    iterations: int
    __repr__ = _brief.fields

    def shift(self, at: Linear) -> Array:
        """Return C A^T (A C A^T + s^2 I)^{-1} (y - A x-hat)."""
        spread = covariance(FUNCTION, at, exact=any(term.strength > 0.0 for term in self.terms))
        seen = [see(FUNCTION, term, at.x) for term in self.terms]
        return spread(gathered(seen, solve(at.x, seen, self.terms, spread, self.iterations)))


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
    deviation = deviation_of(FUNCTION, noise_std, mask)
    _check.integer(FUNCTION, "iterations", iterations, 1)
    term = Term(observed, mask, measure, deviation)
    inner = denoise.iterations if isinstance(denoise, MomentMatching) else 0
    checked = given(FUNCTION, MomentMatching, denoise, term, prediction, schedule)
    return MomentMatching(*checked, max(iterations, inner))
