r"""DPS: x-hat moves down the gradient of the distance between its measurement and the observation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from diffcore import _array, _brief, _check
from diffcore._array import Array
from diffcore.conditioning._guided import Guided, Linear, Term, given, see
from diffcore.conditioning._solve import covariance, gathered
from diffcore.conditioning.reconstruction import weight_of
from diffcore.plan import Plan
from diffcore.predictions import Prediction
from diffcore.schedules import Schedule

FUNCTION = "conditioning.dps"


@dataclass(frozen=True, eq=False)
class DPS(Guided):
    """A denoiser under diffusion posterior sampling: what `dps` returns, which documents it."""

    function: ClassVar[str] = FUNCTION
    noise_std: float | None
    __repr__ = _brief.fields

    def shift(self, at: Linear) -> Array:
        """Return w J^T A^T r / ||r||, or (sigma^2 / alpha) w J^T A^T r / s^2, with r = y - A x-hat."""
        xp, lead = _array.library(at.x), (at.x.shape[0],) + (1,) * (at.x.ndim - 1)
        seen = [see(FUNCTION, term, at.x) for term in self.terms]
        weights = [term.strength(at.level.log_snr) if callable(term.strength) else term.strength for term in self.terms]
        if self.noise_std is not None:
            parts = tuple(one.residual / self.noise_std**2 for one in seen)
        else:
            squares = [xp.sum(_array.flat(one.residual**2), axis=1) for one in seen]
            norm = xp.sqrt(sum(squares[1:], squares[0]))
            norm = xp.where(norm > 0, norm, xp.ones_like(norm))
            parts = tuple(one.residual / xp.reshape(norm, lead[:1] + (1,) * (one.residual.ndim - 1)) for one in seen)
        scaled = tuple(
            _array.along(FUNCTION, "weight", weight, part, xp) * part
            for weight, part in zip(weights, parts, strict=True)
        )
        pull = at.pull if self.noise_std is None else covariance(FUNCTION, at)
        return pull(gathered(seen, scaled))


def dps(
    denoise: Callable[[Array, Array], Array],
    observed: Any,
    mask: Any = None,
    *,
    measure: Callable[[Array], Array] | None = None,
    weight: float | Callable[[Array], Array] = 1.0,
    noise_std: float | None = None,
    prediction: Prediction | None = None,
    schedule: Schedule | None = None,
) -> DPS:
    r"""Return a denoiser under diffusion posterior sampling (DPS), for measurements that are linear or not.

        as run:      x~ = x-hat - w grad_z ||y - A(x-hat(z))||                                  noise_std = None
        as derived:  x~ = x-hat - w (sigma^2 / alpha) grad_z ||y - A(x-hat(z))||^2 / (2 s^2)     noise_std = s

    The derivation puts p(y | x-hat) for p(y | z_t), which leaves the covariance of x given z_t out: on Gaussian data its move
    is by the factor (A C A^T + s^2) / s^2 too large, which without noise diverges. The paper therefore runs the first line,
    and adds the move to the state rather than to x-hat: `dc.sample(dps(...), dps_plan(plan), ...)`.

    Args:
        denoise, observed, mask, measure, prediction, schedule: as for `reconstruction`; with a mask and no measurement all of
            z moves here.
        weight: w, a number, or a function of log_snr, (), (B,) or (B, T), that returns w of that shape. The paper uses 0.1
            to 1 for images in [-1, 1] and 1,000 steps.
        noise_std: s > 0, the standard deviation of the noise in y, for the second line.

    Returns:
        `DPS`, a callable (z, log_snr) -> prediction with the attributes `prediction` and `scaling`. Wrap twice for several
        conditions: the norm is of all of them.

    Raises:
        as `reconstruction`; ValueError: `noise_std` not above 0.

    Source: Chung et al. 2023 (arXiv 2209.14687), theorem 1 and alg. 1.

    >>> import diffcore as dc, numpy as np
    >>> data = dc.exact.Gaussian(np.zeros(2), np.array([[1.0, 0.8], [0.8, 1.0]]))
    >>> x, mask = np.array([1.0, np.nan]), np.array([True, False])
    >>> dc.conditioning.dps(data, x, mask, weight=0.5, schedule=dc.schedules.Cosine())(np.zeros((1, 2)), 0.0).round(4)
    array([[0.2862, 0.1684]])
    """
    weight = weight_of(FUNCTION, weight)
    if noise_std is not None:
        noise_std = _check.number(FUNCTION, "noise_std", noise_std, 0, open_low=True)
    checked = given(FUNCTION, DPS, denoise, Term(observed, mask, measure, weight), prediction, schedule)
    return DPS(*checked, noise_std)


def dps_plan(plan: Plan) -> Plan:
    """Return the plan in which what guidance adds to x-hat is added to the state after each stage instead, as DPS does.

        z' = update(z, eps, x-hat) + (x~ - x-hat)

    It calls the denoiser as often as the plan does. For any wrapper with a method `with_unguided`, so for all of
    `diffcore.conditioning` that stand in place of the denoiser.

    Args:
        plan: any that does not read a second estimate already.

    Raises:
        ValueError: a plan that reads a second estimate.

    Source: Chung et al. 2023 (arXiv 2209.14687), alg. 1, line 7.

    >>> import diffcore as dc
    >>> dps_plan(dc.samplers.ancestral(dc.schedules.Cosine(), steps=8)).second
    'unguided'
    """
    if plan.second is not None:
        raise _check.error(ValueError, "conditioning.dps_plan", "plan", "read no second estimate", plan.second)
    update = np.concatenate([plan.update, plan.update[..., -1:]], axis=-1)
    moves = np.where(update[..., 0, -1] != 0.0, 1.0, 0.0)  # a frame that waits is left alone
    update[..., -2] = 0.0
    update[..., 0, -2] = moves
    update[..., 0, -1] -= moves
    return replace(plan, sampler=f"{plan.sampler}, guided beside", update=update, second="unguided", settings={})
