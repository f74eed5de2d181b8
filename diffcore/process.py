r"""The Gaussian diffusion process, written in log-SNR, so that one set of formulas holds for every scaling.

With s < t (t is noisier, lambda_t < lambda_s):

    marginal:    q(z_t | x) = N(alpha_t x, sigma_t^2)
    transition:  q(z_t | z_s) = N((alpha_t / alpha_s) z_s, (1 - e^{lambda_t - lambda_s}) sigma_t^2)
    posterior:   q(z_s | z_t, x) = N(mean, (1 - e^{lambda_t - lambda_s}) sigma_s^2),
                 mean = e^{lambda_t - lambda_s} (alpha_s / alpha_t) z_t + (1 - e^{lambda_t - lambda_s}) alpha_s x

Source: Ho et al. 2022 (arXiv 2204.03458), sec. 2, eq. 1-4; Kingma et al. 2021 (arXiv 2107.00630), app. A.

Numbers: 1 - e^d is -expm1(d). e^{lambda_t - lambda_s} alpha_s / alpha_t is evaluated as
(alpha_t / alpha_s) (sigma_s / sigma_t)^2, which neither overflows nor loses the digits that rounding
lambda_t - lambda_s would cost. All are finite at lambda = +-inf.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from diffcore import _array, _check, _explained, levels
from diffcore._array import Array
from diffcore.levels import Gaussian, Level


def novelty(s: Level, t: Level) -> Array:
    r"""Return 1 - e^{lambda_t - lambda_s}, the share of z_t's noise that is new since s; 0 at s = t, 1 from clean data.

    Source: Ho et al. 2022, below eq. 2.

    >>> from diffcore.levels import level
    >>> float(novelty(level(float("inf")), level(-20.0)))
    1.0
    """
    s, t = levels.line_up("process.novelty", s=s, t=t)
    xp = _array.namespace("process.novelty", s=s.log_snr, t=t.log_snr)
    _, s_log_snr = _array.level_array("process.novelty", "s.log_snr", s.log_snr)
    _, t_log_snr = _array.level_array("process.novelty", "t.log_snr", t.log_snr)
    equal = s_log_snr == t_log_snr  # guards inf - inf
    gap = xp.where(equal, 0.0 * xp.ones_like(t_log_snr), t_log_snr) - xp.where(
        equal, xp.zeros_like(s_log_snr), s_log_snr
    )
    return _array.scalar(0.0 - xp.expm1(gap))  # 0.0 - 0.0 is 0.0, where -(0.0) would be -0.0


def posterior_coefficients(s: Level, t: Level) -> tuple[Array, Array, Array]:
    r"""Return (a, b, variance) of q(z_s | z_t, x) = N(a z_t + b x, variance), as arrays of the levels' shape.

        a = (alpha_t / alpha_s) (sigma_s / sigma_t)^2,  b = n alpha_s,  variance = n sigma_s^2,  n = 1 - e^{lambda_t - lambda_s}

    Source: Ho et al. 2022, eq. 3-4.

    >>> from diffcore.levels import level
    >>> [float(c) for c in posterior_coefficients(level(float("inf")), level(0.0))]
    [0.0, 1.0, 0.0]
    """
    s, t = levels.line_up("process.posterior_coefficients", s=s, t=t)
    new = novelty(s, t)
    a = _over(t, s, t.alpha, s.alpha) * _over(s, t, s.sigma, t.sigma) ** 2
    return a, new * s.alpha, new * _where_new(new, s.sigma) ** 2


def _over(one: Level, other: Level, above: Array, below: Array) -> Array:
    """Return above / below of two levels; 1 where they are equal, also where both parts are 0, or infinite."""
    xp = _array.namespace("process", above=above, below=below)
    equal, unit = one.log_snr == other.log_snr, xp.ones_like(above)
    return _array.scalar(xp.where(equal, unit, above) / xp.where(equal, unit, below))


def _where_new(new: Array, sigma: Array) -> Array:
    """Return sigma; 0 where no noise is new, so that none of an infinite variance is none."""
    xp = _array.namespace("process", new=new, sigma=sigma)
    return _array.scalar(xp.where(new == 0.0, xp.zeros_like(sigma), sigma))


def diffuse(x: Array, eps: Array, level: Level) -> Array:
    r"""Return the noisy data z = alpha x + sigma eps.

    Args:
        x: clean data, a floating array (B, ...), usually in [-1, 1].
        eps: standard normal noise of the shape of `x`.
        level: of shape (), (B,) or (B, T), aligned with the leading axes of `x`.

    Returns:
        z, of the shape, dtype, device and library of `x`. Half precision is computed in float32.

    Raises:
        TypeError: mixed libraries, or an integer array.
        ValueError: a level that does not align.

    Source: Ho et al. 2022, eq. 1.

    >>> import numpy as np
    >>> from diffcore.levels import level
    >>> diffuse(np.ones(2), np.zeros(2), level(np.array([0.0, np.inf]))).round(4)
    array([0.7071, 1.    ])
    """
    levels.check_level("process.diffuse", level=level)
    return _combine("process.diffuse", level.alpha, x, level.sigma, eps, names=("x", "eps"))


def marginal(x: Array, level: Level) -> Gaussian:
    r"""Return q(z_t | x) = N(alpha_t x, sigma_t^2).

    Arguments and errors as for `diffuse`. Source: Ho et al. 2022, eq. 1.

    >>> import numpy as np
    >>> from diffcore.levels import level
    >>> marginal(np.ones(1), level(0.0)).variance.round(12)
    array([0.5])
    """
    levels.check_level("process.marginal", level=level)
    return _gaussian("process.marginal", _scaled("process.marginal", level.alpha, x), level.sigma**2)


def transition(z_s: Array, *, s: Level, t: Level) -> Gaussian:
    r"""Return q(z_t | z_s) = N((alpha_t / alpha_s) z_s, (1 - e^{lambda_t - lambda_s}) sigma_t^2), for s < t.

    Args:
        z_s: the less noisy state, a floating array (B, ...).
        s, t: levels of shape (), (B,) or (B, T) with lambda_s >= lambda_t; equal levels give the identity.

    Returns:
        `Gaussian`: mean of the shape and dtype of `z_s`, variance that broadcasts against it.

    Raises:
        TypeError: mixed libraries, or an integer array.
        ValueError: levels that do not align, or, where they are numbers, levels out of order.

    Source: Ho et al. 2022, eq. 2.

    >>> import numpy as np
    >>> from diffcore.levels import level
    >>> transition(np.ones(1), s=level(1.0), t=level(1.0))
    Gaussian(mean=array([1.]), variance=array([0.]))
    """
    function = "process.transition"
    s, t = ordered(function, s, t)
    new, share = novelty(s, t), _over(t, s, t.alpha, s.alpha)
    return _gaussian(function, _scaled(function, share, z_s, "z_s"), new * _where_new(new, t.sigma) ** 2)


def posterior(z_t: Array, x: Array, *, s: Level, t: Level) -> Gaussian:
    r"""Return q(z_s | z_t, x), the Gaussian of a less noisy state given a noisier one and the clean data, s < t.

        mean = e^{lambda_t - lambda_s} (alpha_s / alpha_t) z_t + (1 - e^{lambda_t - lambda_s}) alpha_s x
        variance = (1 - e^{lambda_t - lambda_s}) sigma_s^2

    Args:
        z_t: the noisier state, a floating array (B, ...).
        x: clean data, or an estimate of it, of the shape of `z_t`.
        s, t: levels of shape (), (B,) or (B, T) with lambda_s >= lambda_t.

    Returns:
        `Gaussian`: mean of the shape and dtype of `z_t`, variance that broadcasts against it. At lambda_s = inf the
        mean is `x` exactly and the variance is 0.

    Raises:
        TypeError: mixed libraries, or an integer array.
        ValueError: levels that do not align, or, where they are numbers, levels out of order.

    Source: Ho et al. 2022, eq. 3-4.

    >>> import numpy as np
    >>> from diffcore.levels import level
    >>> posterior(np.ones(1), np.full(1, 0.25), s=level(np.inf), t=level(0.0))
    Gaussian(mean=array([0.25]), variance=array([0.]))
    """
    function = "process.posterior"
    s, t = ordered(function, s, t)
    a, b, variance = posterior_coefficients(s, t)
    return _gaussian(function, _combine(function, a, z_t, b, x, names=("z_t", "x")), variance)


def reverse_variance(s: Level, t: Level, gamma: float) -> Array:
    r"""Return the variance of the ancestral step, interpolated between the two entropy bounds by the exponent gamma.

        v_posterior^{1 - gamma} v_transition^gamma
            = (1 - e^{lambda_t - lambda_s}) sigma_s^{2 (1 - gamma)} sigma_t^{2 gamma}

    Args:
        s, t: levels of shape (), (B,) or (B, T), aligned by their leading axes, with lambda_s >= lambda_t.
        gamma: in [0, 1]; 0 is the lower bound (the posterior's variance), 1 the upper (the transition's).

    Returns:
        An array of the levels' shape; exactly the bound at gamma 0 and 1, also where sigma_s = 0.

    Raises:
        ValueError: gamma outside [0, 1]; levels out of order, where they are numbers.

    Source: Ho et al. 2022, eq. 4 and below; Nichol & Dhariwal 2021 (arXiv 2102.09672), eq. 15.

    >>> from diffcore.levels import level
    >>> float(reverse_variance(level(float("inf")), level(0.0), gamma=0.0))
    0.0
    """
    function = "process.reverse_variance"
    check_gamma(function, gamma)
    s, t = ordered(function, s, t)
    # No logarithm: it would give 0 * -inf at sigma_s = 0. A Python exponent of 0 gives exactly 1.
    new = novelty(s, t)
    return new * _where_new(new, s.sigma) ** (2.0 - 2.0 * gamma) * _where_new(new, t.sigma) ** (2.0 * gamma)


def check_gamma(function: str, gamma: float) -> None:
    """Raise ValueError unless gamma is in [0, 1], TypeError unless it is a number."""
    _check.number(function, "gamma", gamma, 0, 1, hint="0 is the variance of the posterior, 1 that of the transition")


def log_density(z: Array, gaussian: Gaussian) -> Array:
    r"""Return log N(z; mean, variance) in nats, summed over all axes but the first.

        -(1/2) sum [ (z - mean)^2 / variance + log(2 pi variance) ]

    Args:
        z: a floating array (B, ...), of the shape of `gaussian.mean`.
        gaussian: mean (B, ...), variance that broadcasts against it.

    Returns:
        An array of shape (B,), of at least float32. A point mass (variance 0) gives inf at its mean, -inf elsewhere.

    Raises:
        TypeError: mixed libraries, or an integer array.

    >>> import numpy as np
    >>> log_density(np.zeros((1, 2)), Gaussian(np.zeros((1, 2)), np.ones(()))).round(6)
    array([-1.837877])
    """
    function = "process.log_density"
    xp = _array.namespace(function, z=z, mean=gaussian.mean, variance=gaussian.variance)
    _array.check_floating(function, z=z, mean=gaussian.mean)
    z, mean, variance = (_array.widen(xp, part) for part in (z, gaussian.mean, _as_array(xp, gaussian.variance, z)))
    with _array.quiet(xp):
        safe = xp.where(variance > 0, variance, xp.ones_like(variance))
        distance = (z - mean) ** 2
        regular = -0.5 * (distance / safe + xp.log(2.0 * math.pi * safe))
        point = xp.where(distance > 0, -math.inf * xp.ones_like(distance), math.inf * xp.ones_like(distance))
        each = xp.where(variance > 0, regular, point)
        return _sum_events(xp, each, z)


def kl(p: Gaussian, q: Gaussian) -> Array:
    r"""Return the Kullback-Leibler divergence KL(p || q) in nats, summed over all axes but the first.

        (1/2) sum [ r - 1 - log r + (mean_p - mean_q)^2 / variance_q ],   r = variance_p / variance_q

    Args:
        p, q: Gaussians with means of one shape (B, ...) and variances that broadcast against them.

    Returns:
        An array of shape (B,), of at least float32, non-negative; 0 where p = q.

    Raises:
        TypeError: mixed libraries, or an integer array.

    >>> import numpy as np
    >>> unit = Gaussian(np.zeros((1, 3)), np.ones((1, 3)))
    >>> kl(Gaussian(np.ones((1, 3)), np.ones((1, 3))), unit)
    array([1.5])
    """
    function = "process.kl"
    xp = _array.namespace(
        function, **{"p.mean": p.mean, "p.variance": p.variance, "q.mean": q.mean, "q.variance": q.variance}
    )
    _array.check_floating(function, **{"p.mean": p.mean, "q.mean": q.mean})
    mean_p, mean_q = _array.widen(xp, p.mean), _array.widen(xp, q.mean)
    variance_p, variance_q = (_array.widen(xp, _as_array(xp, part, mean_p)) for part in (p.variance, q.variance))
    with _array.quiet(xp):
        # r - 1 - log r = d - log1p(d) with d = r - 1, free of cancellation where the two variances agree
        excess = (variance_p - variance_q) / variance_q
        each = 0.5 * (excess - xp.log1p(excess) + (mean_p - mean_q) ** 2 / variance_q)
        return _sum_events(xp, each, mean_p)


def _as_array(xp: Any, value: Array, like: Array) -> Array:
    if _array.library(value) is not None:
        return value
    return xp.asarray(value, dtype=_array.widen(xp, like).dtype, device=_array.device(like))


def _sum_events(xp: Any, each: Array, like: Array) -> Array:
    each = xp.broadcast_to(each, like.shape)
    return xp.sum(xp.reshape(each, (each.shape[0], math.prod(each.shape[1:]))), axis=1)


def _scaled(function: str, coefficient: Array, x: Array, argument: str = "x") -> Array:
    xp = _array.namespace(function, **{argument: x, "level": coefficient})
    _array.check_floating(function, **{argument: x})
    wide = _array.widen(xp, _array.as_array(xp, x))
    return xp.astype(_array.along(function, "level", coefficient, wide, xp) * wide, x.dtype, copy=False)


def _combine(function: str, a: Array, x: Array, b: Array, y: Array, *, names: tuple[str, str]) -> Array:
    xp = _array.namespace(function, **{names[0]: x, names[1]: y, "level": a})
    _array.check_floating(function, **{names[0]: x, names[1]: y})
    _check.equal_shapes(function, **{names[0]: x, names[1]: y})
    wide_x, wide_y = _array.widen(xp, x), _array.widen(xp, y)
    of_x, of_y = (_array.along(function, "level", c, data, xp) for c, data in ((a, wide_x), (b, wide_y)))
    return xp.astype(of_x * wide_x + of_y * wide_y, xp.result_type(x, y), copy=False)


def _gaussian(function: str, mean: Array, variance: Array) -> Gaussian:
    xp = _array.library(mean)
    wide = _array.widen(xp, mean)
    aligned = _array.along(function, "level", variance, wide, xp)
    if isinstance(aligned, float):
        aligned = xp.asarray(aligned, dtype=wide.dtype, device=_array.device(mean))
        aligned = xp.reshape(aligned, (1,) * wide.ndim)
    return Gaussian(mean, aligned)


def ordered(function: str, s: Level, t: Level) -> tuple[Level, ...]:
    """Return the two levels lined up, or raise where the host knows that they are out of order."""
    s, t = levels.line_up(function, s=s, t=t)
    host = (int, float, np.ndarray)  # the values of other libraries are not read: they may be traced
    if isinstance(s.log_snr, host) and isinstance(t.log_snr, host) and not np.all(s.log_snr >= t.log_snr):
        pair = np.broadcast_arrays(s.log_snr, t.log_snr)
        index = tuple(np.argwhere(~(pair[0] >= pair[1]))[0].tolist())
        found, least = (float(f"{part[index]:.6g}") for part in pair)
        place = f" at {list(index)}" if index else ""
        must = f"have a log-SNR >= {_check.shown(least)}, that of `t`, the noisier level{place}"
        raise _check.error(ValueError, function, "s", must, found, "exchange them")
    return s, t


_explained.face(__name__)
