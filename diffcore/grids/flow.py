"""What flow models do to their grids: static and dynamic shifts, and a stretch to a last level."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from diffcore import _check
from diffcore.grids._base import Float64, check, each
from diffcore.schedules import Schedule


def flow_match(
    schedule: Schedule,
    steps: int,
    *,
    shift: float = 1.0,
    terminal: float | None = None,
    least: float | None = None,
    start: npt.ArrayLike = 1.0,
    end: npt.ArrayLike = 0.0,
    clean: bool | None = None,
) -> Float64:
    r"""Return the grid of flow models: even in time, shifted towards noise, stretched so that the last noisy level is as given.

        t_i = start + (end - start) i / N  for i < N,  sigma_i = s t_i / (1 + (s - 1) t_i),  or lambda_i = lambda(t_i) - 2 log s

    On `schedules.Flow` these are the sigmas of flow models; the second form shifts any schedule. `uniform` over
    `schedules.shift(schedule, -2 log s)` is the same grid, for a model whose schedule is shifted in training too. For the dynamic
    shift by resolution, give `shift=math.exp(resolution_mu(tokens))`.

    Args:
        schedule: turns the times into log-SNRs.
        steps: N, an int >= 1.
        shift: s, positive; SD3 uses 3.
        terminal: sigma under "flow" of the last noisy level, in (0, 1), by `stretch`; None leaves the levels as they are.
        least: the last noisy time, in (0, start), and the times are even from start to it; None is the formula above, as in most
            pipelines. (`set_timesteps(N)` of the scheduler of diffusers, without sigmas, has
            1 / 1000, shifted twice: `least=s / (999 + s)`.)
        start, end, clean: as for `uniform`, before the shift.

    Returns:
        A float64 array (N + 1, *lead).

    Raises:
        ValueError: as `uniform`; a shift, terminal or least time out of range.
        TypeError: as `uniform`.

    Source: Esser et al. 2024 (arXiv 2403.03206), eq. 23; diffusers, `FlowMatchEulerDiscreteScheduler`.

    >>> from diffcore.schedules import Flow
    >>> Flow().time(flow_match(Flow(), 4, shift=3.0)).round(3)
    array([1.  , 0.9 , 0.75, 0.5 , 0.  ])
    """
    function = "grids.flow_match"
    count = _check.count(function, "steps", steps, 1)
    move = 2.0 * math.log(_check.number(function, "shift", shift, 0, open_low=True))
    if terminal is not None:
        terminal = _check.number(function, "terminal", terminal, 0, 1, open_low=True, open_high=True)

    def make(first: float, last: float, in_data: bool) -> Float64:
        part = np.arange(float(count)) / count
        times = first * (1.0 - part) + last * part
        if least is not None:
            low = _check.number(function, "least", least, last, first, open_low=True, open_high=True)
            part = np.arange(float(count)) / max(count - 1, 1)
            times = first * (1.0 - part) + low * part
        noisy = np.asarray(schedule.log_snr(times), dtype=np.float64) - move
        if terminal is not None:
            noisy = _stretched(noisy, terminal)
        return np.append(noisy, np.inf if in_data else float(schedule.log_snr(last)) - move)

    return each(function, schedule, (start, end, clean), make)


def stretch(grid: npt.ArrayLike, terminal: float) -> Float64:
    r"""Return a grid with every alpha multiplied by one number, so that sigma of the last noisy level is as given.

        1 - sigma_i' = (1 - sigma_i) (1 - terminal) / (1 - sigma_last),  sigma under the "flow" scaling

    Args:
        grid: log-SNRs (N + 1, *lead) that rise; a last point of inf stays, else the last point is the one that is set.
        terminal: in (0, 1).

    Returns:
        A float64 array of that shape.

    Raises:
        ValueError: an invalid grid, or `terminal` out of range.

    Source: Lightricks 2024, LTX-Video, and `shift_terminal` of diffusers.

    >>> stretch([-2.0, 2.0, np.inf], 0.5).round(3)
    array([-2.98,  0.  ,   inf])
    """
    function = "grids.stretch"
    points = check(function, grid)
    if np.any(points[1] < points[0]):
        raise ValueError(f"{function}: `grid` must rise, from noise to data, got one that falls; reverse it")
    terminal = _check.number(function, "terminal", terminal, 0, 1, open_low=True, open_high=True)
    flat = points.reshape(len(points), -1)
    for lead in range(flat.shape[1]):
        noisy = slice(-1 if np.isposinf(flat[-1, lead]) else None)
        flat[noisy, lead] = _stretched(flat[noisy, lead], terminal)
    return check(function, flat.reshape(points.shape))


def _stretched(log_snr: Float64, terminal: float) -> Float64:
    # alpha = sigmoid(lambda / 2), so both are differences of logarithms
    log_alpha = -np.logaddexp(0.0, -0.5 * log_snr)
    log_alpha = log_alpha - log_alpha[-1] + math.log1p(-terminal)
    with np.errstate(divide="ignore"):
        return np.asarray(2.0 * (log_alpha - np.log(-np.expm1(log_alpha))))


def resolution_mu(
    tokens: float, *, base: tuple[float, float] = (256.0, 0.5), top: tuple[float, float] = (4096.0, 1.15)
) -> float:
    r"""Return the logarithm of the dynamic shift for an image of so many tokens, on the line through two points.

        mu = mu_base + (mu_top - mu_base) (n - n_base) / (n_top - n_base),  s = e^mu

    Args:
        tokens: n, the length of the sequence that the network sees, positive: (H / 16) (W / 16) for FLUX.
        base, top: (tokens, mu), those of FLUX by default; the line goes on outside them.

    Returns:
        A float.

    Raises:
        ValueError: `tokens` is not positive, or the tokens of `base` are not below those of `top`.

    Source: Black Forest Labs 2024, FLUX.1; `calculate_shift` of diffusers.

    >>> round(resolution_mu(4096), 12), round(math.exp(resolution_mu(1024)), 6)
    (1.15, 1.877611)
    """
    function = "grids.resolution_mu"
    n = _check.number(function, "tokens", tokens, 0, open_low=True)
    low, high = _check.interval(function, "base and top", (base[0], top[0]), 0)
    return base[1] + (top[1] - base[1]) * (n - low) / (high - low)
