"""The table of PLMS and PNDM: Adams-Bashforth of order 4 with the weights of even steps, and two ways to start it."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffcore import _check
from diffcore.levels import Level
from diffcore.plan import Float64, Form, Plan
from diffcore.samplers._build import finish, steps_of
from diffcore.samplers._written import Point, point, refuse_pure_noise, split_clean
from diffcore.samplers.adams import adams_bashforth
from diffcore.schedules import Schedule


def pseudo_numerical(name: str, schedule: Schedule, steps: int | None, grid: Any, final: str) -> Plan:
    """Return the plan of either.

    The memory holds the last slopes, newest first; before them, with "pndm", z at the start of a Runge-Kutta step, which in its
    third stage becomes what its end is but for the last slope.
    """
    _check.choice(f"samplers.{name}", "final", final, ("euler", "full"))
    pairs = steps_of(f"samplers.{name}", schedule, steps, grid, both_ways=True)
    split_clean(name, pairs)
    euler = final == "euler" and bool(np.all(pairs.clean[-1]))
    begun = min({"plms": 1, "pndm": 3}[name], len(pairs) - int(np.all(pairs.clean[-1])))
    saved = int(name == "pndm" and begun > 0)
    form = Form(saved + max(min(len(pairs) - int(euler), 4) - 1, min(begun, 1)))
    stages: list[tuple[Point, Point, Float64]] = []

    def stage(at: Point, to: Point, first: int, **of: Any) -> Float64:
        """Add a stage z' = sum of factors of `z`, `slope`, `saved` and the `past` slopes; return its table.

        The past is kept up to row `first`, where the new slope goes if it is that of the newest, and moves up from there on.
        """
        table = np.zeros((*pairs.lead, 1 + form.memory, form.columns))
        slope = np.zeros((*pairs.lead, form.columns))
        slope[..., 0], slope[..., form.x] = 1.0 / (at.norm * at.rho), -1.0 / at.rho
        table[..., 0, :] = np.asarray(of.get("slope", 0.0))[..., None] * slope
        table[..., 0, 0] += of.get("z", 0.0)
        table[..., 0, 1] += of.get("saved", 0.0)
        for row, factor in enumerate(of.get("past", []), 1 + saved):
            table[..., 0, row] += factor
        for row in range(1 + saved, 1 + form.memory):
            table[..., row, row if row < first else row - 1] = 1.0
        if first == 1 + saved <= form.memory:
            table[..., first, :] = slope
        stages.append((at, to, table))
        return table

    with np.errstate(all="ignore"):  # what has no value is refused below
        for k in range(len(pairs)):
            t, s = (point(Level(*(part[k] for part in level)), schedule.scaling) for level in (pairs.t, pairs.s))
            whole, of_slope, new = s.norm / t.norm, s.norm * (s.rho - t.rho), 1 + saved
            if k >= begun:
                weights = [1.0] if euler and k == len(pairs) - 1 else adams_bashforth(min(k + 1, 4))
                table = stage(t, s, new, z=whole, slope=weights[0] * of_slope, past=[w * of_slope for w in weights[1:]])
                if len(weights) == 1 and np.all(pairs.clean[k]):
                    table[..., 0, :] = np.arange(form.columns) == form.x
            elif not saved:
                stage(t, s, new, z=whole, slope=of_slope)
                stage(s, s, new + 1, z=np.ones_like(whole), slope=0.5 * of_slope, past=[-0.5 * of_slope])
            else:
                time = 0.5 * (schedule.time(2.0 * t.half) + schedule.time(2.0 * s.half))
                m = t.at_half(0.5 * np.asarray(schedule.log_snr(time)))
                part, of_part = m.norm / t.norm, m.norm * (m.rho - t.rho)
                stage(t, m, new, z=part, slope=of_part)[..., 1, 0] = 1.0
                stage(m, m, 9, saved=part, slope=of_part)[..., 1, 1] = 1.0
                table = stage(m, s, 9, saved=whole, slope=of_slope)
                table[..., 1, :] = table[..., 0, :] / 3.0
                table[..., 1, 0] += of_slope / (3.0 * of_part)
                table[..., 1, 1] += whole * 2.0 / 3.0 - of_slope * part / (3.0 * of_part)
                table[..., 1, 2] = of_slope / 6.0
                stage(s, s, 9, saved=np.ones_like(whole), slope=of_slope / 6.0)
    update = np.stack([table for _, _, table in stages])
    if not np.all(np.isfinite(update)):
        refuse_pure_noise(name, pairs)
    at, to = (2.0 * np.stack([level.half for level in part]) for part in list(zip(*stages, strict=True))[:2])
    return finish(name, schedule, at, to, update, final=final)
