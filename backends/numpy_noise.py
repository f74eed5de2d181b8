"""Noise on NumPy arrays: by the compiled kernel where there is one, else in passes over chunks that stay in the cache.

In the passes, two counter words travel in one 64-bit integer, W_0 = (c0 : c1) and W_1 = (c2 : c3), so that a round is

    P_0 = M_0 (W_0 >> 32),   W_0 <- P_1 ^ (W_0 << 32) ^ (k0 : 0),
    P_1 = M_1 (W_1 >> 32),   W_1 <- P_0 ^ (W_1 << 32) ^ (k1 : 0).

The formulas are those of `diffcore._philox`; selections by a bit of a word are done on the bits of the floats.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from diffcore import _philox, _streams
from diffcore._array import Array
from diffcore._philox import Region
from diffcore.backends import cpu_threads

CHUNK = 256 * _philox.TILE
"""Blocks a pass: 65,536 blocks are 512 KiB a buffer, so that the handful of buffers stays in a third-level cache. In smaller
ones an operation is over before another thread has woken to take its turn, and threads gain nothing."""

U64 = npt.NDArray[np.uint64]
U32 = npt.NDArray[np.uint32]
HALF, MASK, SIGN = np.uint64(32), np.uint64(_philox.MASK), np.uint32(0x80000000)


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
    return _fill(np.dtype(np.uint32), words, draw, shape, stream, region)


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
    return _fill(dtype, words, draw, shape, stream, region)


def keys(words: Array) -> U32:
    """Return the seed words of any integer dtype as the kernel takes them."""
    return np.ascontiguousarray(np.asarray(words).astype(np.uint32, copy=False))


def _fill(
    dtype: Any, words: Array, draw: Any, shape: tuple[int, ...], stream: int, region: Region | None = None
) -> Array:
    """Return noise for the samples."""
    sizes = _philox.sizes(shape, region)
    if 0 in sizes:
        return np.empty(sizes, dtype=dtype)
    starts, size = (None, math.prod(shape[1:])) if region is None else _philox.runs(np, shape, region, np.uint64)
    if cpu_threads.kernel is not None:
        rows = sizes[0] * (1 if starts is None else len(starts))
        drawn = np.empty((rows, size), dtype=np.float32 if dtype == np.float16 else dtype)
        halves = None if starts is None else np.stack([starts & MASK, starts >> HALF], axis=1).astype(np.uint32)
        fill = partial(cpu_threads.kernel.noise, drawn, keys(words), int(draw) & _philox.MASK, stream, halves, size)
        cpu_threads.programs((rows, size), fill, whole=starts is None)
        return drawn.astype(dtype, copy=False).reshape(sizes)
    wide, number = np.asarray(words).astype(np.uint64), np.uint64(int(draw) & _philox.MASK)
    if starts is not None:
        finish = list if dtype == np.uint32 else partial(_normals, dtype)
        blocks = _philox.blocks_of(np, wide, number, None, stream, np.uint64)
        some = _philox.draw_some(np, blocks, finish, _philox.elements(np, starts, size))
        return some.astype(dtype, copy=False).reshape(sizes)
    out = np.empty((shape[0], size), dtype=dtype)

    def fill_span(scratch: Scratch, span: Span) -> None:
        to = out[span.samples, span.elements]
        scratch.store(to, span.first, span.blocks, wide[span.samples], number, stream)

    spread(out.shape, fill_span)
    return out.reshape(shape)


def _normals(dtype: Any, pair: list[U64]) -> list[Array]:
    """Return the two normals of two words, to the bits that a pass gives them."""
    words = np.stack(pair).astype(np.uint32)
    if dtype == np.float64:
        return _philox.normals(np, list(words), np.float64, np.int32)
    flat = words.reshape(2, -1)
    lanes = flat.view(np.float32)
    _pair(lanes[0], lanes[1], flat[0], flat[1], np.empty((4, lanes.shape[1]), np.uint32))
    return list(words.view(np.float32))


class Span(NamedTuple):
    """What one pass is about: some samples, which of their elements, and the Philox blocks behind those."""

    samples: slice
    elements: slice
    first: int
    blocks: int


def spread(shape: tuple[int, int], work: Callable[[Scratch, Span], None]) -> None:
    """Call work(scratch, span) on all of (samples, size), pass by pass: a part of a large sample, or several small ones.

    A span is one piece of memory. Passes are independent, so neither threads nor the rest of the batch change a bit.
    """
    batch, size = shape
    if not batch * size:
        return
    _, full, rest = _philox.counts(shape)
    blocks = full * _philox.TILE + rest
    together = max(1, CHUNK // blocks)
    spans = []
    for sample in range(0, batch, together):
        for first in range(0, blocks, CHUNK):
            count = min(CHUNK, blocks - first)
            end = size if first + count == blocks else 4 * (first + count)
            samples = slice(sample, min(sample + together, batch))
            spans.append(Span(samples, slice(4 * first, end), first, count))

    room = min(blocks * min(together, batch), CHUNK)
    cpu_threads.each(spans, lambda: partial(work, Scratch(room)))


class Scratch:
    """The buffers of one thread, and the passes over them."""

    def __init__(self, size: int) -> None:
        self.wide = np.empty((4, size), dtype=np.uint64)
        self.words = np.empty((4, size), dtype=np.uint32)

    def store(self, out: Array, first: int, count: int, keys: U64, draw: np.uint64, stream: int) -> None:
        """Write the elements of `count` blocks, of which the first is `first`, of each sample into `out` (samples, ...)."""
        size = count * out.shape[0]
        words = self.words[:, :size]
        self._rounds(words, first, count, keys, draw, stream)
        if out.dtype == np.uint32:
            lanes: Array = words
        elif out.dtype == np.float64:
            pairs = [_philox.pair(np, words[i], words[i + 1], np.float64, np.int32) for i in (0, 2)]
            lanes = np.stack([lane for pair in pairs for lane in pair])
        else:
            lanes = words.view(np.float32)
            free = self.wide.reshape(-1).view(np.uint32)[: 4 * size].reshape(4, size)
            for i in (0, 2):
                _pair(lanes[i], lanes[i + 1], words[i], words[i + 1], free)
        _place(out, lanes.reshape(4, out.shape[0], count))

    def _rounds(self, words: U32, first: int, count: int, keys: U64, draw: np.uint64, stream: int) -> None:
        samples = keys.shape[0]
        w0, w1, p0, p1 = (buffer[: samples * count].reshape(samples, count) for buffer in self.wide)
        m0, m1 = (np.uint64(m) for m in _philox.MULTIPLIERS)
        mask = np.uint64(_philox.MASK)
        k0, k1 = keys[:, 0:1], keys[:, 1:2]
        # In the first round only the block's low word differs within a pass, in the second only W_1 does.
        low, high = np.uint64(first & _philox.MASK), np.uint64(first >> 32)
        alike = m1 * draw ^ ((k0 ^ high) << HALF)
        w1[...] = np.arange(count, dtype=np.uint64) + low
        w1 *= m0
        w1 ^= (np.uint64(stream) ^ k1) << HALF
        k0, k1 = (k0 + np.uint64(_philox.WEYL[0])) & mask, (k1 + np.uint64(_philox.WEYL[1])) & mask
        np.right_shift(w1, HALF, out=w0)
        w0 *= m1
        w0 ^= ((alike & mask) ^ k0) << HALF
        w1 <<= HALF
        w1 ^= (m0 * (alike >> HALF)) ^ (k1 << HALF)
        for _ in range(_philox.ROUNDS - 2):
            k0, k1 = (k0 + np.uint64(_philox.WEYL[0])) & mask, (k1 + np.uint64(_philox.WEYL[1])) & mask
            np.right_shift(w0, HALF, out=p0)
            np.right_shift(w1, HALF, out=p1)
            p0 *= m0
            p1 *= m1
            p1 ^= k0 << HALF
            p0 ^= k1 << HALF
            w0 <<= HALF
            w1 <<= HALF
            w0 ^= p1
            w1 ^= p0
        for packed, high, low in ((w0, words[0], words[1]), (w1, words[2], words[3])):
            low[...] = packed.reshape(-1)  # casts keep the low word
            packed >>= HALF
            high[...] = packed.reshape(-1)


def _pair(x: Array, y: Array, first: U32, second: U32, free: U32) -> None:
    """Turn two words into two normals in place: x and y may share memory with the words. See `_philox.pair`."""
    a, b, c, d = free
    radius, other, cosine, sine = (part.view(np.float32) for part in (a, b, c, d))
    # radius: u or 1 - u, whichever is smaller, then its logarithm or log1p of its negative
    np.right_shift(first.view(np.int32), 31, out=c.view(np.int32))
    np.bitwise_xor(first, c, out=b)
    radius[...] = b.view(np.int32)
    radius += np.float32(0.5)
    radius *= np.float32(2.0**-32)
    np.negative(radius, out=other)
    np.log1p(other, out=other)
    np.log(radius, out=radius)
    b ^= a  # a masked copy would take longer than both logarithms
    b &= c
    a ^= b
    radius *= np.float32(-2.0)
    np.sqrt(radius, out=radius)
    # angle: the words' remainder from the nearest quadrant, four times, as a signed integer
    np.left_shift(second, np.uint32(2), out=b)
    x[...] = b.view(np.int32)
    x += np.float32(2.0)
    x *= np.float32(math.pi / 2.0**33)
    np.multiply(x, x, out=other)
    np.multiply(other, np.float32(-1.9515295891e-4), out=sine)
    sine += np.float32(8.3321608736e-3)
    sine *= other
    sine += np.float32(-1.6666654611e-1)
    sine *= other
    sine *= x
    sine += x
    np.multiply(other, np.float32(2.443315711809948e-5), out=cosine)
    cosine += np.float32(-1.388731625493765e-3)
    cosine *= other
    cosine += np.float32(4.166664568298827e-2)
    cosine *= other
    cosine *= other
    other *= np.float32(0.5)
    cosine -= other
    cosine += np.float32(1.0)
    # quadrant: exchange where it is odd, then the signs
    second += np.uint32(1 << 29)
    np.left_shift(second, np.uint32(1), out=b)
    np.right_shift(b.view(np.int32), 31, out=b.view(np.int32))
    swap = x.view(np.uint32)
    np.bitwise_xor(c, d, out=swap)
    swap &= b
    c ^= swap
    d ^= swap
    np.bitwise_and(second, SIGN, out=b)
    d ^= b
    second += np.uint32(1 << 30)
    second &= SIGN
    c ^= second
    np.multiply(cosine, radius, out=x)
    np.multiply(sine, radius, out=y)


def _place(out: Array, lanes: Array) -> None:
    """Write four lanes (4, samples, blocks) into the order of `_philox`: whole tiles, then the rest."""
    samples, size = out.shape
    _, full, _ = _philox.counts((1, size))
    whole = full * _philox.TILE
    if full:
        tiles = out[:, : 4 * whole].reshape(samples, full, 4, _philox.TILE)  # a view: the columns are contiguous
        tiles[...] = lanes[:, :, :whole].reshape(4, samples, full, _philox.TILE).transpose(1, 2, 0, 3)
    if size > 4 * whole:
        rest = lanes[:, :, whole:].transpose(1, 0, 2).reshape(samples, -1)
        out[:, 4 * whole :] = rest[:, : size - 4 * whole]
