"""The table of grids by the names that people know."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from diffcore import _check
from diffcore.grids import curves, flow, published, spaced, timesteps
from diffcore.grids._base import Float64, check_ends, ends_clean
from diffcore.schedules import Schedule
from diffcore.schedules._base import scaling_of

_BETWEEN: dict[str, Callable[..., Float64]] = {
    "beta_sigmas": spaced.beta_sigmas,
    "exponential": spaced.polyexponential,
    "karras": spaced.karras,
    "kl_optimal": spaced.kl_optimal,
    "linear_quadratic": spaced.linear_quadratic,
    "lu": spaced.uniform_log_snr,
    "polyexponential": spaced.polyexponential,
    "uniform_log_snr": spaced.uniform_log_snr,
}
"""The grids between two levels that must be finite."""


def table() -> dict[str, Callable[..., Float64]]:
    """Return the table of grids, name -> what makes it of (schedule, steps, *, start, end, clean) and settings of its own.

    >>> from diffcore.schedules import LinearLogSNR
    >>> table()["sgm_uniform"](LinearLogSNR(), 2)
    array([-10.,   0.,  inf])
    """
    return {
        "align_your_steps": published.align_your_steps,
        "align_your_steps_sdxl": functools.partial(published.align_your_steps, model="sdxl"),
        "align_your_steps_svd": functools.partial(published.align_your_steps, model="svd"),
        "beta": curves.beta,
        "beta57": functools.partial(curves.beta, a=0.5, b=0.7),
        "bong_tangent": curves.bong_tangent,
        "ddim_uniform": timesteps.ddim_uniform,
        "flow_match": flow.flow_match,
        "gits": published.gits,
        "leading": timesteps.leading,
        "linspace": timesteps.linspace,
        "normal": timesteps.normal,
        "optimal_steps": published.optimal_steps,
        "optimal_steps_chroma": functools.partial(published.optimal_steps, model="chroma"),
        "optimal_steps_wan": functools.partial(published.optimal_steps, model="wan"),
        "sgm_uniform": functools.partial(timesteps.linspace, rounded=False, drop_last=True),
        "simple": timesteps.simple,
        "smoothstep": curves.smoothstep,
        "trailing": timesteps.trailing,
        "uniform": spaced.uniform,
        **_BETWEEN,
    }


def by_name(
    name: str, schedule: Schedule, steps: int, *, start: npt.ArrayLike = 1.0, end: npt.ArrayLike = 0.0, **settings: Any
) -> Float64:
    r"""Return a grid by its name, as the libraries that the name is from make it for any of their models.

    As `table()[name](schedule, steps, start=start, end=end, **settings)`, with two defaults of these libraries: grids between two
    levels space the sigmas of the flow where the schedule's scaling is "flow"; and from an infinite end of the schedule they keep
    away by one timestep of 1000, with the clean point after them as before.

    Args:
        name: a name of `table`.
        schedule, steps, start, end: as for `uniform`.
        settings: further ones of the grid, such as `rho` or `shift`.

    Returns:
        A float64 array (N + 1, *lead); where the docstring of the grid says so, of another length.

    Raises:
        ValueError: an unknown name; what the grid itself refuses.

    >>> from diffcore.schedules import Flow
    >>> Flow().time(by_name("karras", Flow(), 3)).round(3)
    array([1.   , 0.072, 0.001, 0.   ])
    """
    function = "grids.by_name"
    make = table()[_check.choice(function, "name", name, table())]
    scaling_of(function, "schedule", schedule)
    if name in _BETWEEN:
        first, last = check_ends(function, start, end)
        flow_like = schedule.scaling == "flow" and _BETWEEN[name] is not spaced.uniform_log_snr
        if flow_like:
            settings = {"scaling": "flow", **settings}
        settings.setdefault("clean", None)
        clean = ends_clean(function, first, last, settings["clean"])
        if np.all(clean == clean.flat[0]):  # the grids take one flag, or find out themselves
            settings["clean"] = bool(clean.flat[0])
            far = settings.get("scaling") == "flow"  # sigma of the flow is 1 where lambda is -inf
            start, end = (_finite(schedule, time, noise_too=not far) for time in (first, last))
    return make(schedule, steps, start=start, end=end, **settings)


def _finite(schedule: Schedule, time: Float64, *, noise_too: bool) -> Float64:
    """Return times, those of infinite levels moved by one timestep of 1000."""
    log_snr = np.asarray(schedule.log_snr(time), dtype=np.float64)
    moved = np.where(np.isposinf(log_snr), time + 1.0 / 1000.0, time)
    return np.asarray(np.where(np.isneginf(log_snr) & noise_too, moved - 1.0 / 1000.0, moved))
