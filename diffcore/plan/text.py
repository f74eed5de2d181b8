"""A plan as text."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffcore import _check

ROUNDING = 1e-14
"""What is smaller than this, beside the largest coefficient of its stage, is printed as 0; so is such a log-SNR beside 10."""


LONG, FIRST, LAST = 64, 20, 10
"""A plan of more stages is printed by its first and last ones."""


def table(plan: Any, *, lead: tuple[int, ...] | None = None, whole: bool = True, way: str = "plan.text()") -> str:
    """Return the plan as text: a row a stage, a column a coefficient that is used.

    Args:
        plan: the plan.
        lead: which sample (and frame) to show where levels have leading axes; None shows the first.
        whole: all stages, or of a long plan the first and last ones.
        way: to all stages, for whom it shows fewer.
    """
    if lead is not None and len(lead) != len(plan.lead):
        must = f"have an index for each axis of the levels, whose leading shape is {plan.lead}"
        raise _check.error(ValueError, "Plan.text", "lead", must, lead)
    for at, size in zip(lead or (), plan.lead, strict=False):
        _check.integer("Plan.text", "lead", at, 0, size - 1)
    where: tuple[Any, ...] = (slice(None), *(lead if lead is not None else (0,) * len(plan.lead)))
    update, names = plan.update[where], plan.form.names
    update = np.where(np.abs(update) < ROUNDING * np.abs(update).max(axis=(1, 2), keepdims=True), 0.0, update)
    at_and_to = [
        np.where(np.abs(part[where]) < 10.0 * ROUNDING, 0.0, part[where]) for part in (plan.log_snr, plan.next_log_snr)
    ]
    used = np.any(update != 0.0, axis=0)
    used[0, plan.form.x] = True
    shown = [(row, column) for row in range(1 + plan.form.memory) for column in range(len(names)) if used[row, column]]
    titles = [f"m{row}: {names[column]}" if row else names[column] for row, column in shown]
    count = len(plan)
    stages = range(count) if whole or count <= LONG else [*range(FIRST), *range(count - LAST, count)]
    body = [
        [str(k), *(f"{part[k]:.4g}" for part in at_and_to), *(f"{update[k, row, column]:.4g}" for row, column in shown)]
        for k in stages
    ]
    lines = [["stage", "log_snr", "next", *titles], *body]
    width = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    of = f" (levels of shape {plan.lead}, showing {where[1:]})" if plan.lead else ""
    head = f"{plan.sampler}, {plan.scaling}, {len(plan)} stages{of}"
    rows = ["  ".join(cell.rjust(w) for cell, w in zip(line, width, strict=True)) for line in lines]
    if len(stages) < count:
        rows.insert(1 + FIRST, f"{'...'.rjust(width[0])}  {count - len(stages)} more stages; {way} shows all")
    return "\n".join([head, *rows])
