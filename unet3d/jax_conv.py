"""The 3x3 convolution of frames in JAX, alone and after each pixel was made four, in the forms that a CPU computes well.

XLA computes the gradient of the weights as a convolution with a window of a whole frame, for which a CPU takes several times as
long as for the convolution itself. Frame by frame, or by some rows of a large one, it is one product of matrices, of what the
window sees, (9 in, pixels), and the gradient of the pixels, (pixels, out), both of which stay in the cache.

A convolution of few channels is one task to XLA, and so one core's work, where a row of pixels is short (jaxlib 0.10: below some
128 pixels by 64 channels, 32 by 128). Frames side by side, with pixels of zeros between, have long rows.

After each pixel was made four, 3x3 neighbours are 2x2 different pixels, whose weights are sums of those of the nine: so the even
and the odd rows and columns are four convolutions of the pixels as they were, with 16 products where there were 36.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from diffcore.backends import cpu_threads

LEAST = 512
"""Pixels of a frame from which on this takes less time."""
MOST = 1024
"""Pixels whose windows stay in the cache: larger frames are taken by as many rows."""

ROW = 256
"""Pixels of the rows that frames are put side by side to have."""
FEW = 128
"""Channels, coming in or going out, below which this takes less time; with at least so much to do in a row:"""
WORK = 1 << 19
"""Pixels times channels that come in times channels that go out."""

Padding = tuple[tuple[int, int], tuple[int, int]]
"""Pixels of zeros above and below, left and right."""
SAME: Padding = ((1, 1), (1, 1))


def conv(h: jax.Array, weight: jax.Array, stride: int = 1, padding: Padding = SAME) -> jax.Array:
    """Return the convolution of frames (N, H, W, in), padded with a pixel of zeros, and weights (3, 3, in, out)."""
    if stride > 1 or not _on_one_cpu():
        return _plain(h, weight, stride, padding)
    large = h.shape[1] * h.shape[2] >= LEAST and h.dtype in (jnp.float32, jnp.float64)
    found: jax.Array = _large(padding, h, weight) if large else _beside(h, weight, padding)
    return found


def enlarged(h: jax.Array, weight: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """Return the convolution of frames of which each pixel is made four, cropped to a size; in the dtype of the frames."""
    n, height, width, _ = h.shape
    if not _on_one_cpu() or tuple(size) != (2 * height, 2 * width):
        return conv(_resized(h, size), weight.astype(h.dtype))
    parts = []
    for row in (0, 1):
        for column in (0, 1):
            own = _summed(_summed(weight, 0, row), 1, column).astype(h.dtype)
            parts.append(conv(h, own, padding=((1 - row, row), (1 - column, column))))
    apart = jnp.stack(parts).reshape(2, 2, n, height, width, -1)
    return apart.transpose(2, 3, 0, 4, 1, 5).reshape(n, 2 * height, 2 * width, -1)


def _summed(weight: jax.Array, axis: int, odd: int) -> jax.Array:
    """Return the weights of two pixels, of which an even place sees the second twice, an odd one the first."""
    first, middle, last = jnp.split(weight, 3, axis)
    return jnp.concatenate([first + middle, last] if odd else [first, middle + last], axis)


def _resized(h: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """Return each pixel four times, cropped to a size."""
    n, height, width, channels = h.shape
    twice = jnp.broadcast_to(h[:, :, None, :, None], (n, height, 2, width, 2, channels))
    return twice.reshape(n, 2 * height, 2 * width, channels)[:, : size[0], : size[1]]


def _on_one_cpu() -> bool:
    return jax.default_backend() == "cpu" and jax.device_count() == 1  # several devices would gather the frames


def _plain(h: jax.Array, weight: jax.Array, stride: int = 1, padding: Padding = SAME) -> jax.Array:
    layouts = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(h, weight, (stride, stride), padding, dimension_numbers=layouts)


def _beside(h: jax.Array, weight: jax.Array, padding: Padding) -> jax.Array:
    """Return the convolution, of frames side by side where that is faster."""
    together = _together(h.shape, weight.shape)
    if together == 1:
        return _plain(h, weight, 1, padding)
    (n, height, width, channels), gap = h.shape, max(padding[1])
    apart = jnp.pad(h.reshape(-1, together, height, width, channels), ((0, 0),) * 3 + ((0, gap), (0, 0)))
    row = apart.swapaxes(1, 2).reshape(-1, height, together * (width + gap), channels)
    out = _plain(row, weight, 1, padding).reshape(-1, height, together, width + gap, weight.shape[3])
    return out[:, :, :, :width].swapaxes(1, 2).reshape(n, height, width, weight.shape[3])


def _together(frames: tuple[int, ...], weight: tuple[int, ...]) -> int:
    """Return how many frames (N, H, W, in) to put side by side for a convolution with weights (rows, columns, in, out)."""
    (n, _, width, _), (*_, inputs, outputs) = frames, weight
    if min(inputs, outputs) >= FEW or cpu_threads.count() == 1:
        return 1
    most = next((k for k in range(min(n, ROW // max(width, 1)), 1, -1) if n % k == 0), 1)
    return most if most * width * inputs * outputs >= WORK else 1


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _large(padding: Padding, h: jax.Array, weight: jax.Array) -> jax.Array:
    return _beside(h, weight, padding)


def _tangent(padding: Padding, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    """Return the convolution and its derivative: the gradient is the transpose of what is linear in the weights' tangent."""
    (h, weight), (of_h, of_weight) = primals, tangents
    out, none = _large(padding, h, weight), jax.custom_derivatives.SymbolicZero
    parts = [] if isinstance(of_h, none) else [_large(padding, of_h, weight)]
    if not isinstance(of_weight, none):
        plain, framewise = partial(_plain, padding=padding), jax.checkpoint(partial(_framewise, padding=padding))
        parts.append(lax.platform_dependent(h, of_weight, cpu=framewise, default=plain))
    return out, sum(parts[1:], parts[0]) if parts else jnp.zeros_like(out)


_large.defjvp(_tangent, symbolic_zeros=True)


def _framewise(h: jax.Array, weight: jax.Array, padding: Padding) -> jax.Array:
    """Return the convolution as products of matrices, of which the windows are not kept for the backward pass."""
    (_, height, width, channels), (rows, columns, *_) = h.shape, weight.shape
    step = next(step for step in range(height, 0, -1) if height % step == 0 and (step * width <= MOST or step == 1))

    @jax.checkpoint
    def product(frame: jax.Array) -> jax.Array:
        padded = jnp.pad(frame.transpose(2, 0, 1), ((0, 0), *padding))

        @jax.checkpoint
        def some(start: jax.Array) -> jax.Array:
            part = lax.dynamic_slice_in_dim(padded, start, step + rows - 1, axis=1)
            seen = [part[:, row : row + step, at : at + width] for row in range(rows) for at in range(columns)]
            windows = jnp.stack(seen).reshape(rows * columns * channels, -1)
            return (windows.T @ weight.reshape(rows * columns * channels, -1)).reshape(step, width, -1)

        rows_of: jax.Array = lax.map(some, step * jnp.arange(height // step))
        return rows_of.reshape(height, width, -1)

    found: jax.Array = lax.map(product, h)
    return found
