"""Pictures of plans, by matplotlib; and what all pictures of `diffcore.plots` share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diffcore import _check, _files

Float64 = npt.NDArray[np.float64]

SPIKE = 4.0
"""A value beyond this times the range of the other nine tenths is clipped, and told by a mark and its number."""


def figure(function: str, width: float = 9.0, height: float = 6.0) -> Any:
    """Return an empty figure, which needs no display."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"{function}: matplotlib is missing; install diffcore[plot]") from error
    return Figure(figsize=(width, height), layout="constrained")


def legend(axes: Any) -> None:
    """Put the legend beside the axes, where it covers nothing."""
    handles = axes.get_legend_handles_labels()[0]
    if handles:
        columns = -(-len(handles) // 14)
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0, fontsize="small", ncols=columns)


def stages(axes: Any, label: str = "stage") -> None:
    """Count along the x axis in whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(label)


def clip_spikes(axes: Any) -> None:
    """Keep a few large values from flattening all others: the axis ends before them, and each line's largest is told."""
    lines = [line for line in axes.get_lines() if not line.get_label().startswith("_")]
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=np.float64) for line in lines] or [np.zeros(0)])
    values = values[np.isfinite(values)]
    if values.size < 4:
        return
    low, high = np.quantile(values, [0.05, 0.95])
    room = SPIKE * max(float(high - low), 1e-12)
    least, largest = float(values.min()), float(values.max())
    bottom, top = max(least, float(low) - room), min(largest, float(high) + room)
    if (bottom, top) == (least, largest):
        return
    rest = values[(values >= bottom) & (values <= top)]
    bottom, top = min(float(rest.min()), 0.0), max(float(rest.max()), 0.0)
    margin = 0.12 * (top - bottom)
    axes.set_ylim(bottom - margin, top + margin)
    told: dict[tuple[float, bool], list[str]] = {}
    for line in lines:
        x, y = (np.asarray(part, dtype=np.float64) for part in line.get_data())
        for sign, end in ((1.0, top), (-1.0, -bottom)):
            over = np.isfinite(y) & (sign * y > end + margin)
            if np.any(over):
                at = int(np.argmax(np.where(over, sign * y, -np.inf)))
                told.setdefault((float(x[at]), sign > 0), []).append(f"{y[at]:.3g}")
                edge = (top if sign > 0 else bottom) + sign * 0.6 * margin
                axes.plot(
                    x[over], np.full(over.sum(), edge), "^" if sign > 0 else "v", color=line.get_color(), label="_"
                )
    for (place, up), numbers in told.items():
        end_of = top + 0.6 * margin if up else bottom - 0.6 * margin
        right = place < float(np.mean(axes.get_xlim()))
        where = {"xytext": (8 if right else -8, 0), "textcoords": "offset points", "ha": "left" if right else "right"}
        axes.annotate(", ".join(numbers), (place, end_of), va="center", fontsize="small", **where)


def levels(axes: Any, at: Float64, to: Float64, **how: Any) -> None:
    """Draw the levels of a run as a stair, from call to call of the denoiser; an end at infinity is told."""
    path = np.append(at, to[-1])
    finite = path[np.isfinite(path)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (-1.0, 1.0)
    shown = np.clip(path, low - 2.0, high + 2.0)
    (line,) = axes.step(np.arange(len(path)), shown, where="post", **how)
    axes.plot(np.arange(len(at)), shown[:-1], ".", color=line.get_color(), label="_")
    for k in np.flatnonzero(np.isinf(path)):
        axes.annotate(
            "clean" if path[k] > 0 else "noise",
            (k, shown[k]),
            xytext=(-6, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize="small",
            color=line.get_color(),
        )
        axes.plot(k, shown[k], "o", mfc="white", color=line.get_color(), label="_")


def _lead(shape: tuple[int, ...], lead: tuple[int, ...]) -> str:
    """Return which sample and frame a level is of, where there is more than one."""
    names = ("sample", "frame", *("part",) * len(shape))
    return ", ".join(f"{name} {at}" for name, size, at in zip(names, shape, lead, strict=False) if size > 1)


def save(found: Any, path: str | os.PathLike[str] | None) -> Any:
    """Return the figure, after writing it where a path is given."""
    if path is not None:
        name = Path(_files.named("", path))
        kinds = found.canvas.get_supported_filetypes()
        if (kind := name.suffix[1:].lower() or "png") not in kinds:
            raise _check.error(
                ValueError, "", "path", f"end in one of {', '.join(f'.{one}' for one in kinds)}", str(path)
            )
        with _files.replacing(name if name.suffix else name.with_suffix(".png")) as part:
            found.savefig(part, dpi=120, format=kind)
    return found


def plan(plan: Any, path: str | os.PathLike[str] | None) -> Any:
    """Draw the levels of a run above the coefficients of its stages; see `Plan.plot`."""
    found = figure("Plan.plot")
    above, below = found.subplots(2, 1, sharex=True)
    leads = list(np.ndindex(plan.lead))
    for lead in leads[:12]:
        where: tuple[Any, ...] = (slice(None), *lead)
        label = _lead(plan.lead, lead) if len(leads) > 1 else "_"
        color = {} if len(leads) > 1 else {"color": "black"}
        levels(above, plan.log_snr[where], plan.next_log_snr[where], label=label, **color)
    above.set_ylabel("log-SNR")
    above.margins(y=0.12)
    above.set_title(f"{plan.sampler}, {plan.scaling}, {len(plan)} stages")
    legend(above)
    update = plan.update[(slice(None), *(0,) * len(plan.lead))]
    for row in range(1 + plan.form.memory):
        for column, name in enumerate(plan.form.names):
            values = update[:, row, column]
            if np.any(values != 0.0):
                label = f"m{row}: {name}" if row else name
                below.plot(np.arange(len(plan)), values, "--" if row else "-", marker=".", label=label)
    below.axhline(0.0, color="grey", linewidth=0.5, label="_")
    below.set_ylabel("coefficient")
    stages(below)
    clip_spikes(below)
    legend(below)
    return save(found, path)
