r"""DEIS: Adams-Bashforth with polynomials in the logarithm of sigma / alpha."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffcore import _check
from diffcore.plan import Float64, Plan
from diffcore.samplers._build import steps_of
from diffcore.samplers._exponential import interpolation_weights
from diffcore.samplers.adams import adams_plan
from diffcore.schedules import Schedule


def deis(
    schedule: Schedule, steps: int | None = None, *, order: int = 3, lower_order_final: bool = False, grid: Any = None
) -> Plan:
    r"""Return the plan of DEIS: Adams-Bashforth with polynomials in log rho, integrated exactly over rho.

        w_j = int_{rho_t}^{rho_s} l_j(log rho) d rho,    l_j the polynomial that is 1 at log rho_j and 0 at the others

    The first steps have fewer slopes and so a lower order; the step to clean data is x-hat. Order 1 is `ddim(eta=0)`.

    Args:
        schedule, grid: as for `lms`.
        steps: how many steps, at least 1, uniform in time from 1 to clean data; or give `grid`.
        order: 1, 2 or 3.
        lower_order_final: whether the last step has order 1 and the last but one at most 2, steadier where steps are few.

    Raises:
        ValueError: as for `lms`.

    Source: Zhang & Chen 2023 (arXiv 2204.13902), sec. 3.2 and app. B, tAB-DEIS in log rho.

    >>> import diffcore as dc
    >>> dc.samplers.deis(dc.schedules.Cosine(), 10).memory
    2
    """
    _check.integer("samplers.deis", "order", order, 1, 3)
    _check.flag("samplers.deis", "lower_order_final", lower_order_final)
    pairs = steps_of("samplers.deis", schedule, steps, grid, both_ways=True)

    def weigh(rho: Float64, k: int, count: int) -> Float64:
        use = min(count, len(pairs) - k) if lower_order_final else count
        log_rho = np.log(np.where(rho[: k + 2] > 0.0, rho[: k + 2], 1.0))  # the step to clean data is Euler's
        h = log_rho[k] - log_rho[k + 1]
        nodes = np.stack([(log_rho[k] - log_rho[k - j]) / h for j in range(use)], axis=-1)
        weights = np.zeros((*pairs.lead, count))
        weights[..., :use] = interpolation_weights(-h, nodes) / np.expm1(h)[..., None] * -1.0
        return weights

    settings = {"order": order, "lower_order_final": lower_order_final}
    return adams_plan("deis", schedule, pairs, order, "euler", weigh, settings)
