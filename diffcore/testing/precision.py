"""Levels and the posterior against arithmetic with sixty digits, in units in the last place."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np

from diffcore import _array, _check, levels, process
from diffcore._array import Array
from diffcore.levels import Level
from diffcore.testing import _digits
from diffcore.testing._arrays import Float64, compare, fail_unless, host, put

__all__ = ["check_level_precision", "check_posterior_precision", "log_snr_range", "log_snrs_over", "pairs_over"]


def log_snr_range(dtype: Any) -> float:
    """Return how far from 0 a log-SNR may be so that no square of alpha or sigma under- or overflows: 80, or 700.

    >>> log_snr_range("float32"), log_snr_range("float64")
    (80.0, 700.0)
    """
    return 80.0 if wide("testing.precision.log_snr_range", "dtype", dtype) == "float32" else 700.0


def wide(function: str, argument: str, dtype: Any) -> str:
    """Return the name of a dtype that levels have, float32 or float64, or raise ValueError."""
    name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
    if name not in ("float32", "float64"):
        must = f"{'be' if argument == 'dtype' else 'have dtype'} 'float32' or 'float64'"
        hint = "levels of float16 and bfloat16 are float32" if name in ("float16", "bfloat16") else ""
        raise _check.error(ValueError, function, argument, must, name, hint)
    return name


def _like(function: str, like: Array | None) -> Array:
    """Return an array of the library and dtype to check; NumPy float64 without one."""
    like = put(0.0, like)
    wide(function, "like", str(like.dtype).rsplit(".", 1)[-1])
    return like


def log_snrs_over(dtype: Any, count: int = 401) -> Float64:
    """Return log-SNRs over the full range of a dtype, exact in it: an even grid, values near 0, and both infinities.

    >>> log_snrs_over("float32", 3).tolist()[-3:]
    [80.0, -inf, inf]
    """
    reach = log_snr_range(dtype)
    near = np.concatenate([sign * np.geomspace(1e-8, 30.0, count // 4) for sign in (-1.0, 1.0)])
    values = np.concatenate([near, [0.0, -0.0], np.linspace(-reach, reach, count)])
    return np.concatenate([values.astype(dtype).astype(np.float64), [-np.inf, np.inf]])


def pairs_over(dtype: Any, count: int = 400, seed: int = 0) -> tuple[Float64, Float64]:
    """Return (log_snr_s, log_snr_t), strictly ordered and exact in a dtype: all gaps from one ulp to the full range.

    >>> s, t = pairs_over("float32", 8)
    >>> bool(np.all(s > t)), bool(s[0] == np.inf)
    (True, True)
    """
    reach, random = log_snr_range(dtype), np.random.default_rng(seed)
    t = random.uniform(-reach, reach, count).astype(dtype)
    t[: count // 2] = random.uniform(-25.0, 25.0, count // 2).astype(dtype)
    gap = np.exp(random.uniform(np.log(1e-9), np.log(2.0 * reach), count))
    s = np.minimum((t + gap).astype(dtype), np.asarray(reach, dtype=dtype))
    s = np.where(s > t, s, np.nextafter(t, np.asarray(np.inf, dtype=dtype)))
    s, t = s.astype(np.float64), t.astype(np.float64)
    s[0], t[1 % count] = np.inf, -np.inf
    s[2 % count], t[2 % count] = (np.inf, -np.inf) if count > 2 else (s[0], t[0])
    return s, t


def check_level_precision(
    like: Array | None = None,
    scaling: str = "vp",
    *,
    log_snr: Float64 | None = None,
    ulps: float = 4.0,
    level: Callable[..., Level] = levels.level,
) -> float:
    r"""Check alpha and sigma at a log-SNR against their definition in sixty digits.

        alpha / sigma = e^{lambda / 2},   "vp": alpha^2 + sigma^2 = 1,  "ve": alpha = 1,  "flow": alpha + sigma = 1

    Args:
        like: a float32 or float64 array of the library to check; NumPy float64 without one.
        scaling: "vp", "ve" or "flow".
        log_snr: log-SNRs, exact in the dtype; None is `log_snrs_over` of it, both infinities included.
        ulps: how many units in the last place are allowed.
        level: a function (log_snr, scaling) -> Level to check instead of `diffcore.levels.level`.

    Returns:
        The largest error found, in units in the last place.

    Raises:
        AssertionError: naming the log-SNR with the largest error.
        ValueError: `like` of another dtype; levels of float16 and bfloat16 are float32.

    Source: design.md of diffcore, "Numbers"; Kingma et al. 2021 (arXiv 2107.00630), eq. 3.

    >>> check_level_precision(np.zeros(1, np.float32), log_snr=np.array([-20.0, 0.0, 20.0])) < 2.0
    True
    """
    like = _like("testing.check_level_precision", like)
    dtype = _array.to_host(like).dtype
    points = log_snrs_over(dtype) if log_snr is None else np.asarray(log_snr, dtype=dtype).astype(np.float64)
    found = level(put(points, like), scaling)
    worst = 0.0
    with _digits.digits():
        truth = [_digits.level(float(point), scaling) for point in points]
        for name in ("alpha", "sigma", "log_snr"):
            got = _array.to_host(getattr(found, name))
            fail_unless(got.dtype == dtype, "level precision", f"{name} has dtype {got.dtype}, but should have {dtype}")
            error = _digits.ulps(got, [getattr(exact, name) for exact in truth] if name != "log_snr" else _same(points))
            compare(
                f"level precision: {name} under {scaling!r}",
                error,
                0.0,
                ulps,
                where={"log_snr": points},
                what="in ulps",
            )
            worst = max(worst, float(error.max()))
    return worst


def _same(points: Float64) -> list[Any]:
    return [Decimal(float(point)) for point in points]


def check_posterior_precision(
    like: Array | None = None,
    scaling: str = "vp",
    *,
    pairs: tuple[Float64, Float64] | None = None,
    ulps: float = 16.0,
    posterior: Callable[..., Any] = process.posterior,
    level: Callable[..., Level] = levels.level,
) -> dict[str, float]:
    r"""Check mean and variance of q(z_s | z_t, x), starting from log-SNRs alone, in sixty digits.

        mean = a z_t + b x,   a = e^{lambda_t - lambda_s} alpha_s / alpha_t,   b = (1 - e^{lambda_t - lambda_s}) alpha_s
        variance = (1 - e^{lambda_t - lambda_s}) sigma_s^2

    a and b are read off as the means at (z, x) = (1, 0) and (0, 1). The mean of general z and x is held to the same
    number of ulps of |a z| + |b x|, since nothing says more where the two cancel.

    Args:
        like: a float32 or float64 array of the library to check; NumPy float64 without one.
        scaling: "vp", "ve" or "flow".
        pairs: (log_snr_s, log_snr_t) with s > t, exact in the dtype; None is `pairs_over` of it.
        ulps: how many units in the last place are allowed.
        posterior, level: functions to check instead of diffcore's own.

    Returns:
        The largest errors in units in the last place, under "a", "b", "variance" and "mean".

    Raises:
        AssertionError: naming the pair of log-SNRs with the largest error.
        ValueError: `like` of another dtype.

    Source: Ho et al. 2022 (arXiv 2204.03458), eq. 3-4.

    >>> pairs = np.array([np.inf, 3.0]), np.array([0.0, 2.999999])
    >>> max(check_posterior_precision(pairs=pairs).values()) < 8.0
    True
    """
    like = _like("testing.check_posterior_precision", like)
    dtype = _array.to_host(like).dtype
    log_snr_s, log_snr_t = (
        pairs_over(dtype) if pairs is None else (np.asarray(part, dtype=np.float64) for part in pairs)
    )
    s, t = level(put(log_snr_s, like), scaling), level(put(log_snr_t, like), scaling)
    random = np.random.default_rng(1)
    z, x = (random.normal(size=log_snr_s.shape).astype(dtype).astype(np.float64) for _ in range(2))
    one, zero = put(np.ones(z.shape), like), put(np.zeros(z.shape), like)
    mean, variance = posterior(put(z, like), put(x, like), s=s, t=t)
    got = {
        "a": _array.to_host(posterior(one, zero, s=s, t=t).mean),
        "b": _array.to_host(posterior(zero, one, s=s, t=t).mean),
        "variance": np.broadcast_to(_array.to_host(variance), z.shape),
    }
    where = {"log_snr_s": log_snr_s, "log_snr_t": log_snr_t}
    worst = {}
    with _digits.digits():
        levels_s = [_digits.level(float(at), scaling) for at in log_snr_s]
        levels_t = [_digits.level(float(at), scaling) for at in log_snr_t]
        exact = [_digits.posterior(a, b) for a, b in zip(levels_s, levels_t, strict=True)]
        for column, (name, values) in enumerate(got.items()):
            error = _digits.ulps(values, [row[column] for row in exact])
            identity = f"posterior precision: {name} under {scaling!r}"
            compare(identity, error, 0.0, ulps, where=where, what="in ulps")
            worst[name] = float(error.max())
        parts = [(a * Decimal(zi), b * Decimal(xi)) for (a, b, _), zi, xi in zip(exact, z, x, strict=True)]
        true_mean = np.array([float(p + q) for p, q in parts])
        size = np.array([float(abs(p) + abs(q)) for p, q in parts])
        miss = np.array([float(abs(Decimal(m) - p - q)) for m, (p, q) in zip(host(mean), parts, strict=True)])
    unit = np.spacing(size.astype(dtype)).astype(np.float64) + float(np.finfo(dtype).smallest_normal)
    compare(f"posterior precision: mean under {scaling!r}", miss / unit, 0.0, ulps, where=where, what="in ulps")
    fail_unless(np.all(np.isfinite(true_mean)), "posterior precision", "the truth is not finite; give pairs in range")
    worst["mean"] = float((miss / unit).max())
    return worst
