r"""RePaint: go back to more noise and come down again, so that what is drawn and what is known fit together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from diffcore import _check
from diffcore.plan import Plan


def repaint(plan: Plan, *, jump: int = 10, times: int = 10) -> Plan:
    r"""Return the plan of RePaint: every `jump` stages it goes back to where they began, so often that it takes them `times` times.

        z_s -> z_t = (alpha_t / alpha_s) z_s + sqrt(1 - e^{lambda_t - lambda_s}) sigma_t eps,    and the stages from t to s again

    Use it with `constraint=replacement(observed, mask)`, whose known elements are drawn afresh at each level: the others see
    them anew, each time a little better matched. With fine steps, and as times grows, z^b at low noise settles at its law
    given x^a, where replacement by itself does not. It calls the denoiser about `times` times as often.

    Args:
        plan: any whose stages need no memory where a jump begins, such as `samplers.ancestral`.
        jump: how many stages to go back, at least 1; the last jump may be shorter.
        times: how often each of them is taken, at least 1, where it is the plan itself.

    Raises:
        ValueError: a number below 1; a plan that needs its memory where a jump begins.

    Source: Lugmayr et al. 2022 (arXiv 2201.09865), alg. 1 and app. B.

    >>> import diffcore as dc
    >>> len(repaint(dc.samplers.ancestral(dc.schedules.Cosine(), steps=50), jump=10, times=3))
    150
    """
    _check.instance("conditioning.repaint", "plan", plan, Plan, "a diffcore.Plan, see diffcore.samplers")
    _check.integer("conditioning.repaint", "jump", jump, 1)
    _check.integer("conditioning.repaint", "times", times, 1)
    if times == 1:
        return plan
    names = ("log_snr", "next_log_snr", "update")
    parts: dict[str, list[Any]] = {name: [] for name in names}
    for first in range(0, len(plan), jump):
        down = plan[first : first + jump]
        back = down.noised(plan.log_snr[first])
        for name in names:
            parts[name] += [getattr(back, name)] * (times - 1) + [getattr(down, name)]
    tables: dict[str, Any] = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    return replace(plan, sampler=f"{plan.sampler}, repaint", settings={}, **tables)
