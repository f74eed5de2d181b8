r"""DAPS: at every level a whole sample of x given z_t and y, noised anew, so that early errors are not carried on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from diffcore import _array, _brief, levels
from diffcore._array import Array
from diffcore.conditioning._solve import Variance, posterior_variance, variance_of
from diffcore.conditioning._spectral import Measured, Spectrum, check_plan, measured, row_of
from diffcore.denoiser import Noise
from diffcore.plan import Plan
from diffcore.state import State

FUNCTION = "conditioning.daps"


@dataclass(frozen=True, eq=False)
class Annealing:
    """A measurement that a run draws from, level by level: what `daps` returns."""

    what: Measured
    data_variance: Variance
    __repr__ = _brief.fields

    def hold(self, plan: Plan, z: Array) -> Annealed:
        """Return what a run of the plan holds; the loop calls it."""
        check_plan(FUNCTION, plan)
        s = levels.level(plan.next_log_snr, plan.scaling)
        table = np.stack([s.alpha, s.sigma, posterior_variance(self.data_variance, plan.levels)], axis=-1)
        return Annealed(self.what.spectrum(FUNCTION, z), _array.table_for(table, z))


@dataclass(frozen=True, eq=False)
class Annealed:
    """What was observed, and the table of a run: alpha_s, sigma_s and r_t^2 of each stage."""

    parts: ClassVar = ("spectrum", "table")
    spectrum: Spectrum
    table: Array
    __repr__ = _brief.fields

    def begin(self, state: State, noise: Noise) -> Array:  # noqa: ARG002
        """Return z of a start as it is."""
        return state.z

    def after(self, before: State, state: State, noise: Noise) -> Array:
        """Return alpha_s x_0 + sigma_s eps, with x_0 ~ N(x-hat, r^2 I) given y, in one draw: both are normal."""
        z, seen = state.z, self.spectrum
        xp, (alpha, sigma, squared) = _array.library(z), row_of(self.table, before.index, state.z)
        x, eps = _array.widen(xp, state.x), _array.widen(xp, noise())
        estimate, noisy = seen.into(x), seen.deviation**2
        total = squared + noisy
        trust = xp.where(total > 0, squared / xp.where(total > 0, total, xp.ones_like(total)), xp.ones_like(total))
        centre = estimate + trust * (seen.x - estimate)
        width = xp.sqrt(alpha**2 * trust * noisy + sigma**2)
        rest = alpha * x + xp.sqrt(alpha**2 * squared + sigma**2) * eps
        return xp.astype(seen.moved(rest, alpha * centre + width * seen.into(eps)), z.dtype, copy=False)


def daps(
    observed: Any, mask: Any = None, *, measure: Any = None, noise_std: float = 0.0, data_variance: Any = 1.0
) -> Annealing:
    r"""Return a constraint that draws x given z_t and y at every level, and noises it anew (decoupled annealing, DAPS).

        x_0 ~ N(x; x-hat(z_t), r^2 I) N(y; A x, s^2 I),    z_s = alpha_s x_0 + sigma_s eps

    The paper draws x_0 by Langevin dynamics; for a linear measurement with a decomposition its law is Gaussian, and is drawn
    at once. A state depends on the one before through x_0 alone, so that errors made at high noise are
    forgotten. If q(x | z_t) is N(x-hat, r^2 I), every state is drawn from p(z_s | y); else what it leaves out, the
    correlations of x given z_t, shrinks with r. No gradients. Of the plan only its levels and its calls count: any with one
    call a step.

    Args:
        observed, mask, measure, noise_std: as for `ddrm`.
        data_variance: c > 0, for r^2 = c sigma^2 / (alpha^2 c + sigma^2), about 0.25 for videos in [-1, 1]; or a function
            of log_snr that returns r^2.

    Returns:
        `Annealing`, for `constraint=` of `diffcore.sample`, `start` and `step`.

    Raises:
        as `ddrm`.

    Source: Zhang et al. 2024 (arXiv 2407.01521), alg. 1, with the estimate of one call in the place of its ODE.

    >>> import diffcore as dc, numpy as np
    >>> data, small = dc.exact.Gaussian(np.zeros((1, 2, 2, 1)), 1.0), dc.conditioning.downsample(2)
    >>> plan = dc.samplers.ddim(dc.schedules.Cosine(), steps=8)
    >>> held = dc.conditioning.daps(np.array(0.5), measure=small)
    >>> small(dc.sample(data, plan, shape=(3, 1, 2, 2, 1), seed=7, constraint=held)).ravel().round(5)
    array([0.5, 0.5, 0.5], dtype=float32)
    """
    what = measured(FUNCTION, observed, mask, measure, noise_std)
    return Annealing(what, variance_of(FUNCTION, data_variance))
