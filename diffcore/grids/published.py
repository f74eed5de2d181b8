"""Grids that were found by search for one model and published as lists of noise levels, and these lists at any length."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from diffcore import _check
from diffcore.grids._base import Ends, Float64, each
from diffcore.grids.given import levels_of
from diffcore.schedules import Schedule

# sigma / alpha; Sabour et al. 2024, https://research.nvidia.com/labs/toronto-ai/AlignYourSteps/howto.html
_ALIGN_YOUR_STEPS = {
    "sd1": (14.6146412293, 6.4745760956, 3.8636745985, 2.6946151520, 1.8841921177, 1.3943805092, 0.9642583904, 0.6523686016,
            0.3977456272, 0.1515232662, 0.0291671582),
    "sdxl": (14.6146412293, 6.3184485287, 3.7681790315, 2.1811480769, 1.3405244945, 0.8620721141, 0.5550693289, 0.3798540708,
             0.2332364134, 0.1114188177, 0.0291671582),
    "svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}  # fmt: skip
# sigma of a flow; Pei et al. 2025, https://github.com/bebebe666/OptimalSteps
_OPTIMAL_STEPS = {
    "flux": (0.9968, 0.9886, 0.9819, 0.975, 0.966, 0.9471, 0.9158, 0.8287, 0.5512, 0.2808, 0.001),
    "wan": (1.0, 0.997, 0.995, 0.993, 0.991, 0.989, 0.987, 0.985, 0.98, 0.975, 0.973, 0.968, 0.96, 0.946, 0.927, 0.902, 0.864,
            0.776, 0.539, 0.208, 0.001),
    "chroma": (0.992, 0.99, 0.988, 0.985, 0.982, 0.978, 0.973, 0.968, 0.961, 0.953, 0.943, 0.931, 0.917, 0.9, 0.881, 0.858,
               0.832, 0.802, 0.769, 0.731, 0.69, 0.646, 0.599, 0.55, 0.501, 0.451, 0.402, 0.355, 0.311, 0.27, 0.232, 0.199, 0.169,
               0.143, 0.12, 0.101, 0.084, 0.07, 0.058, 0.048, 0.001),
}  # fmt: skip


def align_your_steps(
    schedule: Schedule,
    steps: int,
    *,
    model: str = "sd1",
    start: npt.ArrayLike = 1.0,
    end: npt.ArrayLike = 0.0,
    clean: bool | None = None,
) -> Float64:
    r"""Return the grid of Align Your Steps: levels that a bound of the KL divergence is least for, found by search for one model.

    The published list has 10 steps. Other lengths are log-linear in sigma through it, and so is a part of it: from a `start`
    below 1, N steps from the schedule's level at `start`, or from the list's first where that is cleaner. A clean end takes
    the place of the last level.

    Args:
        schedule: what log-SNR `start` and `end` are; its own range does not matter from 1 to 0.
        steps: N, an int >= 1.
        model: "sd1", "sdxl" or "svd", Stable Diffusion 1.5, XL and Video.
        start, end, clean: as for `uniform`.

    Returns:
        A float64 array (N + 1, *lead).

    Raises:
        ValueError: as `uniform`; an unknown model, or a range of times that the list does not reach into.
        TypeError: as `uniform`.

    Source: Sabour et al. 2024 (arXiv 2404.14507), and the project's page; ComfyUI, "AlignYourStepsScheduler".

    >>> from diffcore.schedules import Karras
    >>> np.exp(-0.5 * align_your_steps(Karras(), 10, model="sdxl"))[[0, 1, -2, -1]].round(4)
    array([14.6146,  6.3184,  0.1114,  0.    ])
    """
    function = "grids.align_your_steps"
    listed = _ALIGN_YOUR_STEPS[_check.choice(function, "model", model, _ALIGN_YOUR_STEPS)]
    return _through(function, schedule, steps, (start, end, clean), listed, "ve")


def optimal_steps(
    schedule: Schedule,
    steps: int,
    *,
    model: str = "flux",
    start: npt.ArrayLike = 1.0,
    end: npt.ArrayLike = 0.0,
    clean: bool | None = None,
) -> Float64:
    r"""Return the grid of Optimal Stepsize (OSS), levels of a flow found by dynamic programming for one model.

    The published lists have 10, 20 and 40 steps. Arguments and errors as for `align_your_steps`, log-linear in sigma of the flow.

    Args:
        model: "flux", "wan" or "chroma".

    Source: Pei et al. 2025 (arXiv 2503.21774), and its repository; ComfyUI, "OptimalStepsScheduler".

    >>> from diffcore.schedules import Flow
    >>> Flow().time(optimal_steps(Flow(), 10))[[0, 1, -2, -1]].round(4)
    array([0.9968, 0.9886, 0.2808, 0.    ])
    """
    function = "grids.optimal_steps"
    listed = _OPTIMAL_STEPS[_check.choice(function, "model", model, _OPTIMAL_STEPS)]
    return _through(function, schedule, steps, (start, end, clean), listed, "flow")


def gits(
    schedule: Schedule,
    steps: int,
    *,
    coefficient: float = 1.2,
    start: npt.ArrayLike = 1.0,
    end: npt.ArrayLike = 0.0,
    clean: bool | None = None,
) -> Float64:
    r"""Return the grid of GITS, levels of Stable Diffusion 1.5 found from the shape of its trajectories.

    For each coefficient there is a list for each N from 2 to 20; a longer one is log-linear in sigma through the last. Other
    arguments and errors as for `align_your_steps`.

    Args:
        coefficient: 0.80, 0.85, ..., 1.50, a setting of the search: the larger, the more steps are at small sigma.

    Source: Chen et al. 2024 (arXiv 2405.11326), and its repository; ComfyUI, "GITSScheduler".

    >>> from diffcore.schedules import Karras
    >>> np.exp(-0.5 * gits(Karras(), 3)).round(3)
    array([14.615,  1.563,  0.524,  0.   ])
    """
    from diffcore.grids._gits import lists  # 266 lists, parsed where they are asked for

    function = "grids.gits"
    count = _check.count(function, "steps", steps, 1)
    _check.number(function, "coefficient", coefficient, 0.8, 1.5, hint="the lists are for 0.80, 0.85, ..., 1.50")
    found = lists().get(round(100 * coefficient)) if abs(20 * coefficient - round(20 * coefficient)) < 1e-6 else None
    if found is None:
        must = "be a multiple of 0.05 in [0.8, 1.5]"
        raise _check.error(ValueError, function, "coefficient", must, coefficient, "there is no list for others")
    return _through(function, schedule, count, (start, end, clean), found[min(max(count, 2), 20) - 2], "ve")


def _through(
    function: str, schedule: Schedule, steps: int, ends: Ends, listed: tuple[float, ...], scaling: str
) -> Float64:
    """Return the grid log-linear in sigma through a list of levels, or through the part of it between two times."""
    count = _check.count(function, "steps", steps, 1)
    logs, knots = np.log(listed), levels_of(np.asarray(listed), scaling)
    places = np.arange(float(len(listed)))

    def place(time: float, whole: float) -> float:
        """Return where in the list the schedule's level at a time is."""
        if time == whole:
            return float(places[-1] if whole == 0.0 else 0.0)
        log_snr = min(max(float(schedule.log_snr(time)), float(knots[0])), float(knots[-1]))
        if not np.isfinite(log_snr):
            return 0.0
        log_sigma = -0.5 * log_snr if scaling == "ve" else -np.logaddexp(0.0, 0.5 * log_snr)
        return float(np.interp(-log_sigma, -logs, places))

    def make(first: float, last: float, in_data: bool) -> Float64:
        top, bottom = place(first, 1.0), place(last, 0.0)
        if not top < bottom:
            raise ValueError(
                f"{function}: `start` and `end` must have levels within the list, sigma in [{listed[-1]:g}, {listed[0]:g}], got "
                f"the times {first!r} and {last!r}, which have none; use another grid there"
            )
        step = np.arange(count + 1.0)
        at = top + (bottom - top) * step / count
        exact = np.isin(at, places)  # the list itself, without rounding
        found = np.where(exact, knots[np.rint(at).astype(int)], levels_of(np.exp(np.interp(at, places, logs)), scaling))
        if in_data:
            found[-1] = np.inf
        return found

    return each(function, schedule, ends, make)
