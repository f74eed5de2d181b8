"""Grids whose timesteps follow a curve: quantiles of a Beta distribution, a smooth step, arcs of arctan."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from diffcore import _check
from diffcore.grids._base import Float64, each
from diffcore.grids._rules import by_rule
from diffcore.grids.spaced import beta_quantile
from diffcore.schedules import Schedule


def beta(
    schedule: Schedule,
    steps: int,
    *,
    a: float = 0.6,
    b: float = 0.6,
    timesteps: int | None = None,
    start: npt.ArrayLike = 1.0,
    end: npt.ArrayLike = 0.0,
    clean: bool | None = None,
) -> Float64:
    r"""Return the grid of timesteps that are quantiles of a Beta distribution: more at both ends where a and b are below 1.

        i_k = round((T - 1) F^{-1}(1 - k / N)),  F the distribution function of Beta(a, b)

    Repeated ones are left out, so there may be fewer than N. "beta57" is a = 0.5, b = 0.7.

    Args:
        a, b: the parameters, positive.
        schedule, steps, timesteps, start, end, clean: as for `leading`.

    Returns, raises: as `leading`.

    Source: Lee et al. 2024 (arXiv 2407.12173); ComfyUI, `beta_scheduler`; RES4LYF for "beta57".

    >>> from diffcore.schedules import LinearLogSNR
    >>> (999 * LinearLogSNR().time(beta(LinearLogSNR(), 4))).round(6)
    array([999., 823., 500., 176.,   0.])
    """
    a, b = (_check.number("grids.beta", name, value, 0, open_low=True) for name, value in (("a", a), ("b", b)))

    def rule(count: int, entries: int) -> npt.ArrayLike:
        return _once(np.rint((entries - 1) * beta_quantile(1.0 - np.arange(count) / count, a, b)))

    return by_rule("grids.beta", schedule, steps, timesteps, (start, end, clean), rule)


def smoothstep(
    schedule: Schedule,
    steps: int,
    *,
    timesteps: int | None = None,
    start: npt.ArrayLike = 1.0,
    end: npt.ArrayLike = 0.0,
    clean: bool | None = None,
) -> Float64:
    r"""Return the grid whose timesteps fall as a smooth step: more at both ends.

        i_k = round((T - 1) u^2 (3 - 2 u)),  u = 1 - k / N

    Repeated ones are left out. Arguments and errors as for `leading`. Source: stable-diffusion.cpp, "smoothstep".

    >>> from diffcore.schedules import LinearLogSNR
    >>> (999 * LinearLogSNR().time(smoothstep(LinearLogSNR(), 4))).round(6)
    array([999., 843., 500., 156.,   0.])
    """

    def rule(count: int, entries: int) -> npt.ArrayLike:
        u = 1.0 - np.arange(count) / count
        return _once(np.floor((entries - 1) * u**2 * (3.0 - 2.0 * u) + 0.5))

    return by_rule("grids.smoothstep", schedule, steps, timesteps, (start, end, clean), rule)


def bong_tangent(
    schedule: Schedule,
    steps: int,
    *,
    start: npt.ArrayLike = 1.0,
    end: npt.ArrayLike = 0.0,
    clean: bool | None = None,
) -> Float64:
    r"""Return the "bong_tangent" grid: two arcs of arctan, from t = 1 to 1/2 and from 1/2 to 0, each fastest at its pivot.

        t_x = c + d (r(x) - r(n - 1)) / (r(0) - r(n - 1)),  r(x) = arctan(8 (p - x) / (N + 2)),  x = 0, ..., n - 1

    with the first arc of n = floor(0.6 (N + 2)) points and p = n, the second of the others and p = 0. On a flow these times
    are the sigmas of RES4LYF; it has the same sigmas for every model, this library the same times.

    Arguments and errors as for `uniform`. Source: RES4LYF, `bong_tangent_scheduler`, with its defaults.

    >>> from diffcore.schedules import Flow
    >>> Flow().time(bong_tangent(Flow(), 4)).round(4)
    array([1.    , 0.8572, 0.5   , 0.1175, 0.    ])
    """
    count = _check.count("grids.bong_tangent", "steps", steps)

    def make(first: float, last: float, in_data: bool) -> Float64:
        part = np.array([1.0, 0.0])
        if count > 1:
            early = int((count + 2) * 0.6)
            arcs = []
            for low, pivot, length in ((0.5, early, early), (0.0, 0, count + 2 - early)):
                r = np.arctan(8.0 * (pivot - np.arange(length)) / (count + 2))
                arcs.append(low + 0.5 * (r - r[-1]) / (r[0] - r[-1]))
            part = np.concatenate([arcs[0][:-1], arcs[1]])
        points = np.array(schedule.log_snr(first * part + last * (1.0 - part)), dtype=np.float64)
        points[-1] = np.inf if in_data else points[-1]
        return points

    return each("grids.bong_tangent", schedule, (start, end, clean), make)


def _once(falling: Float64) -> Float64:
    return np.asarray(falling[np.concatenate([[True], np.diff(falling) != 0.0])])
