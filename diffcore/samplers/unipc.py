r"""UniPC: a multistep predictor for the ODE, and a corrector that costs no call."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffcore import _check
from diffcore.plan import Plan
from diffcore.samplers._build import finish, steps_of
from diffcore.samplers._corrected import Corrected
from diffcore.samplers._exponential import check_order
from diffcore.schedules import Schedule


def unipc(
    schedule: Schedule,
    steps: int | None = None,
    *,
    order: int = 2,
    variant: str | None = None,
    lower_order_final: bool = False,
    grid: Any = None,
) -> Plan:
    r"""Return the plan of UniPC: a multistep predictor, corrected at no cost by the call that the next step makes.

    The call at level i, made at the predicted state, first corrects the step that led there, then predicts the next:

        z_i^c     = (sigma_i / sigma_{i-1}) z_{i-1}^c + alpha_i sum_j w_j x-hat_{i-j},   j = 0 .. p    (corrector)
        z_{i+1}   = (sigma_{i+1} / sigma_i) z_i^c + alpha_{i+1} sum_j w'_j x-hat_{i-j},  j = 0 .. p-1  (predictor)

    The weights integrate the interpolating polynomials exactly; the published B(h) cancels from the full systems, and
    the published short cut 1/2 for systems of one equation is not taken but with a `variant`. The memory holds what the next
    correction needs.

    Args:
        schedule: gives the levels and the scaling.
        steps: how many steps, at least 1, uniform in time from 1 to clean data; or give `grid`.
        order: p = 1, 2 or 3, the order of the predictor; the corrector raises the method's by one.
        variant: "bh1" or "bh2" as published, where predictors of order 2 and correctors of order 1 take B(h) / 2 for the weight of
            the one difference, B(h) = h or 1 - e^{-h}. The others are exact, and B(h) is not in them.
        lower_order_final: whether the last step has order 1 and the last but one at most 2, steadier where steps are few.
        grid: strictly monotone log-SNRs (N + 1, *lead) instead of `steps`.

    Raises:
        ValueError: an order out of range, a bad grid, or neither or both of steps and grid.

    Source: Zhao et al. 2023 (arXiv 2302.04867), alg. 5-8 (data prediction).

    >>> import diffcore as dc
    >>> plan = dc.samplers.unipc(dc.schedules.Cosine(), steps=10)
    >>> len(plan), plan.memory
    (10, 2)
    """
    function = "samplers.unipc"
    check_order(function, order)
    _check.choice(function, "variant", variant, (None, "bh1", "bh2"))
    _check.flag(function, "lower_order_final", lower_order_final)
    pairs = steps_of(function, schedule, steps, grid, both_ways=True)
    more: dict[str, object] = {"variant": variant} if variant else {}
    more |= {"lower_order_final": True} if lower_order_final else {}
    built = Corrected("unipc", pairs, order, order + 1, np.zeros_like(pairs.half), 1.0, variant, lower_order_final)
    at, to, update = built.table()
    return finish("unipc", schedule, at, to, update, order=order, **more)
