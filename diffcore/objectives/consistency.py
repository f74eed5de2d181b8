r"""Consistency models: networks whose x-hat is the same all along a trajectory of the probability-flow ODE.

In continuous time with TrigFlow, alpha = cos(t) and sigma = sin(t), which is "vp", for data of standard deviation 1. There sCM's
network is a v-prediction, and its consistency function f = cos(t) z - sin(t) F is the x-hat of that prediction, which is z itself
on clean data. So a trained network is sampled with `samplers.lcm` and prediction="v".

Source: Lu & Song 2025 (arXiv 2410.11081); Geng et al. 2025 (arXiv 2406.14548); Song et al. 2023 (arXiv 2303.01469).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffcore import _array, _check, _layout, levels, predictions, process
from diffcore._array import Array
from diffcore._dispatch import backend_of
from diffcore._unwritten import called
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
from diffcore.predictions import Prediction


def consistency(
    network: Callable[[Array, Array], Array],
    x: Array,
    eps: Array,
    *,
    level: Level,
    velocity: Callable[[Array, Array], Array] | None = None,
    warmup: float = 1.0,
    normalise: float | None = 0.1,
) -> Array:
    r"""Return the continuous-time consistency loss sCM, for training, or for distillation with a teacher's `velocity`.

        loss = mean |F - sg(F + g)|^2,    g = -cos^2(t) (F - dz/dt) - r sin(t) cos(t) (z + dF/dt)

    g is cos(t) times the change of x-hat along the trajectory, and vanishes for a consistency function. Its derivative is one
    product with the Jacobian, forwards.

    Args:
        network: (z, log_snr) -> F, a v-prediction.
        x, eps: data of standard deviation near 1 and noise (B, ...), floating arrays of one shape, of torch or JAX.
        level: under "vp", of shape (), (B,) or (B, T), finite; sCM draws log tan(t) = -log_snr / 2 from a normal.
        velocity: (z, log_snr) -> v of a teacher (a v-prediction), for dz/dt; None is alpha eps - sigma x, consistency training.
        warmup: r in [0, 1], which rises over the first steps of training; 0 leaves a denoising loss.
        normalise: c > 0 replaces g by g / (|g| + c), |g| the root mean square of a sample; None leaves g as it is.

    Returns:
        (B,), at least float32. Its gradient is -2 g dF per element; its value is |g|^2.

    Raises:
        TypeError: NumPy arrays, mixed libraries, or what is no level.
        ValueError: shapes that differ; a level of another scaling; settings out of range.

    Source: Lu & Song 2025 (arXiv 2410.11081), alg. 1, without its learned weight.

    >>> import torch, diffcore as dc
    >>> level = dc.levels.level(torch.zeros(1))
    >>> consistency(lambda z, _: 0.5 * z, torch.ones(1, 2), torch.zeros(1, 2), level=level).shape
    torch.Size([1])
    """
    function = "objectives.consistency"
    if _layout.divided(x):
        how: dict[str, Any] = {"velocity": velocity, "warmup": warmup, "normalise": normalise}
        run = lambda x, eps, level: consistency(network, x, eps, level=level, **how)  # noqa: E731
        return by_samples(function, run, x, eps, level)
    check_network(function, network, velocity=velocity)
    xp = check_data(function, level, x=x, eps=eps)
    check_scaling(function, "level", level, "vp")
    r = _check.number(function, "warmup", warmup, 0.0, 1.0)
    if normalise is not None:
        _check.number(function, "normalise", normalise, 0.0, open_low=True)
    wide_x, wide_eps = _array.widen(xp, x), _array.widen(xp, eps)
    log_snr = log_snr_of(function, level, x)
    at = levels.level(log_snr, "vp")
    z = process.diffuse(wide_x, wide_eps, at)
    cos, sin = (along(function, part, z) for part in (at.alpha, at.sigma))
    like = lambda z: xp.astype(z, x.dtype, copy=False)  # noqa: E731
    if velocity is None:
        moves = cos * wide_eps - sin * wide_x
    else:
        moves = stopped(_array.widen(xp, velocity(like(z), log_snr)))

    def predicted(z: Array, log_snr: Array) -> Array:
        return _array.widen(xp, network(like(z), log_snr))

    slope = -2.0 / (at.alpha * at.sigma)  # d log_snr / dt
    found, change = backend_of(x).jvp(predicted, (z, log_snr), (moves, slope))
    g = -(cos**2) * (stopped(found) - moves) - r * sin * cos * (z + stopped(change))
    if normalise is not None:
        size = xp.sqrt(mean(g**2))
        g = g / (xp.reshape(size, (-1,) + (1,) * (g.ndim - 1)) + normalise)
    return mean((found - stopped(found + g)) ** 2)


def consistency_pair(
    network: Callable[[Array, Array], Array],
    x: Array,
    eps: Array,
    *,
    t: Level,
    s: Level,
    prediction: Prediction,
    z_s: Array | None = None,
    teacher: Callable[[Array, Array], Array] | None = None,
    huber: float = 0.0,
) -> Array:
    r"""Return the consistency loss of two levels, |x-hat(z_t) - sg(x-hat(z_s))|^2 / (r_t - r_s), r = sigma / alpha.

    Consistency training takes z_s with the same x and eps; ECT draws s nearer to t as training goes on. It begins with clean data,
    where the loss is that of denoising. Distillation takes z_s from a step of a teacher's ODE.

    Args:
        network: (z, log_snr) -> prediction.
        x, eps: data and noise (B, ...), floating arrays of one shape.
        t, s: levels of one scaling, of shape (), (B,) or (B, T), t the noisier and finite; clean data at s counts as x.
        prediction: what the network returns; its x-hat should be z at clean data, as that of "v", "flow" and "edm" is.
        z_s: the state at s on the trajectory of z_t = alpha x + sigma eps, by a teacher; None is alpha_s x + sigma_s eps.
        teacher: another network for the target, such as an average of past weights; None is the network itself.
        huber: c >= 0, for sqrt(|.|^2 + c^2) - c of a sample's root mean square in place of |.|^2; 0 keeps the square, and what is
            below 1e-15 counts as 1e-15.

    Returns:
        (B,), at least float32.

    Raises:
        TypeError, ValueError: mixed libraries, shapes that differ, levels out of order, an unknown prediction.

    Source: Geng et al. 2025 (arXiv 2406.14548), sec. 3, for ECT; Song et al. 2023 (arXiv 2303.01469), alg. 2 and 3; Song &
    Dhariwal 2024 (arXiv 2310.14189), sec. 3.3, for the Huber loss and the weight.
    """
    function = "objectives.consistency_pair"
    arrays = {"x": x, "eps": eps} if z_s is None else {"x": x, "eps": eps, "z_s": z_s}
    check_network(function, network, teacher=teacher)
    xp = check_data(function, t, **arrays)
    levels.check_level(function, s=s)
    c = _check.number(function, "huber", huber, 0.0)
    process.ordered(function, s, t)
    z = process.diffuse(x, eps, t)
    before = process.diffuse(x, eps, s) if z_s is None else z_s
    y = called(network, z, log_snr_of(function, t, x), function=function, argument="network")
    found = predictions.convert(y, z, t, source=prediction, target="x")
    other, argument = (network, "network") if teacher is None else (teacher, "teacher")
    y = stopped(called(other, before, log_snr_of(function, s, x), function=function, argument=argument))
    clean = along(function, s.sigma, x) * xp.ones_like(x) == 0.0
    target = xp.where(clean, before, predictions.convert(y, before, s, source=prediction, target="x"))
    error = mean((_array.widen(xp, found) - stopped(_array.widen(xp, target))) ** 2)
    if c:
        error = _huber(xp, error, max(c, 1e-15))
    return error * _weight(function, t, s, error)


def _huber(xp: Any, error: Array, c: float) -> Array:
    """Return sqrt(error + c^2) - c, in a form in which c^2 neither overflows nor cancels."""
    if c < 1.0:
        return error / (xp.sqrt(error + c * c) + c)
    return error / c / (xp.sqrt(1.0 + error / c / c) + 1.0)


def _weight(function: str, t: Level, s: Level, like: Array) -> Array:
    """Return 1 / (r_t - r_s), for each sample; where levels differ between frames, of their mean."""
    t, s = levels.line_up(function, t=t, s=s)
    apart = t.sigma / t.alpha - s.sigma / s.alpha
    if len(getattr(apart, "shape", ())) > 1:
        apart = mean(apart)
    return 1.0 / along(function, apart, like) if not isinstance(apart, float) else 1.0 / apart
