r"""TMPD: moment matching with the row sums of A C A^T in the place of the matrix, so that nothing is solved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from diffcore import _array, _brief
from diffcore._array import Array
from diffcore.conditioning._guided import Guided, Linear, Term, given, see
from diffcore.conditioning._observed import deviation_of
from diffcore.conditioning._solve import covariance, gathered
from diffcore.predictions import Prediction
from diffcore.schedules import Schedule

FUNCTION = "conditioning.tmpd"


@dataclass(frozen=True, eq=False)
class TMPD(Guided):
    """A denoiser under Tweedie moment projection: what `tmpd` returns, which documents it."""

    function: ClassVar[str] = FUNCTION
    __repr__ = _brief.fields

    def shift(self, at: Linear) -> Array:
        """Return C A^T diag(A C A^T 1 + s^2)^{-1} (y - A x-hat)."""
        xp = _array.library(at.x)
        spread = covariance(FUNCTION, at, exact=any(term.strength > 0.0 for term in self.terms))
        seen = [see(FUNCTION, term, at.x) for term in self.terms]
        inside = spread(gathered(seen, tuple(xp.ones_like(one.residual) for one in seen)))
        parts = []
        for one, term in zip(seen, self.terms, strict=True):
            total = one.product(inside) + term.strength**2
            safe = xp.where(total > 0, total, xp.ones_like(total))
            parts.append(xp.where(total > 0, one.residual / safe, xp.zeros_like(total)))
        return spread(gathered(seen, tuple(parts)))


def tmpd(
    denoise: Callable[[Array, Array], Array],
    observed: Any,
    mask: Any = None,
    *,
    measure: Callable[[Array], Array] | None = None,
    noise_std: float = 0.0,
    prediction: Prediction | None = None,
    schedule: Schedule | None = None,
) -> TMPD:
    r"""Return a denoiser under Tweedie moment projection (TMPD): two pullbacks a call, and nothing to choose.

        x~ = x-hat + C A^T diag(A C A^T 1 + s^2)^{-1} (y - A x-hat),    C = (sigma^2 / alpha) d x-hat / dz

    The row sums of A C A^T stand for the matrix. On Gaussian data this is E[x | z_t, y] itself where one number is
    measured, or numbers that are independent given z_t. Numbers that go together are trusted too little, since each row sum
    counts all of them; where a row sums to zero or less, that number is left out. `moment_matching` solves with the matrix.

    Args:
        denoise, observed, measure, prediction, schedule: as for `reconstruction`.
        mask: as for `moment_matching`.
        noise_std: s >= 0, the standard deviation of the noise in y.

    Returns:
        `TMPD`, a callable (z, log_snr) -> prediction with the attributes `prediction` and `scaling`. Wrap twice for several
        conditions.

    Raises:
        as `moment_matching`.

    Source: Boys et al. 2023 (arXiv 2310.06721), sec. 3, the diagonal approximation.

    >>> import diffcore as dc, numpy as np
    >>> data = dc.exact.Gaussian(np.zeros(2), np.array([[1.0, 0.8], [0.8, 1.0]]))
    >>> x, mask = np.array([1.0, np.nan]), np.array([True, False])
    >>> dc.conditioning.tmpd(data, x, mask, schedule=dc.schedules.Cosine())(np.zeros((1, 2)), 0.0).round(6)
    array([[1.      , 0.588235]])
    """
    deviation = deviation_of(FUNCTION, noise_std, mask)
    return TMPD(*given(FUNCTION, TMPD, denoise, Term(observed, mask, measure, deviation), prediction, schedule))
