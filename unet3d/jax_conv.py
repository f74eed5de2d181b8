"""The 3x3 convolution of frames in JAX, with a gradient of its weights that a CPU computes well.

XLA computes that gradient as a convolution with a window of a whole frame, for which a CPU takes several times as long as for
the convolution itself. Frame by frame it is one product of matrices, of what the window sees of a frame, (9 in, pixels), and the
gradient of its pixels, (pixels, out), both of which stay in the cache.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

LEAST = 512
"""Pixels of a frame from which on this takes less time."""


def conv(h: jax.Array, weight: jax.Array, stride: int = 1) -> jax.Array:
    """Return the convolution of frames (N, H, W, in), padded with a pixel of zeros, and weights (3, 3, in, out)."""
    large = stride == 1 and h.shape[1] * h.shape[2] >= LEAST and h.dtype in (jnp.float32, jnp.float64)
    if large and jax.default_backend() == "cpu" and jax.device_count() == 1:  # several devices would gather the frames
        found: jax.Array = _large(h, weight)
        return found
    return _plain(h, weight, stride)


def _plain(h: jax.Array, weight: jax.Array, stride: int = 1) -> jax.Array:
    layouts = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(h, weight, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=layouts)


@jax.custom_jvp
def _large(h: jax.Array, weight: jax.Array) -> jax.Array:
    return _plain(h, weight)


def _tangent(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    """Return the convolution and its derivative: the gradient is the transpose of what is linear in the weights' tangent."""
    (h, weight), (of_h, of_weight) = primals, tangents
    out, none = _large(h, weight), jax.custom_derivatives.SymbolicZero
    parts = [] if isinstance(of_h, none) else [_large(of_h, weight)]
    parts += (
        [] if isinstance(of_weight, none) else [lax.platform_dependent(h, of_weight, cpu=_framewise, default=_plain)]
    )
    return out, sum(parts[1:], parts[0]) if parts else jnp.zeros_like(out)


_large.defjvp(_tangent, symbolic_zeros=True)


@jax.checkpoint
def _framewise(h: jax.Array, weight: jax.Array) -> jax.Array:
    """Return the convolution as a product of matrices a frame, of which the windows are not kept for the backward pass."""
    _, height, width, channels = h.shape

    @jax.checkpoint
    def product(frame: jax.Array) -> jax.Array:
        padded = jnp.pad(frame.transpose(2, 0, 1), ((0, 0), (1, 1), (1, 1)))
        seen = [padded[:, row : row + height, column : column + width] for row in range(3) for column in range(3)]
        windows = jnp.stack(seen).reshape(9 * channels, -1)
        return (windows.T @ weight.reshape(9 * channels, -1)).reshape(height, width, -1)

    found: jax.Array = lax.map(product, h)
    return found
