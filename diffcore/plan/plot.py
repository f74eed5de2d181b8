"""Pictures of plans, by matplotlib."""

from __future__ import annotations

import os
from typing import Any

import numpy as np


def plan(plan: Any, path: str | os.PathLike[str] | None) -> Any:
    """Draw the levels of a run above the coefficients of its stages; see `Plan.plot`."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Plan.plot: matplotlib is missing; install diffcore[plot]") from error

    first: tuple[Any, ...] = (slice(None), *(0,) * len(plan.lead))
    at, to, update = plan.log_snr[first], plan.next_log_snr[first], plan.update[first]
    stages = np.arange(len(plan))
    figure = Figure(figsize=(8, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    finite = np.concatenate([at[np.isfinite(at)], to[np.isfinite(to)]])
    top = float(finite.max()) + 2.0 if finite.size else 1.0
    above.step(np.append(stages, len(plan)), np.append(at, min(float(to[-1]), top)), where="post", color="black")
    if np.isinf(to[-1]):
        above.annotate("clean", (len(plan), top), ha="right", va="top")
    above.set_ylabel("log-SNR at the call of the denoiser")
    above.set_title(f"{plan.sampler}, {plan.scaling}")
    for row in range(1 + plan.form.memory):
        for column, name in enumerate(plan.form.names):
            values = update[:, row, column]
            if np.any(values != 0.0):
                label = f"m{row}: {name}" if row else name
                below.plot(stages, values, "--" if row else "-", marker=".", label=label)
    below.axhline(0.0, color="grey", linewidth=0.5)
    below.set_xlabel("stage")
    below.set_ylabel("coefficient")
    below.legend()
    if path is not None:
        figure.savefig(path)
    return figure
