"""The keys of samples: from one seed, or as they are given; `diffcore.noise` has both functions under their names."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffcore import _array, _check, _memory, _philox, _streams
from diffcore._array import Array
from diffcore._dispatch import backend_of
from diffcore._seeds import in_torch, words_of

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
        first: the number of the first, an int in [0, 2^30 - count], or a 0-d integer array, which is checked if it is NumPy's; for
            one seed only.

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
        _memory.fits("noise.keys", "count", count, 32 * count, hint="make them in parts: keys(seed, n, first=k)")
        return _fold(words, counted("noise.keys", "first", first, NUMBERS - count), count, _streams.KEYS)
    if _array.known_int(counted("noise.keys", "first", first, NUMBERS)) != 0:
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
    which = counted("noise.fold_in", "number", number, NUMBERS - 1)
    where: Any = ((0, batch), (which // tile, 1), (0, 2), (which % tile, 1))
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


def counted(function: str, argument: str, value: Any, most: int, *, hint: str = "") -> Any:
    """Return an int in [0, most], also from NumPy's array of no axes; that of another library, or traced, comes back."""
    if isinstance(value, np.ndarray):
        value = in_torch(value) if _array.traced() else value[()] if value.shape == () else value
    if not isinstance(value, np.integer) and "int" in str(getattr(value, "dtype", "")) and value.shape == ():
        return value
    return _check.integer(function, argument, value, 0, most, hint=hint)
