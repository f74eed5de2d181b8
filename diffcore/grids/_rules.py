"""What grids by rules for timesteps share: from timesteps of a table, or of a part of it, to log-SNRs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from diffcore import _check
from diffcore.grids._base import Ends, Float64, each
from diffcore.schedules import Schedule, Table

Rule = Callable[[int, int], npt.ArrayLike]
"""(N, T) -> timesteps in [0, T - 1] that fall."""


def entries_of(schedule: Schedule) -> int:
    """Return T of the table in a schedule, or 1000."""
    while not isinstance(schedule, Table):
        inner = getattr(schedule, "schedule", None)
        if not isinstance(inner, Schedule):
            return 1000
        schedule = inner
    return len(schedule.log_snrs)


def by_rule(function: str, schedule: Schedule, steps: int, timesteps: int | None, ends: Ends, rule: Rule) -> Float64:
    """Return the grid through the timesteps of a rule, and the clean point or the level at the end; see `timesteps.leading`."""
    count = _check.count(function, "steps", steps, 1)
    whole = entries_of(schedule) if timesteps is None else _check.integer(function, "timesteps", timesteps, 2)

    def make(first: float, last: float, in_data: bool) -> Float64:
        without_end = bool(np.isposinf(schedule.log_snr(last)))  # timestep 0 is then one step before it
        gaps = (first - last) * (whole if without_end else whole - 1)
        entries = max(round(gaps) + (not without_end), 2)
        if count > entries:
            must, hint = f"be at most {entries}, the timesteps that there are", "uniform has no such limit"
            raise _check.error(ValueError, function, "steps", must, count, hint)
        found = np.asarray(rule(count, entries), dtype=np.float64)
        if not (in_data or without_end or found[-1] > 0.0):
            found = np.asarray(rule(count + 1, entries), dtype=np.float64)
        part = (found + without_end) / (entries - 1 + without_end)
        points = np.asarray(schedule.log_snr(first * part + last * (1.0 - part)), dtype=np.float64)
        if in_data or without_end:
            return np.append(points, np.inf)
        return points if found[-1] == 0.0 else np.append(points, schedule.log_snr(last))

    return each(function, schedule, ends, make)
