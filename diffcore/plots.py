"""Pictures of schedules, grids, plans beside one another, and the states of a run, by matplotlib; `Plan.plot` draws one plan.

Each function returns a `matplotlib.figure.Figure`, and writes it where a `path` is given (png, svg, pdf); none needs a display.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffcore import _array, _check, _explained
from diffcore.plan import Plan, plot
from diffcore.schedules import Schedule
from diffcore.state import State

__all__ = ["grids", "plans", "schedules", "trajectory"]

Path = str | os.PathLike[str] | None


def schedules(given: Schedule | Sequence[Schedule] | Mapping[str, Schedule], path: Path = None) -> Any:
    """Draw schedules: the log-SNR over time, and alpha and sigma over time, under "ve" divided by max(1, sigma).

    Args:
        given: one, several, or a mapping from names.
        path: where to write the picture, or None.

    Raises:
        TypeError: what is no schedule.
        ImportError: matplotlib is missing; install diffcore[plot].

    >>> import diffcore as dc
    >>> len(schedules([dc.schedules.Cosine(), dc.schedules.Flow()]).axes)
    2
    """
    figure = plot.figure("plots.schedules", 10.0, 4.0)
    left, right = figure.subplots(1, 2)
    t, divided = np.linspace(0.0, 1.0, 401), False
    for name, schedule in _named("plots.schedules", given, Schedule, "a schedule, such as schedules.Cosine()"):
        level = schedule(t)
        divided = divided or schedule.scaling == "ve"
        shown = np.where(np.isfinite(level.log_snr), level.log_snr, np.nan)
        (line,) = left.plot(t, shown, label=name)
        size = (
            np.maximum(1.0, np.where(np.isfinite(level.sigma), level.sigma, np.nan))
            if schedule.scaling == "ve"
            else 1.0
        )
        right.plot(t, level.alpha / size, color=line.get_color(), label=name)
        right.plot(t, level.sigma / size, "--", color=line.get_color(), label="_")
    left.set_xlabel("t, 0 is data")
    left.set_ylabel("log-SNR")
    right.set_xlabel("t")
    right.set_ylabel("alpha (line), sigma (dashed)" + "\nve: divided by max(1, sigma)" * divided)
    plot.legend(right)
    return plot.save(figure, path)


def grids(given: Any, path: Path = None) -> Any:
    """Draw grids of levels, each as a row of points over log-SNR, noise on the left; what ends at infinity has an arrow.

    Args:
        given: a grid (N,), several, or a mapping from names.
        path: where to write the picture, or None.

    Raises:
        ValueError: a grid that is not a vector, or holds NaN.
        ImportError: matplotlib is missing; install diffcore[plot].

    >>> import diffcore as dc
    >>> schedule = dc.schedules.Cosine()
    >>> len(grids({"uniform": dc.grids.uniform(schedule, 8), "log": dc.grids.uniform_log_snr(schedule, 8)}).axes[0].get_lines())
    2
    """
    entries = list(given.items()) if isinstance(given, Mapping) else None
    if entries is None:
        single = np.ndim(given[0]) == 0
        entries = [(f"grid {at + 1}", grid) for at, grid in enumerate([given] if single else given)]
    found = [
        (str(name), _array.to_host(grid, np.float64, function="plots.grids", argument="given"))
        for name, grid in entries
    ]
    for _, grid in found:
        if grid.ndim != 1 or np.any(np.isnan(grid)):
            raise _check.error(ValueError, "plots.grids", "given", "hold grids, vectors of log-SNRs without NaN", grid)
    figure = plot.figure("plots.grids", 9.0, 1.2 + 0.45 * len(found))
    axes = figure.subplots()
    finite = np.concatenate([grid[np.isfinite(grid)] for _, grid in found] or [np.zeros(1)])
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    room = max(0.04 * (high - low), 0.5)
    for row, (_, grid) in enumerate(found):
        axes.plot(np.clip(grid, low - room, high + room), np.full(grid.shape, -row), marker=".", linewidth=0.6)
        for end in grid[np.isinf(grid)]:
            axes.annotate(
                "clean >" if end > 0 else "< noise", (float(np.clip(end, low - room, high + room)), -row), va="bottom",
                ha="right" if end > 0 else "left", fontsize="small",
            )  # fmt: skip
    axes.set_yticks([-row for row in range(len(found))], [f"{name} ({len(grid) - 1})" for name, grid in found])
    axes.set_ylim(-len(found) + 0.4, 0.6)
    axes.set_xlabel("log-SNR")
    return plot.save(figure, path)


def plans(given: Plan | Sequence[Plan] | Mapping[str, Plan], path: Path = None) -> Any:
    """Draw plans beside one another: the levels at which each calls the denoiser, and the noise that each stage adds.

    Args:
        given: one, several, or a mapping from names; of levels with leading axes the first is drawn.
        path: where to write the picture, or None.

    Raises:
        TypeError: what is no plan.
        ImportError: matplotlib is missing; install diffcore[plot].

    >>> import diffcore as dc
    >>> schedule = dc.schedules.Cosine()
    >>> len(plans([dc.samplers.ddim(schedule, 8), dc.samplers.ancestral(schedule, 16)]).axes)
    2
    """
    figure = plot.figure("plots.plans")
    above, below = figure.subplots(2, 1, sharex=True)
    for name, plan in _named("plots.plans", given, Plan, "a plan, see diffcore.samplers"):
        first = (slice(None), *(0,) * len(plan.lead))
        plot.levels(above, plan.log_snr[first], plan.next_log_snr[first], label=name)
        below.plot(np.abs(plan.update[first][:, 0, plan.form.noise]), marker=".", label=name)
    above.set_ylabel("log-SNR")
    above.margins(y=0.12)
    below.set_ylabel("deviation of the noise added")
    plot.stages(below, "call of the denoiser")
    plot.clip_spikes(below)
    plot.legend(above)
    return plot.save(figure, path)


def trajectory(states: Sequence[State], path: Path = None, *, sample: int | None = None, columns: int = 8) -> Any:
    """Draw the states of a run, as a callback collects them: z above x-hat for pictures and video, else lines over the stages.

    Args:
        states: `states = []; dc.sample(..., callback=states.append)`.
        path: where to write the picture, or None.
        sample: which sample of the batch; None is the first, and of what is no picture as many as make 40 lines.
        columns: how many of the states at most.

    Pictures are (B, H, W, C) or (B, T, H, W, C) with 1 or 3 channels in [-1, 1], of which the first frame is drawn. Of other
    arrays the first 12 elements of a sample are.

    Raises:
        ValueError: no states, or a sample that is not there.
        ImportError: matplotlib is missing; install diffcore[plot].

    >>> import diffcore as dc, numpy as np
    >>> states = []
    >>> plan = dc.samplers.ddim(dc.schedules.Cosine(), 8)
    >>> _ = dc.sample(dc.exact.Gaussian(np.zeros(2), 1.0), plan, shape=(3, 2), seed=7, callback=states.append)
    >>> len(trajectory(states).axes)
    2
    """
    function = "plots.trajectory"
    if not isinstance(states, Sequence) or not states or not all(isinstance(state, State) for state in states):
        must = "be states of a run, collected by `dc.sample(..., callback=states.append)`"
        raise _check.error(ValueError, function, "states", must, states)
    _check.integer(function, "columns", columns, 1)
    shape = tuple(states[0].z.shape[1:])
    pictures = len(shape) in (3, 4) and shape[-1] in (1, 3)
    first = _check.integer(function, "sample", 0 if sample is None else sample, 0, states[0].z.shape[0] - 1)
    several = sample is None and not pictures
    which = slice(first, first + (max(1, 40 // max(1, min(12, math.prod(shape)))) if several else 1))
    rows = {"z": [state.z for state in states], "x-hat": [state.x for state in states]}
    arrays = {
        name: np.stack([_array.to_host(part[which, ...], np.float64) for part in parts])
        for name, parts in rows.items()
        if all(part is not None for part in parts)
    }
    if not pictures:
        return plot.save(_lines(function, arrays, [int(state.index) for state in states]), path)
    chosen = np.unique(np.linspace(0, len(states) - 1, min(columns, len(states))).round().astype(int))
    figure = plot.figure(function, 1.0 + 1.4 * len(chosen), 0.4 + 1.5 * len(arrays))
    grid = figure.subplots(len(arrays), len(chosen), squeeze=False)
    for line, (name, array) in enumerate(arrays.items()):
        frames = array[:, 0, 0] if len(shape) == 4 else array[:, 0]
        for column, at in enumerate(chosen):
            axes, frame = grid[line][column], frames[at]
            size = max(1.0, float(np.std(frame)) / 0.5) if name == "z" else 1.0
            shown = np.clip(0.5 + 0.5 * frame / size, 0.0, 1.0)
            axes.imshow(np.repeat(shown, 3, axis=-1) if shown.shape[-1] == 1 else shown, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            if column == 0:
                axes.set_ylabel(name)
            if line == 0:
                axes.set_title(f"stage {int(states[at].index)}", fontsize="small")
    return plot.save(figure, path)


def _lines(function: str, arrays: Mapping[str, Any], index: list[int]) -> Any:
    figure = plot.figure(function, 9.0, 3.0 * len(arrays))
    for axes, (name, array) in zip(
        figure.subplots(len(arrays), 1, sharex=True, squeeze=False)[:, 0], arrays.items(), strict=True
    ):
        lines = array.reshape(*array.shape[:2], -1)[..., :12].reshape(len(array), -1)
        axes.plot(index, lines, marker=".", linewidth=1.5 if lines.shape[1] <= 12 else 0.7)
        axes.set_ylabel(name)
    plot.stages(axes, "stages done")
    return figure


def _named(function: str, given: Any, kind: type[Any], what: str) -> list[tuple[str, Any]]:
    """Return names and what they stand for, checked."""
    if isinstance(given, Mapping):
        entries = [(str(name), entry) for name, entry in given.items()]
    else:
        found = list(given) if isinstance(given, (list, tuple)) else [given]
        entries = [(_name(entry), entry) for entry in found]
    return [(name, _check.instance(function, "given", entry, kind, what)) for name, entry in entries]


def _name(entry: Any) -> str:
    text = f"{entry.sampler}, {entry.scaling}" if isinstance(entry, Plan) else repr(entry)
    given = dataclasses.fields(entry) if dataclasses.is_dataclass(entry) else ()
    known = all(field.default is not dataclasses.MISSING for field in given)
    if given and known and all(getattr(entry, field.name) == field.default for field in given):
        text = type(entry).__name__
    return text if len(text) <= 40 else type(entry).__name__ if not isinstance(entry, Plan) else text[:40]


_explained.face(__name__)
