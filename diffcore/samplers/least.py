"""The same sampler with the least memory, from any plan."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from diffcore import _check
from diffcore.plan import Plan
from diffcore.samplers._least import realise, responses
from diffcore.samplers._recorded import slopes


def least(plan: Plan) -> Plan:
    """Return the plan that does the same with the fewest arrays of memory, and without a second estimate that it never reads.

    A run is linear in its start, its noise and its estimates. The memory that it needs before a stage is the rank of what later
    states owe, beyond z, to what came before: this many arrays, copies of
    estimates where possible.

    Args:
        plan: such as a table of one's own, which keeps whatever the formulas name, or parts that were joined.

    Returns:
        A plan with the levels, name and settings of the given one, whose states agree with its states to 1e-13 of what they owe
        to each of start, noise and estimates; the given one itself where it has no array too many.

    Raises:
        TypeError: not a plan.

    Source: Dewilde & van der Veen 1998, "Time-Varying Systems and Computations", for minimal realisations.

    >>> import diffcore as dc, numpy as np
    >>> plan = dc.samplers.ddim(dc.schedules.LinearLogSNR(), steps=4)
    >>> kept = np.zeros((4, 2, 4))                           # an array that is kept and never read
    >>> kept[:, 0, [0, 2, 3]], kept[:, 1, 3] = plan.update[:, 0], 1.0
    >>> mine = dc.Plan("mine", "vp", plan.log_snr, plan.next_log_snr, kept)
    >>> mine, least(mine)
    (<Plan mine, vp, 4 stages, memory 1>, <Plan mine, vp, 4 stages, memory 0>)
    """
    _check.instance("samplers.least", "plan", plan, Plan, "a diffcore.Plan, see diffcore.samplers")
    second = plan.second if plan.second is None or np.any(plan.update[..., -1]) else None
    update = plan.update if second == plan.second else plan.update[..., :-1]
    flat = update.reshape(len(plan), -1, *update.shape[-2:])
    inputs = flat.shape[-1] - flat.shape[-2]
    log_snr = plan.log_snr.reshape(len(plan), -1)
    try:
        found = realise(responses(flat), inputs, slopes(plan.scaling, log_snr, inputs - 1))
    except ArithmeticError:  # where coefficients differ by too many orders of magnitude
        found = flat
    if found.shape[-2] >= flat.shape[-2]:
        found = flat
    if found is flat and second == plan.second:
        return plan
    return replace(plan, update=found.reshape(*update.shape[:-2], *found.shape[-2:]), second=second)
