r"""Noise as a pure function of (seed of the sample, which draw, which element): Philox4x32-10, then Box-Muller.

The bits are equal on every library, device, batch split and shard; the normals agree to a few ulp. So one seed is one
clip everywhere, sample i does not depend on its batch, and a run can be resumed at any step. The format is in
`diffcore._philox`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from diffcore import _array
from diffcore._array import Array


def seed_words(seeds: int | Sequence[int] | npt.NDArray[Any], batch: int) -> npt.NDArray[np.uint32]:
    """Return the 64-bit seed of each sample as two words, (batch, 2) uint32, low first.

    Args:
        seeds: one int, then sample i has seeds + i modulo 2^64; or one int per sample.
        batch: how many samples.

    Raises:
        TypeError: a seed that is no int.
        ValueError: a seed outside [0, 2^64), or another number of seeds than samples.

    >>> seed_words(2**64 - 1, 2).tolist()
    [[4294967295, 4294967295], [0, 0]]
    """
    if isinstance(seeds, (int, np.integer)) and not isinstance(seeds, bool):
        values = [_check_seed(seeds)]
        values = [(values[0] + i) & 0xFFFFFFFFFFFFFFFF for i in range(batch)]
    elif isinstance(seeds, (np.ndarray, list, tuple, range)):
        if np.ndim(seeds) != 1:
            raise ValueError(f"noise: `seed` has {np.ndim(seeds)} axes, but takes one int, or one int per sample")
        values = [_check_seed(seed) for seed in seeds]
    else:
        raise TypeError(f"noise: `seed` is {type(seeds).__name__}, but takes an int, or a list of one int per sample")
    if len(values) != batch:
        raise ValueError(f"noise: `seed` has {len(values)} entries for a batch of {batch}; give one int, or {batch}")
    return np.array([(value & 0xFFFFFFFF, value >> 32) for value in values], dtype=np.uint32).reshape(batch, 2)


def fold_in(seeds: int | Sequence[int] | npt.NDArray[Any], number: int, batch: int, *, stream: int = 8) -> list[int]:
    """Return a seed for each sample that belongs to (its seed, number): for the parts of something that has one seed.

    Args:
        seeds: as in `seed_words`.
        number: of the part, an int in [0, 2^32).
        batch: how many samples.
        stream: a small int that sets independent uses apart.

    Returns:
        `batch` ints in [0, 2^64): 64 bits of Philox keyed by the seed, so that parts are as independent as seeds are.

    Raises:
        TypeError, ValueError: as `seed_words`; a number out of range.

    >>> fold_in(7, 0, 2)[1] == fold_in(8, 0, 1)[0], fold_in(7, 0, 1) == fold_in(7, 1, 1)
    (True, False)
    """
    if isinstance(number, bool) or not isinstance(number, int | np.integer) or not 0 <= number < 2**32:
        raise ValueError(f"noise.fold_in: `number` is {number!r}, but takes an int in [0, 2^32)")
    words = bits(seed_words(seeds, batch), int(number), (batch, 2), stream=stream)
    return [int(low) | int(high) << 32 for low, high in words]


def _check_seed(seed: object) -> int:
    if isinstance(seed, (bool, np.bool_)) or not isinstance(seed, (int, np.integer)):
        raise TypeError(f"noise: `seed` has {seed!r}, but takes ints in [0, 2^64)")
    if not 0 <= int(seed) < 2**64:
        raise ValueError(f"noise: `seed` has {seed!r}, but takes ints in [0, 2^64)")
    return int(seed)


def _words(seeds: Any, batch: int) -> Any:
    """Return seeds as words; words of any library, (batch, 2), are taken as they are."""
    if hasattr(seeds, "shape") and tuple(seeds.shape) == (batch, 2):
        return seeds
    return seed_words(seeds, batch)


def _check_draw(function: str, draw: Any, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape, once it and a draw that is a number are known to be in range."""
    if not isinstance(draw, int) and "int" not in str(getattr(draw, "dtype", "")):
        raise TypeError(f"{function}: `draw` is {draw!r}, but takes an int in [0, 2^32), or a 0-d integer array")
    if isinstance(draw, int) and not 0 <= draw < 2**32:
        raise ValueError(f"{function}: `draw` is {draw!r}, but takes an int in [0, 2^32)")
    dims = tuple(int(n) for n in shape) if hasattr(shape, "__iter__") else ()
    if not dims:
        raise ValueError(f"{function}: `shape` is {shape!r}, but takes (B, ...), at least one axis")
    return dims


def _place(function: str, like: Array | None, device: Any) -> tuple[Any, Any, Any]:
    from diffcore._dispatch import backend_of

    like = np.zeros((), dtype=np.float32) if like is None else like
    _array.namespace(function, like=like)
    return backend_of(like), like, _array.device(like) if device is None else device


def normal(
    seeds: Any,
    draw: Any,
    shape: Sequence[int],
    *,
    like: Array | None = None,
    dtype: Any = None,
    device: Any = None,
    stream: int = 0,
) -> Array:
    r"""Return standard normals that depend only on (seed, draw, element, stream).

    Args:
        seeds: one int (sample i has seeds + i), one int per sample, each in [0, 2^64); or words (B, 2) as `seed_words`
            makes them, of any library, which may be traced.
        draw: which draw, an int in [0, 2^32) or a 0-d integer array, which may be traced.
        shape: (B, ...).
        like: an array that gives the library, dtype and device; NumPy float32 without one.
        dtype: float16, bfloat16, float32 or float64 of that library, instead of like's. float64 evaluates the same
            32-bit
            words in float64, so it agrees with float32 to rounding.
        device: instead of like's.
        stream: a small int that sets independent uses apart; samplers use 0, training times 1.

    Returns:
        An array of shape `shape`. Element e of sample i does not depend on the size of the sample or of the batch.

    Raises:
        TypeError: a dtype that is not floating, or a seed or a draw that is no int.
        ValueError: a seed or a draw out of range, no axis, or another number of seeds than samples.

    Source: Salmon et al. 2011 (doi 10.1145/2063384.2063405); Box & Muller 1958 (doi 10.1214/aoms/1177706645).

    >>> bool((normal([7, 8], 0, (2, 3))[1] == normal(8, 0, (1, 3))[0]).all())
    True
    """
    dims = _check_draw("noise.normal", draw, shape)
    backend, like, place = _place("noise.normal", like, device)
    kind = like.dtype if dtype is None else dtype
    words = backend.seeds(_words(seeds, dims[0]), like)
    return backend.normal(words, draw, dims, dtype=kind, device=place, stream=stream)


def bits(
    seeds: Any, draw: Any, shape: Sequence[int], *, like: Array | None = None, device: Any = None, stream: int = 0
) -> Array:
    """Return the 32-bit words, uniform in [0, 2^32), of each element: what `normal` is made from.

    Args, raises: as for `normal`.

    Returns:
        An integer array of shape `shape`: uint32 on NumPy and JAX, int64 on torch, uint64 on other libraries.

    >>> bits(0, 0, (1, 1)).tolist() == [[0x6627E8D5]]  # the published answer for a zero counter and key
    True
    """
    dims = _check_draw("noise.bits", draw, shape)
    backend, like, place = _place("noise.bits", like, device)
    words = backend.seeds(_words(seeds, dims[0]), like)
    return backend.bits(words, draw, dims, device=place, stream=stream)


def native(seed: int, *, like: Array | None = None) -> Callable[[Any, tuple[int, ...]], Array]:
    """Return a source of noise from the library's own generator, for `diffcore.sample(..., noise=native(7, like=z))`.

    It is a pure function of (seed, draw) too, but differs between libraries and devices, and a sample depends on its
    batch.

    Args:
        seed: an int in [0, 2^63).
        like: an array that gives the library, dtype and device; NumPy float32 without one.

    Returns:
        A function (draw, shape) -> array.

    Raises:
        TypeError: a library without a known generator.

    >>> source = native(7)
    >>> bool((source(3, (2, 2)) == source(3, (2, 2))).all())
    True
    """
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

        key = jax.random.key(seed)
        return lambda draw, shape: jax.random.normal(jax.random.fold_in(key, draw), shape, like.dtype)
    raise TypeError(f"noise.native: no native generator is known for {library}; use the seeds of `noise.normal`")
