"""Noise on NumPy arrays: by the compiled kernel where there is one, else by the plain function."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from diffcore import _philox, _streams
from diffcore._array import Array
from diffcore._philox import Region
from diffcore.backends import cpu_threads

WORD = np.dtype(np.uint32)


def bits(
    words: Array,
    draw: Any,
    shape: tuple[int, ...],
    *,
    device: Any = None,
    stream: int = _streams.SAMPLER,
    region: Region | None = None,
) -> Array:
    """Return the 32-bit words of each element, in uint32; see `diffcore.noise.bits`."""
    if cpu_threads.kernel is not None:
        return _fill(np.dtype(np.uint32), words, draw, shape, stream, region)
    return _philox.bits(np, words, int(draw), shape, stream=stream, region=region).astype(np.uint32)


def normal(
    words: Array,
    draw: Any,
    shape: tuple[int, ...],
    *,
    dtype: Any,
    device: Any = None,
    stream: int = _streams.SAMPLER,
    region: Region | None = None,
) -> Array:
    """Return standard normals (B, ...); see `diffcore.noise.normal`."""
    dtype = np.dtype(dtype)
    _philox.check_dtype(dtype)
    if cpu_threads.kernel is not None:
        return _fill(dtype, words, draw, shape, stream, region)
    return _philox.normal(np, words, int(draw), shape, dtype=dtype, stream=stream, region=region)


def keys(words: Array) -> npt.NDArray[np.uint32]:
    """Return the seed words of any integer dtype as the kernel takes them."""
    return np.asarray(words).astype(WORD, order="C", copy=False)


def _fill(
    dtype: Any, words: Array, draw: Any, shape: tuple[int, ...], stream: int, region: Region | None = None
) -> Array:
    """Return noise for the samples, by the kernel."""
    sizes = _philox.sizes(shape, region)
    if 0 in sizes:
        return np.empty(sizes, dtype=dtype)
    starts, size = (None, math.prod(shape[1:])) if region is None else _philox.runs(np, shape, region, np.uint64)
    rows = sizes[0] * (1 if starts is None else len(starts))
    drawn = np.empty((rows, size), dtype=np.float32 if dtype == np.float16 else dtype)
    halves = None
    if starts is not None:
        halves = np.stack([starts & np.uint64(_philox.MASK), starts >> np.uint64(32)], axis=1).astype(np.uint32)
    fill = partial(cpu_threads.kernel.noise, drawn, keys(words), int(draw) & _philox.MASK, stream, halves, size)  # type: ignore[union-attr]
    cpu_threads.programs((rows, size), fill, whole=starts is None)
    return drawn.astype(dtype, copy=False).reshape(sizes)
