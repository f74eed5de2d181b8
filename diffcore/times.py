r"""Times to train at: uniforms that are pure functions of a seed, and densities that turn them into t in [0, 1].

    u = independent(seed, draw, B)      or stratified(...), or antithetic(...)
    t = density(u)                      t has the density p(t): Uniform, LogitNormal, LogNormal

`density.log_density(t)` is log p(t), so that E_{t ~ p}[f(t) / p(t)] is the integral of f over [0, 1] whatever the
density: divide the loss by p to train with a weight that is meant for uniform t.

The uniforms come from the bits of `diffcore.noise`, in a stream of their own: equal on every library and device, and
independent of the noise that samplers draw from the same seed. They are never 0 or 1.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diffcore import _array, _check, _streams
from diffcore._array import Array
from diffcore._quantile import normal_quantile


def independent(seed: Any, draw: int, shape: int | Sequence[int], *, like: Array | None = None) -> Array:
    """Return independent uniforms in (0, 1), each row from its own key.

    Args:
        seed: one int, of which each row gets its own key, or one int or key per row: see `noise.keys`.
        draw: the number of the training step; another draw, other uniforms.
        shape: B, or (B, ...), such as (B, T) for a time per frame.
        like: an array that gives the library and device; NumPy without one. The result is float64 if it is, else
            float32.

    Returns:
        An array of that shape.

    Raises:
        ValueError: a bad shape or seed.

    >>> float(independent(7, 0, 4)[1]) == float(independent([3, 7], 0, 2)[1])
    False
    """
    from diffcore import noise

    dims, like = _dims("independent", shape, like)
    bits = noise.bits(seed, draw, dims, like=like, stream=_streams.TIMES)
    return _uniforms(_array.library(bits), bits, like)


def stratified(seed: Any, draw: int, shape: int | Sequence[int], *, like: Array | None = None) -> Array:
    r"""Return uniforms in (0, 1) spread evenly over the batch: each one is uniform, and every B-th part holds one.

        u_i = (u_0 + i / B) mod 1

    The loss of a batch then varies far less than with independent times. Frames, where the shape has them, get offsets
    of their own. For a shard of a batch, draw the times of the full batch and take your rows: it costs next to nothing.

    Arguments and errors as for `independent`; the offset is drawn from the key of row 0.

    Source: Kingma et al. 2021 (arXiv 2107.00630), app. I.1, "low-discrepancy sampler".

    >>> import numpy as np
    >>> np.diff(np.sort(stratified(7, 0, 4))).round(5)
    array([0.25, 0.25, 0.25], dtype=float32)
    """
    xp, dims, like, first = _first_row("stratified", seed, draw, shape, like)
    steps = np.array([(row << 32) // dims[0] for row in range(dims[0])], dtype=np.int64)
    return _uniforms(xp, _wrapped_sum(xp, first, steps.reshape(-1, *(1,) * (len(dims) - 1))), like)


def antithetic(seed: Any, draw: int, shape: int | Sequence[int], *, like: Array | None = None) -> Array:
    r"""Return uniforms in (0, 1) in pairs, u_{B-1-i} = 1 - u_i, which cancels the part of the loss that is odd about the middle.

    Arguments and errors as for `independent`. Source: Hammersley & Morton 1956, "A new Monte Carlo technique".

    >>> u = antithetic(7, 0, 4)
    >>> (u + u[::-1]).tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    dims, like = _dims("antithetic", shape, like)
    u = independent(seed, draw, dims, like=like)
    xp = _array.library(u)
    rows = np.arange(dims[0]).reshape(-1, *(1,) * (len(dims) - 1))
    second = xp.asarray(2 * rows >= dims[0], device=_array.device(u))
    return xp.where(second, 1.0 - xp.flip(u, axis=0), u) if dims[0] > 1 else u


@dataclass(frozen=True)
class Density(ABC):
    """A density of times on [0, 1]: calling it on uniforms gives times, `log_density` gives log p(t)."""

    @abstractmethod
    def __call__(self, u: Array) -> Array:
        """Return the times t(u), rising with u, for which uniform u give times of this density."""

    @abstractmethod
    def log_density(self, t: Array) -> Array:
        """Return log p(t), -inf outside the support; of the shape and library of `t`, at least float32."""

    def density(self, t: Array) -> Array:
        """Return p(t); divide a loss by it to keep the weight that is meant for uniform times.

        >>> Uniform(0.0, 0.5).density(0.25)
        np.float64(2.0)
        """
        log_density = self.log_density(t)
        xp, log_density = _array.level_array("times.density", "t", log_density)
        return _array.scalar(xp.exp(log_density))


@dataclass(frozen=True)
class Uniform(Density):
    """t ~ U[low, high]. Source: Ho et al. 2022 (arXiv 2204.03458), sec. 2.

    Args:
        low, high: 0 <= low < high <= 1.

    Raises:
        ValueError: `low` or `high` is out of range.

    >>> Uniform()(0.25), Uniform().log_density(0.25)
    (np.float64(0.25), np.float64(0.0))
    """

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        low = _check.number("times.Uniform", "low", self.low, 0, 1, open_high=True)
        _check.number("times.Uniform", "high", self.high, low, 1, open_low=True)

    def __call__(self, u: Array) -> Array:
        """Return times of this density from uniforms u in (0, 1), rising with u."""
        _, u = _array.level_array("times.Uniform", "u", u)
        return _array.scalar(self.low + (self.high - self.low) * u)

    def log_density(self, t: Array) -> Array:
        """Return log p(t), -inf outside the support."""
        xp, t = _array.level_array("times.Uniform.log_density", "t", t)
        zero = xp.zeros_like(t)
        inside = (t >= self.low) & (t <= self.high)
        return _array.scalar(xp.where(inside, zero - math.log(self.high - self.low), zero - math.inf))


@dataclass(frozen=True)
class LogitNormal(Density):
    r"""logit t ~ N(mean, std^2): most training in the middle.

        p(t) = exp(-(logit t - mean)^2 / (2 std^2)) / (std sqrt(2 pi) t (1 - t)),   t = sigmoid(mean + std Phi^{-1}(u))

    Args:
        mean: of logit t; above 0 towards noise.
        std: of logit t, positive.

    Raises:
        ValueError: `mean` or `std` is out of range.

    Source: Esser et al. 2024 (arXiv 2403.03206), eq. 19.

    >>> LogitNormal()(0.5), LogitNormal().density(0.5).round(6)
    (np.float64(0.5), np.float64(1.595769))
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        _check_normal("LogitNormal", self.mean, self.std)

    def __call__(self, u: Array) -> Array:
        """Return times of this density from uniforms u in (0, 1), rising with u."""
        xp, u = _array.level_array("times.LogitNormal", "u", u)
        with _array.quiet(xp):
            return _array.scalar(1.0 / (1.0 + xp.exp(-(self.mean + self.std * normal_quantile(xp, u)))))

    def log_density(self, t: Array) -> Array:
        """Return log p(t), -inf outside the support."""
        xp, t = _array.level_array("times.LogitNormal.log_density", "t", t)
        inside = (t > 0.0) & (t < 1.0)
        safe = xp.where(inside, t, 0.5 * xp.ones_like(t))
        up, down = xp.log(safe), xp.log1p(-safe)
        value = _log_normal_density(up - down, self.mean, self.std) - up - down
        return _array.scalar(xp.where(inside, value, -math.inf * xp.ones_like(t)))


@dataclass(frozen=True)
class LogNormal(Density):
    r"""log s ~ N(mean, std^2) for the noise-to-signal ratio s = e^{-lambda/2}, cut to the levels of a schedule.

        p(t) = N(lambda(t); -2 mean, (2 std)^2) |d lambda / dt| / P(lambda(1) <= lambda <= lambda(0))

    Args:
        schedule: a schedule of `diffcore.schedules` (or anything with log_snr(t), time(log_snr) and slope(t)).
        mean, std: of log s; std positive. The defaults are EDM's.

    Raises:
        ValueError: `mean` or `std` is out of range, or no mass lies between the schedule's ends.

    Source: Karras et al. 2022 (arXiv 2206.00364), table 1.

    >>> import diffcore as dc
    >>> schedule = dc.schedules.Cosine()
    >>> t = LogNormal(schedule)(0.5)                            # the median: log s = -1.2, so lambda = 2.4
    >>> schedule.log_snr(t).round(6)
    np.float64(2.4)
    """

    schedule: Any
    mean: float = -1.2
    std: float = 1.2
    _ends: tuple[float, float] = field(init=False, repr=False, compare=False)
    _cut: tuple[float, float] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_normal("LogNormal", self.mean, self.std)
        if not all(hasattr(self.schedule, name) for name in ("log_snr", "time", "slope")):
            must = "be a schedule, such as diffcore.schedules.Cosine()"
            raise _check.error(TypeError, "times.LogNormal", "schedule", must, self.schedule)
        ends = float(self.schedule.log_snr(1.0)), float(self.schedule.log_snr(0.0))
        wide = 2.0 * self.std * math.sqrt(2.0)
        below, upto = (0.5 * math.erfc(-(end + 2.0 * self.mean) / wide) for end in ends)
        object.__setattr__(self, "_ends", ends)
        object.__setattr__(self, "_cut", (below, upto))  # P(lambda < lambda(1)) and P(lambda < lambda(0))
        if not upto > below:
            must = f"make the noise levels of the schedule, log_snr in {ends}, likely with std={self.std!r}"
            hint = "it is the mean of log(sigma / alpha) = -log_snr / 2"
            raise _check.error(ValueError, "times.LogNormal", "mean", must, self.mean, hint)

    def __call__(self, u: Array) -> Array:
        """Return times of this density from uniforms u in (0, 1), rising with u."""
        xp, u = _array.level_array("times.LogNormal", "u", u)
        (noisy, clean), (below, upto) = self._ends, self._cut
        with _array.quiet(xp):
            # the log-SNR falls as t rises, so t's u-quantile is lambda's (1 - u)-quantile
            log_snr = -2.0 * self.mean + 2.0 * self.std * normal_quantile(xp, upto - (upto - below) * u)
            one = xp.ones_like(u)
            return self.schedule.time(_array.scalar(xp.minimum(xp.maximum(log_snr, noisy * one), clean * one)))

    def log_density(self, t: Array) -> Array:
        """Return log p(t), -inf outside the support."""
        xp, t = _array.level_array("times.LogNormal.log_density", "t", t)
        inside = (t >= 0.0) & (t <= 1.0)
        safe = xp.where(inside, t, 0.5 * xp.ones_like(t))
        parts = self.schedule.log_snr(safe), self.schedule.slope(safe)
        log_snr, slope = (_array.as_array(xp, part) for part in parts)
        with _array.quiet(xp):
            likely = _log_normal_density(log_snr, -2.0 * self.mean, 2.0 * self.std)
            value = likely + xp.log(xp.abs(slope)) - math.log(self._cut[1] - self._cut[0])
            outside = ~inside | ~xp.isfinite(log_snr)
            return _array.scalar(xp.where(outside, -math.inf * xp.ones_like(t), value))


def _log_normal_density(value: Array, mean: float, std: float) -> Array:
    return -0.5 * ((value - mean) / std) ** 2 - math.log(std * math.sqrt(2.0 * math.pi))


def _uniforms(xp: Any, bits: Array, like: Array) -> Array:
    """Return (k + 1/2) / 2^n of the upper n bits: exact in the dtype, symmetric about 1/2, and never 0 or 1."""
    wide = str(like.dtype).removeprefix("torch.") == "float64"
    kept = 32 if wide else 23
    words = xp.bitwise_right_shift(bits, xp.asarray(32 - kept, dtype=bits.dtype, device=_array.device(bits)))
    return (xp.astype(words, xp.float64 if wide else xp.float32) + 0.5) * 2.0**-kept


def _wrapped_sum(xp: Any, bits: Array, steps: np.ndarray[Any, np.dtype[np.int64]]) -> Array:
    host = steps.astype(np.uint32) if "uint32" in str(bits.dtype) else steps
    mask = np.asarray(0xFFFFFFFF, dtype=host.dtype)
    where = _array.device(bits)
    added = bits + xp.asarray(host, dtype=bits.dtype, device=where)
    return xp.bitwise_and(added, xp.asarray(mask, dtype=bits.dtype, device=where))


def _first_row(
    function: str, seed: Any, draw: int, shape: int | Sequence[int], like: Array | None
) -> tuple[Any, tuple[int, ...], Array, Array]:
    from diffcore import noise

    dims, like = _dims(function, shape, like)
    first = noise.keys(seed, dims[0])[:1, ...]
    bits = noise.bits(first, draw, (min(1, dims[0]), *dims[1:]), like=like, stream=_streams.TIMES)
    return _array.library(bits), dims, like, bits


def _dims(function: str, shape: int | Sequence[int], like: Array | None) -> tuple[tuple[int, ...], Array]:
    """Return the shape as a tuple, and the array that gives the library and device."""
    given = tuple(shape) if isinstance(shape, Sequence | np.ndarray) else (shape,)
    dims = _check.shape(f"times.{function}", "shape", given, "B or (B, ...)")
    return dims, np.zeros((), dtype=np.float32) if like is None else like


def _check_normal(name: str, mean: float, std: float) -> None:
    function = f"times.{name}"
    _check.number(function, "mean", mean)
    _check.number(function, "std", std, 0, open_low=True)
