r"""Noise as a pure function of (key of the sample, which draw, which stream, which element): Philox4x32-10, then Box-Muller.

The bits are equal on every library, device, batch split and shard; the normals agree to a few ulp. So one seed is one
batch of clips everywhere, sample i does not depend on its batch, and a run can be resumed at any step. The format is in
`diffcore._philox`, the streams are in `diffcore._streams`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from diffcore import _array, _check, _philox, _streams
from diffcore._array import Array
from diffcore._dispatch import backend_of
from diffcore._philox import Region
from diffcore._seeds import words_of

Seed = Any
"""A seed, or the keys of samples: see `keys`."""

NUMBERS = 1 << 30
"""The number of keys of one seed."""

_LAYOUT = (NUMBERS // _philox.TILE, 4, _philox.TILE)
"""The elements of a sample by tile, lane and block."""


def keys(seed: Seed, count: int, first: Any = 0) -> Array:
    """Return the 64-bit keys of the samples first, first + 1, ... of a seed, as words; they may be given wherever a seed may.

        key i of one seed = the first two words of Philox keyed by the seed, at the counter (i, 0, 0, stream of keys)

    So the samples of seeds 0, 1, 2 are independent, and `keys(seed, 8)` is `keys(seed, 4)`, then
    `keys(seed, 4, first=4)`.

    Args:
        seed: one seed: an int in [0, 2^64), a 0-d integer array, or a `jax.random.key`. Or the keys themselves, which
            come back as words: a list or (B,) array of ints, a (B,) array of JAX's keys, or words (B, 2). Arrays are of
            NumPy, torch, JAX or another library, and may be traced or vmapped; those of NumPy are checked, others count
            modulo 2^64, and words modulo 2^32.
        count: how many.
        first: the number of the first, an int in [0, 2^30 - count], or a 0-d integer array; for one seed only.

    Returns:
        Words (count, 2), low first, of the library of the seed: uint32 on NumPy and JAX, int64 on torch.

    Raises:
        TypeError: a seed that is not an integer, or a JAX key of more than two words.
        ValueError: a seed or number out of range; another number of keys than `count`; `first` beside keys.

    Source: Salmon et al. 2011 (doi 10.1145/2063384.2063405), sec. 3.3.

    >>> bool((keys(7, 6)[4:] == keys(7, 2, first=4)).all()), keys([2**64 - 1, 5], 2).tolist()
    (True, [[4294967295, 4294967295], [5, 0]])
    """
    count = _check.integer("noise.keys", "count", count)
    words, one = words_of(seed)
    if one:
        return _fold(words, _number("noise.keys", "first", first, NUMBERS - count), count, _streams.KEYS)
    if not isinstance(first, int) or first != 0:
        hint = "it counts the samples of one seed; take a slice of the keys"
        raise _check.error(ValueError, "noise.keys", "first", "be 0 where `seed` is keys", first, hint)
    if words.shape[0] != count:
        must = f"be one int, or have {count} entries, one for each sample"
        raise _check.error(ValueError, "noise", "seed", must, seed)
    return words


def fold_in(seed: Seed, number: int, batch: int, *, stream: int = _streams.PARTS) -> Array:
    """Return a key for each sample that belongs to (its key, number): for the parts of something that has one seed.

    Args:
        seed: as in `keys`.
        number: of the part, an int in [0, 2^30), or a 0-d integer array.
        batch: how many samples.
        stream: a small int that sets independent uses apart.

    Returns:
        Words (batch, 2) as `keys` has them: parts are as independent as samples are.

    Raises:
        TypeError, ValueError: as `keys`; a number out of range.

    >>> part = fold_in(7, 3, 2)
    >>> bool((part == fold_in(keys(7, 2), 3, 2)).all()), bool((part == fold_in(7, 4, 2)).any())
    (True, False)
    """
    words, tile = keys(seed, batch), _philox.TILE
    number = _number("noise.fold_in", "number", number, NUMBERS - 1)
    where: Any = ((0, batch), (number // tile, 1), (0, 2), (number % tile, 1))
    how = {"device": _array.device(words), "stream": stream, "region": where}
    found = backend_of(words).bits(words, 0, (batch, *_LAYOUT), **how)
    return _array.library(words).reshape(found, (batch, 2))


def _fold(words: Array, first: Any, count: int, stream: int) -> Array:
    """Return the first two words of the blocks first, first + 1, ... of the stream of one seed, (count, 2)."""
    like = words if isinstance(first, int) else first
    xp, backend, tile, device = _array.library(like), backend_of(like), _philox.TILE, _array.device(like)
    tiles = (count + 2 * tile - 2) // tile  # that they meet at most
    where: Any = ((0, 1), (first // tile, tiles), (0, 2), (0, tile))
    found = backend.bits(backend.keys(words, like), 0, (1, *_LAYOUT), device=device, stream=stream, region=where)
    blocks = xp.reshape(xp.permute_dims(found[0, ...], (0, 2, 1)), (tiles * tile, 2))
    return xp.take(blocks, first % tile + xp.arange(count, device=device), axis=0)


def _number(function: str, argument: str, value: Any, most: int) -> Any:
    """Return an int in [0, most], or an integer array of no axes as it is."""
    if not isinstance(value, np.integer) and "int" in str(getattr(value, "dtype", "")) and value.shape == ():
        return value[()] if isinstance(value, np.ndarray) else value
    return _check.integer(function, argument, value, 0, most)


def _check_draw(function: str, draw: Any, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape as a tuple, or raise where it, or a draw that is a number, is out of range."""
    if isinstance(draw, int) or "int" not in str(getattr(draw, "dtype", "")):
        _check.integer(function, "draw", draw, 0, 2**32 - 1, hint="or give a 0-d integer array")
    return _check.shape(function, "shape", shape)


def _check_region(function: str, region: Region | None, shape: tuple[int, ...]) -> Region | None:
    if region is None:
        return None
    if len(region) != len(shape) or any(len(pair) != 2 for pair in region):
        must = f"be (first index, size) for each axis of the shape {shape}"
        raise _check.error(ValueError, function, "region", must, region)
    found = []
    for (first, size), extent in zip(region, shape, strict=True):
        count = _number(function, "region", size, extent)
        found.append((_number(function, "region", first, extent - count), count))
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
    dims = _check_draw(function, draw, shape)
    region = _check_region(function, region, dims)
    like = np.zeros((), dtype=np.float32) if like is None else like
    _array.namespace(function, like=like)
    backend, place = backend_of(like), _array.device(like) if device is None else device
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
            alone. A first index may be a 0-d integer array, and traced on JAX; it is not checked then. `shape[0]` keys
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
    """Return the 32-bit words, uniform in [0, 2^32), of each element: what `normal` is made from.

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
        return lambda draw, shape: (
            np.random.default_rng([seed, int(draw)]).standard_normal(shape, dtype=kind).astype(like.dtype)
        )
    if library == "torch":
        import torch

        def from_torch(draw: Any, shape: tuple[int, ...]) -> Array:
            state = int(np.random.SeedSequence([seed, int(draw)]).generate_state(1, np.uint64)[0] >> np.uint64(1))
            generator = torch.Generator(like.device).manual_seed(state)
            return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)

        return from_torch
    if library == "jax":
        import jax

        key = jax.random.wrap_key_data(jax.numpy.asarray(words), impl="threefry2x32")  # `key` takes 32 bits of a seed
        return lambda draw, shape: jax.random.normal(jax.random.fold_in(key, draw), shape, like.dtype)
    raise _check.error(
        TypeError, "noise.native", "like", "be an array of NumPy, torch or JAX", like, "use noise.normal"
    )
