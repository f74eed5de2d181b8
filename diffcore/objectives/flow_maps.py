r"""Flow maps: networks u(z, t, s) of the average velocity with which the ODE carries z from level t to the cleaner level s.

Under "flow" the time is sigma = t, z = (1 - t) x + t eps, v = eps - x, and

    z_s = z_t - (t - s) u(z_t, t, s),    u(z, t, t) = v(z, t) = E[eps - x | z]

Networks are called as `diffcore.sample` calls them under `samplers.flow_map`, (z, log_snr, next_log_snr), and predict "flow".

Source: Geng et al. 2025 (arXiv 2505.13447); Guo et al. 2025 (arXiv 2507.16884); Frans et al. 2025 (arXiv 2410.12557); Boffi et al.
2025 (arXiv 2505.18825).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffcore import _array, _check, _layout, levels, process
from diffcore._array import Array
from diffcore._dispatch import backend_of
from diffcore._weight import check_data
from diffcore.levels import Level
from diffcore.objectives._common import (
    along,
    by_samples,
    check_network,
    check_scaling,
    log_snr_of,
    mean,
    stopped,
)

Network = Callable[[Array, Array, Array], Array]
Velocity = Callable[[Array, Array], Array]


def meanflow(
    network: Network,
    x: Array,
    eps: Array,
    *,
    t: Level,
    s: Level,
    velocity: Velocity | None = None,
    power: float = 0.0,
) -> Array:
    r"""Return the MeanFlow loss, by the identity that the average velocity obeys along the path.

        loss = mean |u - sg(v - (t - s) du/dt)|^2,    du/dt = v . grad_z u + d u / d t at fixed s

    With s = t it is flow matching. The derivative is one product with the Jacobian, forwards.

    Args:
        network: (z, log_snr, next_log_snr) -> u, of the shape of z.
        x, eps: data and noise (B, ...), floating arrays of one shape, of torch or JAX.
        t, s: levels under "flow", of shape (), (B,) or (B, T), t the noisier, inside (0, 1); s may be clean.
        velocity: (z, log_snr) -> v(z, t), of a teacher to distil, or with guidance; None is eps - x, which is unbiased.
        power: p >= 0 divides the loss by (|u - target|^2 + 1e-3)^p, a weight without gradient; the paper takes 1, and 0.5 for some.

    Returns:
        (B,), at least float32.

    Raises:
        TypeError: NumPy arrays, mixed libraries, or what is no level.
        ValueError: shapes that differ; levels of another scaling, or out of order.

    Source: Geng et al. 2025 (arXiv 2505.13447), eq. 9-11, and app. B for the power.

    >>> import torch, diffcore as dc
    >>> schedule = dc.schedules.Flow()
    >>> t, s = (schedule(torch.tensor([value])) for value in (0.8, 0.3))
    >>> meanflow(lambda z, *_: 0.5 * z, torch.ones(1, 2), torch.zeros(1, 2), t=t, s=s).shape
    torch.Size([1])
    """
    function = "objectives.meanflow"
    _check.number(function, "power", power, 0.0)
    if _layout.divided(x):
        how: dict[str, Any] = {"velocity": velocity, "power": power}
        return by_samples(function, lambda x, eps, t, s: meanflow(network, x, eps, t=t, s=s, **how), x, eps, t, s)
    z, wide_x, wide_eps = _noised(function, network, x, eps, t, s, velocity)
    xp, log_snr, after = _array.library(z), log_snr_of(function, t, x), log_snr_of(function, s, x)
    v = wide_eps - wide_x if velocity is None else stopped(_array.widen(xp, velocity(_like(z, x), log_snr)))

    def u(z: Array, log_snr: Array) -> Array:
        return _array.widen(xp, network(_like(z, x), log_snr, after))

    found, change = backend_of(x).jvp(u, (z, log_snr), (v, _slope(log_snr)))
    apart = along(function, levels.level(log_snr, "flow").sigma - levels.level(after, "flow").sigma, z)
    error = found - stopped(v - apart * change)
    loss = mean(error**2)
    return loss if power == 0.0 else loss / stopped(loss + 1e-3) ** power


def split_meanflow(network: Network, x: Array, eps: Array, *, t: Level, s: Level, middle: Level) -> Array:
    r"""Return the loss by which one step from t to s is as two, from t to `middle` and from there to s; no derivative is needed.

        (t - s) u(z_t, t, s) = (t - m) u(z_t, t, m) + (m - s) u(z_m, m, s),    z_m = z_t - (t - m) u(z_t, t, m)

        loss = mean |u(z_t, t, s) - sg(right side / (t - s))|^2

    It holds the parts together, and says nothing about the velocity: add `meanflow` at s = t, which is flow matching.

    Args:
        network, x, eps, t, s: as for `meanflow`, s < t.
        middle: a level between the two.

    Returns, raises: as `meanflow`; NumPy arrays are taken too.

    Source: Guo et al. 2025 (arXiv 2507.16884), alg. 1.
    """
    function = "objectives.split_meanflow"
    z, _, _ = _noised(function, network, x, eps, t, s)
    levels.check_level(function, middle=middle)
    process.ordered(function, middle, t)
    process.ordered(function, s, middle)
    at = [log_snr_of(function, level, x) for level in (t, middle, s)]
    xp = _array.library(z)
    time = [along(function, levels.level(part, "flow").sigma, z) for part in at]
    first = stopped(_array.widen(xp, network(_like(z, x), at[0], at[1])))
    between = z - (time[0] - time[1]) * first
    second = stopped(_array.widen(xp, network(_like(between, x), at[1], at[2])))
    whole = _array.widen(xp, network(_like(z, x), at[0], at[2]))
    share = (time[0] - time[1]) / (time[0] - time[2])
    return mean((whole - (share * first + (1.0 - share) * second)) ** 2)


def shortcut(network: Network, x: Array, eps: Array, *, t: Level, s: Level) -> Array:
    r"""Return the loss of shortcut models, one step as two of half its length: `split_meanflow` with the middle time (t + s) / 2.

    Source: Frans et al. 2025 (arXiv 2410.12557), sec. 3.
    """
    function = "objectives.shortcut"
    xp = check_data(function, t, x=x, eps=eps)
    levels.check_level(function, s=s)
    end, start = (levels.level(log_snr_of(function, level, x), "flow") for level in (s, t))
    middle = levels.level(2.0 * xp.log((start.alpha + end.alpha) / (start.sigma + end.sigma)), "flow")
    return split_meanflow(network, x, eps, t=t, s=s, middle=middle)


def lagrangian(
    network: Network, x: Array, eps: Array, *, t: Level, s: Level, velocity: Velocity | None = None
) -> Array:
    r"""Return the Lagrangian loss of a flow map (LSD): where it leads to, it moves with the velocity that the ODE has there.

        X(z, t, s) = z - (t - s) u(z, t, s),    loss = mean |d X / d s - sg(v(X, s))|^2

    v is u(z, s, s) of the network itself, and then `meanflow` at s = t has to be added; or a teacher's.

    Args:
        network, x, eps, t, s: as for `meanflow`; s is not clean, where the derivative in log-SNR is infinite.
        velocity: (z, log_snr) -> v(z, s) of a teacher; None is the network's own.

    Returns, raises: as `meanflow`.

    Source: Boffi et al. 2025 (arXiv 2505.18825), sec. 3; Boffi et al. 2024 (arXiv 2406.07507), sec. 3.
    """
    function = "objectives.lagrangian"
    if _layout.divided(x):
        run = lambda x, eps, t, s: lagrangian(network, x, eps, t=t, s=s, velocity=velocity)  # noqa: E731
        return by_samples(function, run, x, eps, t, s)
    z, _, _ = _noised(function, network, x, eps, t, s, velocity)
    xp, log_snr, after = _array.library(z), log_snr_of(function, t, x), log_snr_of(function, s, x)
    time = along(function, levels.level(log_snr, "flow").sigma, z)

    def carried(after: Array) -> Array:
        apart = time - along(function, levels.level(after, "flow").sigma, z)
        return z - apart * _array.widen(xp, network(_like(z, x), log_snr, after))

    reached, moves = backend_of(x).jvp(carried, (after,), (_slope(after),))
    where = _like(stopped(reached), x)
    v = network(where, after, after) if velocity is None else velocity(where, after)
    return mean((moves - stopped(_array.widen(xp, v))) ** 2)


def _noised(
    function: str, network: Any, x: Array, eps: Array, t: Level, s: Level, velocity: Any = None
) -> tuple[Array, Array, Array]:
    """Return z at t, x and eps, widened, of checked arguments."""
    check_network(function, network, "(z, log_snr, next_log_snr)", velocity=velocity)
    xp = check_data(function, t, x=x, eps=eps)
    levels.check_level(function, s=s)
    for argument, level in (("t", t), ("s", s)):
        check_scaling(function, argument, level, "flow")
    process.ordered(function, s, t)
    wide_x, wide_eps = _array.widen(xp, x), _array.widen(xp, eps)
    return process.diffuse(wide_x, wide_eps, t), wide_x, wide_eps


def _slope(log_snr: Array) -> Array:
    """Return d log_snr / d sigma = -2 / (alpha sigma) under "flow"."""
    at = levels.level(log_snr, "flow")
    return -2.0 / (at.alpha * at.sigma)


def _like(z: Array, x: Array) -> Array:
    return _array.library(z).astype(z, x.dtype, copy=False)
