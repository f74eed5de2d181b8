"""Uniforms that are pure functions of a seed, of a shape (B,) or (B, T), and what makes levels by frame of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from diffcore import _array, _check, _memory, _streams, noise
from diffcore._array import Array
from diffcore.schedules._base import clip


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
    dims, like = _dims("stratified", shape, like)
    row = noise.keys(seed, dims[0])[:1, ...]
    first = noise.bits(row, draw, (min(1, dims[0]), *dims[1:]), like=like, stream=_streams.TIMES)
    xp = _array.library(first)
    steps = ((np.arange(dims[0], dtype=np.uint64) << np.uint64(32)) // np.uint64(max(1, dims[0]))).astype(np.int64)
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


def monotone(u: Array) -> Array:
    r"""Return uniforms sorted over frames, so that no frame is less noisy than the one before it.

        u_(1) <= u_(2) <= ... <= u_(T)

    Frame k then has the times of Beta(k, T + 1 - k), not uniform ones: no others are possible unless all frames are equal. Over all
    frames together they are uniform as before.

    Args:
        u: (B, T, ...) uniforms, such as `independent(seed, draw, (B, T))`.

    Returns:
        An array of that shape and library, for a density or as times.

    Raises:
        ValueError: fewer than two axes.
        TypeError: `u` is not a floating array.

    Source: Sun et al. 2025 (arXiv 2503.07418), "non-decreasing timesteps".

    >>> monotone(np.array([[0.7, 0.2, 0.5]])).tolist()
    [[0.2, 0.5, 0.7]]
    """
    xp, u = _array.level_array("times.monotone", "u", u)
    if len(u.shape) < 2:
        raise ValueError(f"times.monotone: `u` must be (B, T, ...), a time for each frame, got shape {tuple(u.shape)}")
    return xp.sort(u, axis=1)


def pyramid(u: Array, frames: int, *, lag: float) -> Array:
    r"""Return times by frame that lie behind each other by a lag, as when frames are denoised one after another.

        t_k = min(max(u (1 + (T - 1) lag) - (T - 1 - k) lag, 0), 1)  for k = 0, ..., T - 1

    u = 0 is a clip whose frames are all clean, u = 1 one of pure noise; between them the first frames wait at 0, or the last at
    1. With n = 1 + (T - 1) lag, frame k is clean for a share (T - 1 - k) lag / n of all u and pure noise for k lag / n, and is
    uniform for the rest. A lag of 0 has one level for all frames, 1 / T is that of rolling diffusion, 1 makes frame after frame.

    Args:
        u: (B,) uniforms, such as `stratified(seed, draw, B)`.
        frames: T, an int >= 1.
        lag: in time, >= 0.

    Returns:
        An array (B, T) of the library of `u`. It is exactly 0 and 1 where frames wait; leave these out of the loss by its mask.

    Raises:
        ValueError: `u` has another number of axes, `frames` < 1, or a negative lag.
        TypeError: `u` is not a floating array.

    Source: Chen et al. 2024 (arXiv 2407.01392), Diffusion Forcing; Ruhe et al. 2024 (arXiv 2402.09470), Rolling Diffusion.

    >>> pyramid(np.array([0.0, 0.5, 1.0]), 3, lag=0.5).tolist()
    [[0.0, 0.0, 0.0], [0.0, 0.5, 1.0], [1.0, 1.0, 1.0]]
    """
    function = "times.pyramid"
    xp, u = _array.level_array(function, "u", u)
    if len(u.shape) != 1:
        raise ValueError(f"{function}: `u` must be (B,), one for each clip, got shape {tuple(u.shape)}")
    count = _check.integer(function, "frames", frames, 1)
    lag = _check.number(function, "lag", lag, 0)
    behind = xp.asarray(lag * np.arange(count - 1.0, -1.0, -1.0), dtype=u.dtype, device=_array.device(u))
    times = u[:, None] * (1.0 + (count - 1) * lag) - behind[None, :]
    return clip(xp, times)


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


def _dims(function: str, shape: int | Sequence[int], like: Array | None) -> tuple[tuple[int, ...], Array]:
    """Return the shape as a tuple, and the array that gives the library and device."""
    given = tuple(shape) if isinstance(shape, Sequence | np.ndarray) else (shape,)
    dims = _check.shape(f"times.{function}", "shape", given, "B or (B, ...)")
    like = np.zeros((), dtype=np.float32) if like is None else like
    if _memory.here(like):
        _memory.fits(f"times.{function}", "shape", dims, 28 * math.prod(dims), like=like)
    return dims, like
