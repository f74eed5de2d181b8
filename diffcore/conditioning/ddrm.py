r"""DDRM and ILVR: measured directions of the state are drawn from what was measured, all others by the sampler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from diffcore import _array, _brief, _check, levels
from diffcore._array import Array
from diffcore.conditioning._spectral import Measured, Spectrum, check_plan, measured, row_of
from diffcore.denoiser import Noise
from diffcore.plan import Plan
from diffcore.state import State


@dataclass(frozen=True, eq=False)
class Restoration:
    """A measurement whose directions a run restores: what `ddrm` and `ilvr` return."""

    function: str
    what: Measured
    eta: float
    eta_b: float
    until: float
    __repr__ = _brief.fields

    def hold(self, plan: Plan, z: Array) -> Restored:
        """Return what a run of the plan holds; the loop calls it."""
        check_plan(self.function, plan)
        log_snr = np.append(plan.log_snr[0], plan.next_log_snr)
        at = levels.level(log_snr, plan.scaling)
        with np.errstate(divide="ignore", invalid="ignore"):
            table = np.stack([at.alpha, np.exp(-0.5 * log_snr), np.where(log_snr <= self.until, 1.0, 0.0)], axis=-1)
        table[:, 1] = np.minimum(table[:, 1], 1e15)
        return Restored(self.what.spectrum(self.function, z), _array.table_for(table, z), self.eta, self.eta_b)


@dataclass(frozen=True, eq=False)
class Restored:
    """What was observed, and the table of a run: alpha, r = sigma / alpha and whether directions are held, for each state."""

    parts: ClassVar = ("spectrum", "table")
    spectrum: Spectrum
    table: Array
    eta: float
    eta_b: float
    __repr__ = _brief.fields

    def begin(self, state: State, noise: Noise) -> Array:
        """Return z of a start, with measured directions at q(z | y)."""
        return self._drawn(state.z, None, 0, noise)

    def after(self, before: State, state: State, noise: Noise) -> Array:
        """Return z after a stage, with measured directions drawn from x-hat and y."""
        return self._drawn(state.z, state.x, before.index + 1, noise)

    def _drawn(self, z: Array, x: Array | None, at: Any, noise: Noise) -> Array:
        xp, (alpha, r, held) = _array.library(z), row_of(self.table, at, z)
        seen, eps = self.spectrum, self.spectrum.into(_array.widen(xp, noise()))
        spread, one = seen.deviation, xp.ones_like(seen.deviation)
        if x is None:  # nothing is estimated yet
            eta_b, estimate = 1.0, seen.x
            below = seen.into(_array.widen(xp, z)) / xp.maximum(alpha, alpha * 0 + 1e-15)
        else:
            eta_b, estimate = self.eta_b, seen.into(_array.widen(xp, x))
            apart = (seen.x - estimate) / xp.where(spread > 0, spread, one)
            below = estimate + r * ((1.0 - self.eta**2) ** 0.5 * apart + self.eta * eps)
        left = r**2 - (eta_b * spread) ** 2
        left = xp.sqrt(xp.where(left > 0, left, xp.zeros_like(left)))
        above = (1.0 - eta_b) * estimate + eta_b * seen.x + left * eps
        target = alpha * xp.where(r >= spread, above, below)
        return xp.where(held > 0, seen.moved(z, target), z)


def ddrm(
    observed: Any,
    mask: Any = None,
    *,
    measure: Any = None,
    noise_std: float = 0.0,
    eta: float = 0.85,
    eta_b: float = 1.0,
) -> Restoration:
    r"""Return a constraint that restores a linear measurement, direction by direction of its decomposition A = U S V^T.

        r_s >= s / S_i:   V_i^T z_s = alpha_s ((1 - eta_b) x-hat_i + eta_b x-bar_i + sqrt(r_s^2 - eta_b^2 s^2 / S_i^2) eps)
        r_s <  s / S_i:   V_i^T z_s = alpha_s (x-hat_i + r_s (sqrt(1 - eta^2) (x-bar_i - x-hat_i) S_i / s + eta eps))

    with r = sigma / alpha, x-bar = S^{-1} U^T y and x-hat_i = V_i^T x-hat. So x-bar counts while it is less noisy than the
    state, and is a source of noise after that. If x-hat is x, each state has the law q(z_s | x). Directions that were not
    measured are the sampler's. No gradients; the plan may be any with one call a step, in the paper `ddim(eta=0.85)`.

    Args:
        observed: y, floating, broadcasts to the measurement; entries outside the mask are not read.
        mask: booleans, or weights m in [0, 1]: as for `pigdm`; for `linear` none.
        measure: `downsample`, `frame_average`, `linear`, or another with a method `svd`; None is the identity.
        noise_std: s >= 0, the standard deviation of the noise in y.
        eta, eta_b: in [0, 1], as above; 0.85 and 1 in the paper.

    Returns:
        `Restoration`, for `constraint=` of `diffcore.sample`, `start` and `step`. Without noise A x of the result is y.

    Raises:
        TypeError: a measurement without a decomposition; ValueError: a setting out of range; a mask with `linear`; a plan
            with levels per sample or frame; as for `replacement`.

    Source: Kawar et al. 2022 (arXiv 2201.11793), eq. 7 and 8.

    >>> import diffcore as dc, numpy as np
    >>> data, small = dc.exact.Gaussian(np.zeros((1, 2, 2, 1)), 1.0), dc.conditioning.downsample(2)
    >>> plan = dc.samplers.ddim(dc.schedules.Cosine(), steps=8, eta=0.85)
    >>> held = dc.conditioning.ddrm(np.array(0.5), measure=small)
    >>> small(dc.sample(data, plan, shape=(3, 1, 2, 2, 1), seed=7, constraint=held)).ravel().round(5)
    array([0.5, 0.5, 0.5], dtype=float32)
    """
    function = "conditioning.ddrm"
    what = measured(function, observed, mask, measure, noise_std)
    return Restoration(
        function, what, _check.number(function, "eta", eta, 0, 1), _check.number(function, "eta_b", eta_b, 0, 1), np.inf
    )


def ilvr(observed: Any, mask: Any = None, *, measure: Any = None, until: float = np.inf) -> Restoration:
    r"""Return a constraint that keeps the measured part of the state at that of a reference: replacement for measurements.

        z_s <- z_s + A^+ A (alpha_s x_ref + sigma_s eps - z_s),    A x_ref = y

    With a mask and no measurement it is `replacement(variant="marginal")`; with `downsample(f)` the low frequencies of the
    result are those of the reference, as closely as `until` says. No gradients, and biased as replacement is.

    Args:
        observed: y = A x_ref; broadcasts to the measurement.
        mask, measure: as for `ddrm`.
        until: the log-SNR after which nothing is held any more, so that only what is coarse follows the reference.

    Returns:
        `Restoration`, for `constraint=` of `diffcore.sample`, `start` and `step`.

    Raises:
        as `ddrm`.

    Source: Choi et al. 2021 (arXiv 2108.02938), alg. 1.

    >>> import diffcore as dc, numpy as np
    >>> data, small = dc.exact.Gaussian(np.zeros((1, 2, 2, 1)), 1.0), dc.conditioning.downsample(2)
    >>> plan = dc.samplers.ancestral(dc.schedules.Cosine(), steps=8)
    >>> held = dc.conditioning.ilvr(np.array(0.5), measure=small)
    >>> small(dc.sample(data, plan, shape=(3, 1, 2, 2, 1), seed=7, constraint=held)).ravel().round(5)
    array([0.5, 0.5, 0.5], dtype=float32)
    """
    function = "conditioning.ilvr"
    what = measured(function, observed, mask, measure, 0.0)
    return Restoration(function, what, 0.0, 1.0, _check.number(function, "until", until, finite=False))
