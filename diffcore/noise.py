r"""Noise as a pure function of (key of the sample, which draw, which stream, which element): Philox4x32-10, then Box-Muller.

The bits are equal on every library, device, batch split and shard; the normals agree to a few ulp. So one seed is one
batch of clips everywhere, sample i does not depend on its batch, and a run can be resumed at any step. The format is in
`diffcore._philox`, the streams are in `diffcore._streams`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from diffcore import _array, _check, _explained, _memory, _philox, _streams
from diffcore._array import Array
from diffcore._brownian import brownian
from diffcore._dispatch import backend_of
from diffcore._keys import Seed, counted, fold_in, keys
from diffcore._philox import Region
from diffcore._seeds import words_of

__all__ = ["bits", "brownian", "fold_in", "keys", "native", "normal"]


def _check_region(function: str, region: Region | None, shape: tuple[int, ...]) -> Region | None:
    if region is None:
        return None
    if len(region) != len(shape) or any(len(pair) != 2 for pair in region):
        must = f"be (first index, size) for each axis of the shape {shape}"
        raise _check.error(ValueError, function, "region", must, region)
    found = []
    for axis, ((first, size), extent) in enumerate(zip(region, shape, strict=True)):
        try:
            count = _check.integer(
                function, "region", _array.known_int(counted(function, "region", size, extent)), 0, extent
            )
            found.append((counted(function, "region", first, extent - count), count))
        except (TypeError, ValueError) as error:
            must = f"be (first index, size) with first + size <= {extent} on axis {axis} of the shape {shape}"
            raise _check.error(type(error), function, "region", must, (first, size)) from None
    return tuple(found)


def _rows(seed: Seed, batch: int, region: Region | None) -> Array:
    """Return the words of the samples that are drawn, from keys of all the batch or of the samples of the region alone."""
    if region is None:
        return keys(seed, batch)
    first, count = region[0]
    words, one = words_of(seed)
    if one:
        return keys(seed, count, first)
    if words.shape[0] != batch or count == batch:
        return keys(words, count)
    if isinstance(first, int):
        return words[first : first + count, ...]
    xp, device = _array.library(first), _array.device(first)
    return xp.take(xp.asarray(words, device=device), first + xp.arange(count, device=device), axis=0)


def _drawn(
    function: str,
    seed: Seed,
    draw: Any,
    shape: Sequence[int],
    like: Array | None,
    device: Any,
    region: Region | None,
) -> tuple[Any, Array, tuple[Any, Any, tuple[int, ...]], dict[str, Any]]:
    """Return (backend, like, (words, draw, shape), settings), with which both kinds of draw begin."""
    draw = counted(function, "draw", draw, 2**32 - 1, hint="or give a 0-d integer array")
    dims = _check.shape(function, "shape", shape)
    region = _check_region(function, region, dims)
    like = np.zeros((), dtype=np.float32) if like is None else like
    _array.namespace(function, like=like)
    backend, place = backend_of(like), _array.device(like) if device is None else device
    if device is None and _memory.here(like):
        each = like.dtype.itemsize if function != "noise.bits" else 4 if isinstance(like, np.ndarray) else 12
        size = each * math.prod(_philox.sizes(dims, region))
        _memory.fits(function, "shape", dims, size, hint="draw it in parts: see `region`", like=like)
    words = backend.keys(_rows(seed, dims[0], region), like)
    if region is not None and all(size == extent for (_, size), extent in zip(region[1:], dims[1:], strict=True)):
        dims, region = (region[0][1], *dims[1:]), None  # all elements of each sample
    return backend, like, (words, draw, dims), {"device": place, "region": region}


def normal(
    seed: Seed,
    draw: Any,
    shape: Sequence[int],
    *,
    like: Array | None = None,
    dtype: Any = None,
    device: Any = None,
    stream: int = _streams.SAMPLER,
    region: Region | None = None,
) -> Array:
    r"""Return standard normals that depend only on (key of the sample, draw, element, stream).

    Args:
        seed: one seed, for sample i its key i; or keys, (B,) ints or words (B, 2): see `keys`.
        draw: which draw, an int in [0, 2^32) or a 0-d integer array, which may be traced.
        shape: (B, ...).
        like: an array that gives the library, dtype and device; NumPy float32 without one.
        dtype: float16, bfloat16, float32 or float64 of that library, instead of like's. float64 evaluates the same
            32-bit words in float64, so it agrees with float32 to rounding.
        device: instead of like's.
        stream: a small int that sets independent uses apart; samplers use 0, training times 1.
        region: (first index, size) along each axis of `shape`, the batch's included, to draw that block of the array
            alone. A first index may be a 0-d integer array, and traced on JAX; only NumPy's is checked. `shape[0]` keys
            are those of the full batch; else there is one key for each sample of the region.

    Returns:
        An array of shape `shape`, or of the region's sizes. Element e of sample i does not depend on the size of the
        sample or of the batch, nor on the region: equal bits.

    Raises:
        TypeError: a dtype that is not floating, or a seed or a draw that is not an int.
        ValueError: a seed, a draw or a region out of range, no axis, or another number of keys than samples.

    Source: Salmon et al. 2011 (doi 10.1145/2063384.2063405); Box & Muller 1958 (doi 10.1214/aoms/1177706645).

    >>> full = normal(7, 0, (4, 16, 8))
    >>> bool((normal(7, 0, (4, 16, 8), region=((2, 2), (4, 8), (0, 8))) == full[2:, 4:12]).all())
    True
    """
    backend, like, what, how = _drawn("noise.normal", seed, draw, shape, like, device, region)
    found: Array = backend.normal(*what, dtype=like.dtype if dtype is None else dtype, stream=stream, **how)
    return found


def bits(
    seed: Seed,
    draw: Any,
    shape: Sequence[int],
    *,
    like: Array | None = None,
    device: Any = None,
    stream: int = _streams.SAMPLER,
    region: Region | None = None,
) -> Array:
    """Return the 32-bit words, uniform in [0, 2^32), of each element, from which `normal` is computed.

    Args, raises: as for `normal`.

    Returns:
        An integer array of shape `shape`, or of the region's: uint32 on NumPy and JAX, int64 on torch, uint64 on other
        libraries.

    >>> bits([0], 0, (1, 1)).tolist() == [[0x6627E8D5]]  # the published answer for a zero counter and key
    True
    """
    backend, _, what, how = _drawn("noise.bits", seed, draw, shape, like, device, region)
    found: Array = backend.bits(*what, stream=stream, **how)
    return found


def native(seed: int, *, like: Array | None = None) -> Callable[[Any, tuple[int, ...]], Array]:
    """Return a source of noise from the library's own generator, for `diffcore.sample(..., noise=native(7, like=z))`.

    It is a pure function of (seed, draw) too, but differs between libraries and devices, and a sample depends on its
    batch.

    Args:
        seed: an int in [0, 2^64).
        like: an array that gives the library, dtype and device; NumPy float32 without one.

    Returns:
        A function (draw, shape) -> array.

    Raises:
        TypeError: another library than NumPy, torch and JAX, or a seed that is not an int.
        ValueError: a seed out of range.

    >>> source = native(7)
    >>> bool((source(3, (2, 2)) == source(3, (2, 2))).all())
    True
    """
    words = keys([seed], 1)[0]
    like = np.zeros((), dtype=np.float32) if like is None else like
    library = _array.name(_array.namespace("noise.native", like=like))
    if library == "numpy":
        kind = np.float64 if like.dtype == np.float64 else np.float32
        return partial(_from_numpy, seed, kind, like.dtype)
    if library == "torch":
        return partial(_from_torch, seed, like.dtype, like.device)
    if library == "jax":
        return partial(_from_jax, tuple(words.tolist()), like.dtype)
    raise _check.error(
        TypeError, "noise.native", "like", "be an array of NumPy, torch or JAX", like, "use noise.normal"
    )


def _from_numpy(seed: int, kind: Any, dtype: Any, draw: Any, shape: tuple[int, ...]) -> Array:
    return np.random.default_rng([seed, int(draw)]).standard_normal(shape, dtype=kind).astype(dtype)


def _from_torch(seed: int, dtype: Any, device: Any, draw: Any, shape: tuple[int, ...]) -> Array:
    import torch

    state = int(np.random.SeedSequence([seed, int(draw)]).generate_state(1, np.uint64)[0] >> np.uint64(1))
    generator = torch.Generator(device).manual_seed(state)
    return torch.randn(shape, generator=generator, dtype=dtype, device=device)


def _from_jax(words: tuple[int, int], dtype: Any, draw: Any, shape: tuple[int, ...]) -> Array:
    import jax

    held = jax.numpy.asarray(np.array(words, np.uint32))
    key = jax.random.wrap_key_data(held, impl="threefry2x32")  # `jax.random.key` takes 32 bits of a seed
    return jax.random.normal(jax.random.fold_in(key, draw), shape, dtype)


_explained.face(__name__)
