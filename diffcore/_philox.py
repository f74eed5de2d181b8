r"""Philox4x32-10 and Box-Muller, stated once, for integers and floats of any array library.

A block is four 32-bit words, a bijection of the counter (block low, block high, draw, stream) keyed by the sample's
64-bit seed (low, high). Ten rounds; M_0 = D2511F53, M_1 = CD9E8D57, and the key grows by 9E3779B9, BB67AE85 a round:

    (c0, c1, c2, c3) <- (hi(M_1 c2) ^ c1 ^ k0, lo(M_1 c2), hi(M_0 c0) ^ c3 ^ k1, lo(M_0 c0))

Words (w0, w1) and (w2, w3) give two pairs of normals. With u = (w0 + 1/2) / 2^32 and the angle of w1 split exactly into
a quadrant q and a remainder |theta| <= pi / 4,

    z_0 = sqrt(-2 log u) cos(q pi / 2 + theta),   z_1 = sqrt(-2 log u) sin(q pi / 2 + theta),

where log u is taken from 1 - u for u > 1/2, so that it is right to the last digits at both ends.

Elements of a sample are laid out in tiles of 4 T: tile, then lane 0..3, then T blocks. So element e comes from lane
(e mod 4T) div T of block (e div 4T) T + e mod T whatever the size of the sample is: a prefix or a shard draws the same.

Source: Salmon et al. 2011 (doi 10.1145/2063384.2063405), sec. 3.3; Box & Muller 1958 (doi 10.1214/aoms/1177706645).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from diffcore import _array, _streams
from diffcore._array import Array

TILE = 256
"""T: blocks a tile."""

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
MASK = 0xFFFFFFFF
ROUNDS = 10

Region = Sequence[tuple[Any, int]]
"""(first index, size) along each axis of a whole array."""

Multiply = Callable[[int, Array], tuple[Array, Array]]
"""(constant, 32-bit words) -> (high, low) words of the 64-bit product."""


def multiply_wide(constant: int, words: Array) -> tuple[Array, Array]:
    """Return the product's high and low words, in unsigned integers of 64 bits."""
    product = words * constant
    return (product >> 32) & MASK, product & MASK


def multiply_signed(constant: int, words: Array) -> tuple[Array, Array]:
    """Return the same in signed 64-bit integers without overflow, which compilers may take to be impossible.

    c w = (c - 2^32) w + 2^32 w, and |(c - 2^32) w| < 2^63 for c >= 2^31.
    """
    product = words * (constant - (1 << 32))
    return ((product >> 32) + words) & MASK, product & MASK


def rounds(multiply: Multiply, counter: tuple[Array, Array, Array, Array], key: tuple[Array, Array]) -> list[Array]:
    """Return the four words of each block; counter and key broadcast against each other."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        high0, low0 = multiply(MULTIPLIERS[0], c0)
        high1, low1 = multiply(MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return [c0, c1, c2, c3]


def counts(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return (elements of a sample, full tiles, blocks of the last tile that are needed)."""
    size = math.prod(shape[1:])
    full = size // (4 * TILE)
    return size, full, min(size - 4 * TILE * full, TILE)


def assemble(xp: Any, lanes: list[Array], shape: tuple[int, ...]) -> Array:
    """Return the elements of each sample in order, of shape `shape`, from four lanes (B, blocks)."""
    size, full, rest = counts(shape)
    batch = shape[0]
    parts = []
    if full:
        whole = [xp.reshape(lane[:, : full * TILE], (batch, full, TILE)) for lane in lanes]
        parts.append(xp.reshape(xp.stack(whole, axis=2), (batch, full * 4 * TILE)))
    if rest:
        left = size - 4 * TILE * full
        used = lanes[: -(-left // rest)]
        parts.append(xp.concat([lane[:, full * TILE :] for lane in used], axis=1)[:, :left])
    flat = parts[0] if len(parts) == 1 else xp.concat(parts, axis=1)
    return xp.reshape(flat, shape)


def sizes(shape: tuple[int, ...], region: Region | None) -> tuple[int, ...]:
    """Return the shape of what is drawn."""
    return shape if region is None else tuple(size for _, size in region)


def runs(xp: Any, shape: tuple[int, ...], region: Region, dtype: Any, device: Any = None) -> tuple[Array, int]:
    """Return the runs of elements in a row that a region has in each sample: where they begin, (runs,), and their size."""
    axes = list(zip(shape[1:], region[1:], strict=True))
    stride = 1
    while axes and axes[-1][0] == axes[-1][1][1]:  # a whole axis begins at 0, and joins the one outside it
        stride *= axes.pop()[0]
    starts, size, inner = xp.zeros((1,), dtype=dtype, device=device), stride, True
    for extent, (first, count) in reversed(axes):
        begin, step = (xp.asarray(value, dtype=dtype, device=device) for value in (first, stride))
        if inner:
            starts, size, inner = begin * step + starts, count * stride, False
        else:
            rows = begin + xp.arange(count, dtype=dtype, device=device)
            starts = xp.reshape((rows * step)[:, None] + starts[None, :], (-1,))
        stride *= extent
    return starts, size


def axes(shape: tuple[int, ...], region: Region | None) -> tuple[Any, list[int], list[int]]:
    """Return the elements that a region has in each sample by axes: the number of the first, and along each axis, the innermost
    first, how many there are and how far apart. Axes that lie in one piece are one; of the whole there are none.
    """
    origin: Any = 0
    counts: list[int] = []
    strides: list[int] = []
    stride = 1
    for extent, (first, count) in reversed([] if region is None else list(zip(shape[1:], region[1:], strict=True))):
        origin = first * stride + origin
        if counts and counts[-1] * strides[-1] == stride:
            counts[-1] *= count
        else:
            counts.append(count)
            strides.append(stride)
        stride *= extent
    return origin, counts, strides


def pair(xp: Any, first: Array, second: Array, dtype: Any, small: Any) -> tuple[Array, Array]:
    """Return the two normals of two words, computed in `dtype`; `small` is a signed integer dtype of 32 bits or
    more."""
    upper = first > (MASK >> 1)
    mask = xp.asarray(MASK, dtype=first.dtype, device=_array.device(first))  # too large for a JAX Python int
    nearest = xp.astype(xp.where(upper, mask - first, first), small)
    tail = (xp.astype(nearest, dtype) + 0.5) * 2.0**-32  # u, or 1 - u: the smaller
    argument = xp.where(upper, 1.0 - tail, tail)
    logarithm = xp.log(argument)
    gap = 1.0 - argument  # exact; log1p(-tail) = log(argument) tail / gap to the last digit, and -tail where gap = 0
    flat = gap == 0.0
    corrected = xp.where(flat, -tail, logarithm * (tail / xp.where(flat, xp.ones_like(gap), gap)))
    radius = xp.sqrt(-2.0 * xp.where(upper, corrected, logarithm))
    shifted = second + (1 << 29)
    quadrant = (shifted >> 30) & 3
    remainder = xp.astype(shifted & ((1 << 30) - 1), small) - (1 << 29)
    cosine, sine = _cosine_sine(xp, (xp.astype(remainder, dtype) + 0.5) * (math.pi / 2.0**31), dtype)
    odd = (quadrant & 1) == 1
    x, y = xp.where(odd, sine, cosine), xp.where(odd, cosine, sine)
    x = xp.where(((quadrant + 1) & 2) == 2, -x, x)
    y = xp.where((quadrant & 2) == 2, -y, y)
    return radius * x, radius * y


def normals(xp: Any, words: list[Array], dtype: Any, small: Any) -> list[Array]:
    """Return the normals of words in pairs: what `normal` makes of them."""
    return [each for i in range(0, len(words), 2) for each in pair(xp, words[i], words[i + 1], dtype, small)]


def _cosine_sine(xp: Any, angle: Array, dtype: Any) -> tuple[Array, Array]:
    """Return cos and sin of angles in [-pi / 4, pi / 4]: in float32 by the polynomials of Cephes, right to an ulp."""
    if "64" in str(dtype):
        return xp.cos(angle), xp.sin(angle)
    square = angle * angle
    sine = ((-1.9515295891e-4 * square + 8.3321608736e-3) * square - 1.6666654611e-1) * square * angle + angle
    cosine = (2.443315711809948e-5 * square - 1.388731625493765e-3) * square + 4.166664568298827e-2
    return cosine * square * square - 0.5 * square + 1.0, sine


def key_words(xp: Any, words: Array, dtype: Any, device: Any) -> tuple[Array, Array]:
    """Return the two key words of each sample, (B, 1), in the integer dtype that the rounds are computed in."""
    if isinstance(words, np.ndarray):
        words = xp.asarray(words.astype(np.int64), device=device)
    words = xp.astype(words, dtype, copy=False)
    return words[:, 0:1], words[:, 1:2]


Blocks = Callable[[Array], list[Array]]
"""Numbers of blocks (1, n) -> their four words, each (B, n)."""

Finish = Callable[[list[Array]], list[Array]]
"""Words in pairs -> the elements that they make, as many."""


def blocks_of(
    xp: Any, words: Array, draw: Any, device: Any, stream: int, dtype: Any, multiply: Multiply = multiply_wide
) -> Blocks:
    """Return the function from blocks to words that belongs to seeds, a draw or one for each, and a stream, in 64-bit integers."""
    draw = xp.asarray(draw, dtype=dtype, device=device) if not hasattr(draw, "dtype") else xp.astype(draw, dtype)
    draw = xp.reshape(draw, (-1, 1)) & MASK
    zero = xp.zeros((1, 1), dtype=dtype, device=device)
    key = key_words(xp, words, dtype, device)
    return lambda block: rounds(multiply, (block & MASK, block >> 32, draw, zero + stream), key)


def draw_all(xp: Any, blocks: Blocks, finish: Finish, shape: tuple[int, ...], dtype: Any, device: Any) -> Array:
    """Return all elements of each sample: every block is computed once, and both of its pairs are used."""
    _, full, rest = counts(shape)
    w = blocks(xp.reshape(xp.arange(full * TILE + rest, dtype=dtype, device=device), (1, -1)))
    return assemble(xp, finish(w), shape)


def draw_some(xp: Any, blocks: Blocks, finish: Finish, element: Array) -> Array:
    """Return the elements of these numbers, (n,), of each sample, (B, n): each computes its block, and one pair of it."""
    element = xp.reshape(element, (1, -1))
    w = blocks(element // (4 * TILE) * TILE + element % TILE)
    lane = element // TILE % 4
    x, y = finish([xp.where(lane > 1, w[2], w[0]), xp.where(lane > 1, w[3], w[1])])
    return xp.where(lane % 2 == 1, y, x)


def elements(xp: Any, starts: Array, size: int) -> Array:
    """Return the numbers of the elements of runs, (n,)."""
    row = xp.arange(size, dtype=starts.dtype, device=_array.device(starts))
    return xp.reshape(starts[:, None] + row[None, :], (-1,))


def made(
    xp: Any, blocks: Blocks, finish: Finish, shape: tuple[int, ...], region: Region | None, dtype: Any, device: Any
) -> Array:
    """Return the elements of a region, or all, in the order of the array."""
    if region is None:
        return draw_all(xp, blocks, finish, shape, dtype, device)
    element = elements(xp, *runs(xp, shape, region, dtype, device))
    return xp.reshape(draw_some(xp, blocks, finish, element), sizes(shape, region))


def check_dtype(dtype: Any) -> None:
    """Raise TypeError unless noise is made in this dtype."""
    if str(dtype).split(".")[-1].strip("'>") not in {"float16", "bfloat16", "float32", "float64"}:
        raise TypeError(f"noise.normal: `dtype` is {dtype}, but takes float16, bfloat16, float32 or float64")


def bits(
    xp: Any,
    words: Array,
    draw: Any,
    shape: tuple[int, ...],
    *,
    device: Any = None,
    stream: int = _streams.SAMPLER,
    region: Region | None = None,
) -> Array:
    """Return the 32-bit words of each element, in uint64: the reference of every backend."""
    if 0 in sizes(shape, region):
        return xp.zeros(sizes(shape, region), dtype=xp.uint64, device=device)
    blocks = blocks_of(xp, words, draw, device, stream, xp.uint64)
    return made(xp, blocks, list, shape, region, xp.uint64, device)


def normal(
    xp: Any,
    words: Array,
    draw: Any,
    shape: tuple[int, ...],
    *,
    dtype: Any,
    device: Any = None,
    stream: int = _streams.SAMPLER,
    region: Region | None = None,
) -> Array:
    """Return standard normals: the reference of every backend."""
    check_dtype(dtype)
    if 0 in sizes(shape, region):
        return xp.zeros(sizes(shape, region), dtype=dtype, device=device)
    wide = xp.float32 if _array.is_half(dtype) else dtype
    blocks = blocks_of(xp, words, draw, device, stream, xp.uint64)
    finish = partial(normals, xp, dtype=wide, small=xp.int64)
    return xp.astype(made(xp, blocks, finish, shape, region, xp.uint64, device), dtype, copy=False)
