r"""Features of clips by name, for Frechet distances: small, fixed, and of NumPy alone.

They tell sets apart, and say nothing beyond: a distance is comparable only with distances by the same features, of equally
many clips of one size. For published numbers use the network that they were computed with.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from diffcore import _array, _check, _explained, _streams, noise

__all__ = ["convolutions", "pixels", "table"]

Float64 = npt.NDArray[np.float64]
WIDTHS = (16, 32)
GREATEST = 1e6
"""What no clip with values such as those in [-1, 1] has, nor one of bytes; float32 holds the squares of sums of such."""


def table() -> dict[str, Callable[[Any], Float64]]:
    """Return the features by name.

    >>> sorted(table())
    ['convolutions', 'pixels']
    """
    return {"pixels": pixels, "convolutions": convolutions}


def pixels(clips: Any) -> Float64:
    """Return the means of clips over at most 4 x 4 x 4 blocks of time, height and width.

    Args:
        clips: (N, T, H, W, C) of any library.

    Returns:
        (N, 64 C), float64; fewer where T, H or W is below 4.

    >>> pixels(np.ones((2, 8, 16, 16, 3))).shape
    (2, 192)
    """
    x = _host("metrics.features.pixels", clips)
    for axis in (1, 2, 3):
        parts = np.array_split(x, min(4, x.shape[axis]), axis=axis)
        x = np.stack([part.mean(axis=axis) for part in parts], axis=axis)
    return x.reshape(len(x), -1)


def convolutions(clips: Any) -> Float64:
    """Return means and deviations of the channels of a small 3D network with fixed random weights.

    Two layers of 3x3x3 convolutions with ReLU, 16 and 32 channels: the first halves height and width, the second time too. Random
    filters see edges, textures and motion, which `pixels` averages away.

    Args:
        clips: (N, T, H, W, C) of any library.

    Returns:
        (N, 96), float64.

    Source: Naeem et al. 2020 (arXiv 2002.09797), sec. 5, for embeddings by random weights.

    >>> convolutions(np.ones((2, 4, 8, 8, 1))).shape
    (2, 96)
    """
    x = _host("metrics.features.convolutions", clips).astype(np.float32)
    found = []
    for layer, stride in enumerate(((1, 2, 2), (2, 2, 2))):
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (1, 1), (0, 0)), mode="edge")
        seen = np.lib.stride_tricks.sliding_window_view(padded, (3, 3, 3), axis=(1, 2, 3))
        seen = seen[:, :: stride[0], :: stride[1], :: stride[2]]
        x = np.maximum(np.tensordot(seen, _weights(layer, x.shape[-1]), axes=4), np.float32(0.0))
        found += [x.mean(axis=(1, 2, 3)), x.std(axis=(1, 2, 3))]
    return np.concatenate(found, axis=1).astype(np.float64)


@functools.cache
def _weights(layer: int, channels: int) -> npt.NDArray[np.float32]:
    """Return (channels, 3, 3, 3, width), each filter without a response to a constant, but for the first half."""
    shape = (channels, 3, 3, 3, WIDTHS[layer])
    drawn = noise.normal(0, layer, (1, *shape), dtype=np.float32, stream=_streams.WEIGHTS)[0]
    half = WIDTHS[layer] // 2
    drawn[..., half:] -= drawn[..., half:].mean(axis=(1, 2, 3), keepdims=True)
    scaled: npt.NDArray[np.float32] = drawn * np.float32((27 * channels) ** -0.5)
    return scaled


def _host(function: str, clips: Any) -> Float64:
    x = _array.to_host(clips, np.float64, function=function, argument="clips", finite=True)
    if x.ndim != 5 or 0 in x.shape:
        raise _check.error(ValueError, function, "clips", "have shape (N, T, H, W, C)", clips)
    if (greatest := float(np.abs(x).max())) > GREATEST:
        hint = f"the greatest is {greatest:.3g}; frames of bytes are clips / 127.5 - 1"
        raise _check.error(ValueError, function, "clips", "have values such as those in [-1, 1]", clips, hint)
    return x


_explained.face(__name__)
