r"""PiGDM: moment matching with the covariance of independent elements in the place of C inside the inverse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from diffcore import _array, _brief, _check
from diffcore._array import Array
from diffcore._wrapping import along
from diffcore.conditioning._guided import Guided, Linear, Term, given, see
from diffcore.conditioning._observed import deviation_of
from diffcore.conditioning._solve import Variance, covariance, gathered, posterior_variance, solve, variance_of
from diffcore.predictions import Prediction
from diffcore.schedules import Schedule

FUNCTION = "conditioning.pigdm"


@dataclass(frozen=True, eq=False)
class PiGDM(Guided):
    """A denoiser under pseudo-inverse guidance: what `pigdm` returns, which documents it."""

    function: ClassVar[str] = FUNCTION
    data_variance: Variance
    iterations: int
    __repr__ = _brief.fields

    def shift(self, at: Linear) -> Array:
        """Return C A^T (r^2 A A^T + s^2 I)^{-1} (y - A x-hat)."""
        seen = [see(FUNCTION, term, at.x) for term in self.terms]
        squared = along(FUNCTION, _array.scalar(posterior_variance(self.data_variance, at.level)), at.x)
        solved = solve(at.x, seen, self.terms, lambda v: squared * v, self.iterations)
        return covariance(FUNCTION, at)(gathered(seen, solved))


def pigdm(
    denoise: Callable[[Array, Array], Array],
    observed: Any,
    mask: Any = None,
    *,
    measure: Callable[[Array], Array] | None = None,
    noise_std: float = 0.0,
    data_variance: float | Callable[[Array], Array] = 1.0,
    iterations: int = 20,
    prediction: Prediction | None = None,
    schedule: Schedule | None = None,
) -> PiGDM:
    r"""Return a denoiser under pseudo-inverse guidance (PiGDM): one pullback a call, and no weight.

        x~ = x-hat + (sigma^2 / alpha) J^T A^T (r^2 A A^T + s^2 I)^{-1} (y - A x-hat),    J = d x-hat / dz
        r^2 = c sigma^2 / (alpha^2 c + sigma^2)

    It takes q(x | z_t) for N(x-hat, r^2 I), the posterior of independent elements of variance c. Where that is so, this is
    E[x | z_t, y] itself; where elements are correlated it moves x-hat by too much or too little, and `moment_matching`,
    which solves with the Jacobian, does not. Without noise the inverse is A^+ (y - A x-hat) / r^2, hence the name.

    Args:
        denoise, observed, measure, prediction, schedule: as for `reconstruction`.
        mask: as for `reconstruction`; a weight m in (0, 1) makes the variance of the noise s^2 / m, so that s > 0 is needed.
        noise_std: s >= 0, the standard deviation of the noise in y.
        data_variance: c > 0, about 0.25 for videos in [-1, 1]; or a function of log_snr that returns r^2 of that shape.
        iterations: of conjugate residuals with A A^T, at least 1, none of which calls the denoiser. One is enough for masks
            and for means over blocks, where A A^T is a multiple of I.

    Returns:
        `PiGDM`, a callable (z, log_snr) -> prediction with the attributes `prediction` and `scaling`. Wrap twice for several
        conditions.

    Raises:
        as `moment_matching`; ValueError: `data_variance` not above 0.

    Source: Song et al. 2023, Pseudoinverse-Guided Diffusion Models for Inverse Problems (ICLR), alg. 1.

    >>> import diffcore as dc, numpy as np
    >>> data = dc.exact.Gaussian(np.zeros(2), 0.25)
    >>> guided = dc.conditioning.pigdm(data, np.array([1.0, np.nan]), np.array([True, False]), noise_std=0.5,
    ...                                data_variance=0.25, schedule=dc.schedules.Cosine())
    >>> guided(np.zeros((1, 2)), 0.0).round(6)                          # r^2 / (r^2 + s^2) = 0.2 / 0.45
    array([[0.444444, 0.      ]])
    """
    deviation = deviation_of(FUNCTION, noise_std, mask)
    _check.integer(FUNCTION, "iterations", iterations, 1)
    variance = variance_of(FUNCTION, data_variance)
    checked = given(FUNCTION, PiGDM, denoise, Term(observed, mask, measure, deviation), prediction, schedule)
    return PiGDM(*checked, variance, iterations)
