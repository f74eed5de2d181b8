"""Context windows: a denoiser of short clips for long ones, by overlapping windows; and noise that repeats, shuffled."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from diffcore import _array, _brief, _check, _layout, _streams, _wrapping, noise
from diffcore._array import Array

WEIGHTS = ("constant", "pyramid")


@dataclass(frozen=True, eq=False)
class Windowed(_wrapping.Forwarding):
    """A denoiser of long clips: what `windowed` returns."""

    parts: ClassVar = ("denoise",)
    denoise: Callable[[Array, Array], Array]
    window: int
    stride: int
    weights: str
    __repr__ = _brief.fields

    def __call__(self, z: Array, log_snr: Array) -> Array:
        """Return the mean of what the windows predict, of the shape of z."""
        xp, frames = _array.namespace("video.windowed", z=z), z.shape[1]
        if frames <= self.window:
            return self.denoise(z, log_snr)
        ramp = np.minimum(np.arange(self.window) + 1, self.window - np.arange(self.window)).astype(np.float64)
        ramp = ramp if self.weights == "pyramid" else np.ones(self.window)
        starts = [*range(0, frames - self.window, self.stride), frames - self.window]
        total = np.zeros(frames)
        for first in starts:
            total[first : first + self.window] += ramp
        found, parts = [], []  # joined from pieces, since arrays need not be writable
        for first in starts:
            level = log_snr if np.ndim(log_snr) < 2 else log_snr[:, first : first + self.window]
            y = self.denoise(z[:, first : first + self.window, ...], level)
            share = xp.asarray(ramp / total[first : first + self.window], dtype=y.dtype, device=_array.device(y))
            share = _layout.beside(share, y)
            parts.append((first, y * xp.reshape(share, (-1,) + (1,) * (y.ndim - 2))))
        edges = sorted({edge for first in starts for edge in (first, first + self.window)})
        for done, end in itertools.pairwise(edges):
            pieces = [
                y[:, done - first : end - first, ...] for first, y in parts if first <= done < first + self.window
            ]
            found.append(sum(pieces[1:], pieces[0]))
        return xp.concat(found, axis=1)


def windowed(
    denoise: Callable[[Array, Array], Array], window: int, *, stride: int | None = None, weights: str = "pyramid"
) -> Windowed:
    r"""Return a denoiser of clips of any length from one of `window` frames: overlapping windows, denoised jointly.

        y_f = sum_k a_kf y^(k)_f / sum_k a_kf,    over the windows k that hold frame f

    All windows share one state, so that a whole long clip is one run: nothing is known first, and there is no seam, but memory
    and time grow with the clip. It is exact where frames further apart than the overlap are independent of one another, and else
    loses what lies beyond a window.

    Args:
        denoise: (z, log_snr) -> prediction for clips (B, window, ...).
        window: frames of a window, at least 1. A shorter clip goes through as it is.
        stride: from window to window, in [1, window]; half of it if not given. The last window ends with the clip.
        weights: a, "constant", or "pyramid", which counts a window's middle most.

    Returns:
        A callable (z, log_snr) -> prediction, log_snr (), (B,) or (B, T), with the attributes of the denoiser.

    Raises:
        ValueError: a number or name out of range.

    Source: Bar-Tal et al. 2023 (arXiv 2302.08113), eq. 5.

    >>> double = windowed(lambda z, log_snr: 2.0 * z, 4)
    >>> double(np.ones((1, 9, 1)), 0.0).ravel().tolist()
    [2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    """
    function = "video.windowed"
    _check.callable_(function, "denoise", denoise, "a function of (z, log_snr)")
    _check.integer(function, "window", window, 1)
    step = max(1, window // 2) if stride is None else _check.integer(function, "stride", stride, 1, window)
    _check.choice(function, "weights", weights, WEIGHTS)
    return Windowed(denoise, window, step, weights)


def shuffled_noise(
    seed: Any, window: int, *, stride: int | None = None, like: Array | None = None
) -> Callable[..., Array]:
    """Return a source of noise for long clips whose frames repeat those of the first window, shuffled in groups.

    Frame f + window is one of the group of `stride` frames at f, in an order of its own; so each window that starts at a group
    sees the same frames of noise, which holds long clips together. It is a pure function of (seed, draw): give it as `noise=` to
    `diffcore.sample`.

    Args:
        seed: one int, or one int or key per sample: see `noise.keys`. The order is one for all samples.
        window: at least 1.
        stride: frames of a group, a divisor of the window; half of it, or all of an odd one, if not given.
        like: an array that gives library, dtype and device; NumPy float32 without one.

    Returns:
        A function (draw, shape, stream=0) -> array (B, T, ...).

    Raises:
        ValueError: a stride that does not divide the window.

    Source: Qiu et al. 2023 (arXiv 2310.15169), sec. 4.2.

    >>> first = shuffled_noise(7, 4)(0, (1, 8, 1))[0, :, 0]
    >>> bool((np.sort(first[:4]) == np.sort(first[4:])).all())
    True
    """
    function = "video.shuffled_noise"
    _check.integer(function, "window", window, 1)
    group = (
        (window // 2 if window % 2 == 0 else window)
        if stride is None
        else _check.integer(function, "stride", stride, 1)
    )
    if window % group:
        raise _check.error(ValueError, function, "stride", f"divide the window, {window}", stride)
    return partial(_shuffled, seed, window, group, like)


def _shuffled(
    seed: Any,
    window: int,
    group: int,
    like: Array | None,
    draw: Any,
    shape: tuple[int, ...],
    stream: int = _streams.SAMPLER,
) -> Array:
    order = np.arange(window)
    ranks = noise.bits([0], 0, (1, max(1, -(-shape[1] // group)), group), stream=_streams.CHOICES)[0]
    for block in range(window // group, -(-shape[1] // group)):
        before = order[(block - window // group) * group :][:group]
        order = np.concatenate([order, before[np.argsort(ranks[block])]])
    first = noise.normal(seed, draw, (shape[0], window, *shape[2:]), like=like, stream=stream)
    xp = _array.library(first)
    place = _layout.beside(xp.asarray(order[: shape[1]], device=_array.device(first)), first)
    return xp.take(first, place, axis=1)
