r"""SA-Solver: stochastic Adams, a multistep predictor for the SDE, and a corrector."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from diffcore import _check
from diffcore.plan import Plan
from diffcore.samplers._build import finish, steps_of
from diffcore.samplers._corrected import Corrected
from diffcore.samplers._exponential import check_order
from diffcore.schedules import Schedule


def sa_solver(
    schedule: Schedule,
    steps: int | None = None,
    *,
    order: int = 2,
    corrector_order: int = 2,
    tau: float = 1.0,
    tau_range: tuple[float, float] = (0.0, math.inf),
    mode: str = "pec",
    variant: str | None = "bh1",
    lower_order_final: bool = False,
    noise_scale: float = 1.0,
    grid: Any = None,
) -> Plan:
    r"""Return the plan of SA-Solver, stochastic Adams: a multistep predictor and corrector of the SDE with tau^2 times its noise.

        z_s = (sigma_s / sigma_t) e^{-tau^2 h} z_t + alpha_s sum_j w_j x-hat_j + sigma_s sqrt(1 - e^{-2 tau^2 h}) noise_scale eps

    with h the step in log(alpha / sigma) and weights w_j that integrate the polynomial through the estimates for H = (1 + tau^2) h,
    as in `dpm_solver_pp`, that of the new level among them in the corrector. The step to clean data is x-hat.

    Args:
        schedule: gives the levels and the scaling.
        steps: how many steps N, at least 1, uniform in time from 1 to clean data; or give `grid`.
        order: how many estimates the predictor uses, 1, 2 or 3.
        corrector_order: how many the corrector uses with the new one, 2 to 4, or 1 for that alone.
        tau: at least 0; 0 is the ODE, 1 the SDE.
        tau_range: the range of sigma / alpha at a step's start where tau acts; it is 0 elsewhere.
        mode: "pec", where the estimate at the predicted state is kept, N calls, or "pece", where that at the corrected state is,
            2 N - 1 calls.
        variant: "bh1" as published, where two estimates have the weight H / 2 for their difference; "bh2", as for `unipc`, or None
            for exact weights.
        lower_order_final: whether the last step has order 1 and the last but one at most 2.
        noise_scale: a factor > 0 of the noise.
        grid: increasing log-SNRs (N + 1, *lead) instead of `steps`; decreasing only with tau = 0.

    Raises:
        ValueError: a setting out of range; pure noise, with "bh1"; a bad grid, or neither or both of steps and grid.

    Source: Xue et al. 2023 (arXiv 2309.05019), alg. 1 and app. D.

    >>> import diffcore as dc
    >>> plan = dc.samplers.sa_solver(dc.schedules.Karras(), 10)
    >>> len(plan), plan.memory
    (10, 2)
    """
    function = "samplers.sa_solver"
    check_order(function, order)
    _check.integer(function, "corrector_order", corrector_order, 1, 4)
    _check.number(function, "tau", tau, 0.0)
    low, high = _check.interval(function, "tau_range", tau_range, 0.0, equal=True, finite=False)
    _check.choice(function, "mode", mode, ("pec", "pece"))
    _check.choice(function, "variant", variant, (None, "bh1", "bh2"))
    _check.flag(function, "lower_order_final", lower_order_final)
    _check.number(function, "noise_scale", noise_scale, 0.0, open_low=True)
    pairs = steps_of(function, schedule, steps, grid, both_ways=tau == 0.0)
    with np.errstate(over="ignore"):
        ratio = np.exp(-0.5 * pairs.t.log_snr)
    eta = np.where((ratio >= low) & (ratio <= high), tau**2, 0.0)
    built = Corrected(
        "sa_solver", pairs, order, corrector_order, eta, noise_scale, variant, lower_order_final, mode == "pece"
    )
    settings: dict[str, object] = {
        "order": order,
        "corrector_order": corrector_order,
        "tau": tau,
        "tau_range": tau_range,
        "mode": mode,
    }
    settings |= {"variant": variant, "lower_order_final": lower_order_final, "noise_scale": noise_scale}
    at, to, update = built.table()
    return finish("sa_solver", schedule, at, to, update, **settings)
