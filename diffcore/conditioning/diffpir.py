r"""DiffPIR: x-hat moves to the point between itself and the observation that both are likely at, without gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from diffcore import _array, _brief, _check
from diffcore._array import Array
from diffcore._wrapping import along
from diffcore.conditioning._guided import Guided, Linear, Term, given, see
from diffcore.conditioning._observed import deviation_of
from diffcore.conditioning._solve import Variance, gathered, posterior_variance, solve, variance_of
from diffcore.levels import Level
from diffcore.predictions import Prediction
from diffcore.schedules import Schedule

FUNCTION = "conditioning.diffpir"


@dataclass(frozen=True)
class Paper:
    """The variance of the paper, sigma^2 / (weight alpha^2), which grows without bound towards noise."""

    weight: float
    __repr__ = _brief.fields

    def __call__(self, level: Level) -> Any:
        """Return r^2 at a level."""
        xp = _array.namespace(FUNCTION, alpha=level.alpha)
        if _array.library(level.alpha) is None or isinstance(level.alpha, float):
            return float(level.sigma) ** 2 / (self.weight * max(float(level.alpha) ** 2, 1e-30))
        squared = level.alpha**2
        return level.sigma**2 / (self.weight * xp.where(squared > 1e-30, squared, 1e-30 * xp.ones_like(squared)))


@dataclass(frozen=True, eq=False)
class DiffPIR(Guided):
    """A denoiser with a proximal step: what `diffpir` returns, which documents it."""

    function: ClassVar[str] = FUNCTION
    gradients: ClassVar[bool] = False
    data_variance: Variance | Paper
    iterations: int
    __repr__ = _brief.fields

    def shift(self, at: Linear) -> Array:
        """Return r^2 A^T (r^2 A A^T + s^2 I)^{-1} (y - A x-hat)."""
        variance = self.data_variance
        squared = variance(at.level) if isinstance(variance, Paper) else posterior_variance(variance, at.level)
        squared = along(FUNCTION, _array.scalar(squared), at.x)
        seen = [see(FUNCTION, term, at.x) for term in self.terms]
        return squared * gathered(seen, solve(at.x, seen, self.terms, lambda v: squared * v, self.iterations))


def diffpir(
    denoise: Callable[[Array, Array], Array],
    observed: Any,
    mask: Any = None,
    *,
    measure: Callable[[Array], Array] | None = None,
    noise_std: float = 0.0,
    weight: float | None = None,
    data_variance: float | Callable[[Array], Array] | None = None,
    iterations: int = 20,
    prediction: Prediction | None = None,
    schedule: Schedule | None = None,
) -> DiffPIR:
    r"""Return a denoiser with the proximal step of DiffPIR after it: no gradient of the denoiser, so it runs on NumPy too.

        x~ = argmin_x ||y - A x||^2 / s^2 + ||x - x-hat||^2 / r^2 = x-hat + r^2 A^T (r^2 A A^T + s^2 I)^{-1} (y - A x-hat)

    with r^2 = sigma^2 / (weight alpha^2), or that of independent elements of variance c as in `pigdm`. This is E[x | z_t, y]
    if q(x | z_t) is N(x-hat, r^2 I): what is not measured moves only as A^T reaches it. Without noise it is `projection`.

    Args:
        denoise, observed, measure, prediction, schedule: as for `reconstruction`; the measurement may have a method
            `adjoint`, without which NumPy has no A^T.
        mask: as for `pigdm`.
        noise_std: s >= 0, the standard deviation of the noise in y.
        weight: lambda > 0 of the paper, which uses 3 to 25 with images in [0, 1]; 7 unless `data_variance` is given.
        data_variance: instead of `weight`, as for `pigdm`.
        iterations: as for `pigdm`.

    Returns:
        `DiffPIR`, a callable (z, log_snr) -> prediction. The paper's noise is that of `samplers.ddim(eta=...)`.

    Raises:
        as `moment_matching`; ValueError: `weight` not above 0, or both `weight` and `data_variance`.

    Source: Zhu et al. 2023 (arXiv 2305.08995), alg. 1.

    >>> import diffcore as dc, numpy as np
    >>> data = dc.exact.Gaussian(np.zeros(2), 0.25)
    >>> guided = dc.conditioning.diffpir(data, np.array([1.0, np.nan]), np.array([True, False]), noise_std=0.5, weight=4.0,
    ...                                  schedule=dc.schedules.Cosine())
    >>> guided(np.zeros((1, 2)), 0.0)                                   # r^2 = s^2 = 0.25: half way
    array([[0.5, 0. ]])
    """
    deviation = deviation_of(FUNCTION, noise_std, mask)
    _check.integer(FUNCTION, "iterations", iterations, 1)
    if weight is not None and data_variance is not None:
        must = "be None where `data_variance` is given"
        raise _check.error(ValueError, FUNCTION, "weight", must, weight, "both say how far x-hat can be trusted")
    variance: Variance | Paper
    if data_variance is None:
        variance = Paper(_check.number(FUNCTION, "weight", 7.0 if weight is None else weight, 0, open_low=True))
    else:
        variance = variance_of(FUNCTION, data_variance)
    checked = given(FUNCTION, DiffPIR, denoise, Term(observed, mask, measure, deviation), prediction, schedule)
    return DiffPIR(*checked, variance, iterations)
