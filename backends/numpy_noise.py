"""Noise on NumPy arrays: packed words, in blocks that stay in the cache, on as many threads as there are cores.

Two counter words travel in one 64-bit integer, W_0 = (c0 : c1) and W_1 = (c2 : c3), so that a round is

    P_0 = M_0 (W_0 >> 32),  P_1 = M_1 (W_1 >> 32),  W_0 <- P_1 ^ (W_0 << 32) ^ (k0 : 0),  W_1 <- P_0 ^ (W_1 << 32) ^ (k1
    : 0)
"""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import array_api_compat.numpy as xp
import numpy as np
import numpy.typing as npt

from diffcore import _philox
from diffcore._array import Array

CHUNK = 16 * _philox.TILE
"""Blocks a pass: 4,096 blocks are 32 KiB a buffer, so that the handful of buffers stays in the second cache."""

U64 = npt.NDArray[np.uint64]


def bits(words: Array, draw: Any, shape: tuple[int, ...], *, device: Any = None, stream: int = 0) -> Array:
    """Return the 32-bit words of each element, in uint32; see `diffcore.noise.bits`."""
    out = np.empty((shape[0], math.prod(shape[1:])), dtype=np.uint32)
    _fill(out, np.asarray(words), int(draw), stream, _store_bits)
    return out.reshape(shape)


def normal(
    words: Array, draw: Any, shape: tuple[int, ...], *, dtype: Any, device: Any = None, stream: int = 0
) -> Array:
    """Return standard normals (B, ...); see `diffcore.noise.normal`."""
    dtype = np.dtype(dtype)
    _philox.check_dtype(dtype)
    out = np.empty((shape[0], math.prod(shape[1:])), dtype=dtype)
    _fill(out, np.asarray(words), int(draw), stream, _store_normals)
    return out.reshape(shape)


def _fill(out: Array, words: Array, draw: int, stream: int, store: Any) -> None:
    """Fill the samples chunk by chunk; chunks are independent, so threads do not change a bit."""
    size, full, rest = _philox.counts(out.shape)
    blocks = full * _philox.TILE + rest
    jobs = [
        (sample, first, min(first + CHUNK, blocks))
        for sample in range(out.shape[0])
        for first in range(0, blocks, CHUNK)
    ]

    def work(job: tuple[int, int, int]) -> None:
        sample, first, last = job
        low, high = (int(word) for word in words[sample])
        w0, w1 = _blocks(first, last, (low, high), draw & _philox.MASK, stream)
        end = size if last == blocks else 4 * last
        store(out[sample, 4 * first : end], w0, w1)

    threads = min(os.cpu_count() or 1, len(jobs) // 4)
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, jobs))
    else:
        for job in jobs:
            work(job)


def _blocks(first: int, last: int, key: tuple[int, int], draw: int, stream: int) -> tuple[U64, U64]:
    """Return (c0 : c1) and (c2 : c3) after ten rounds, for blocks first .. last - 1 (below 2^32)."""
    counter = np.arange(first, last, dtype=np.uint64)
    multiplier0, multiplier1 = (np.uint64(m) for m in _philox.MULTIPLIERS)
    half = np.uint64(32)
    k0, k1 = key
    # In the first round only c0 = block differs from element to element, in the second only the pair W_1 does.
    first_product = _philox.MULTIPLIERS[1] * draw
    w0_scalar = first_product ^ (k0 << 32)
    w1 = counter * multiplier0
    w1 ^= np.uint64((stream << 32) ^ (k1 << 32))
    k0, k1 = (k0 + _philox.WEYL[0]) & _philox.MASK, (k1 + _philox.WEYL[1]) & _philox.MASK
    product0 = _philox.MULTIPLIERS[0] * (w0_scalar >> 32)
    w0 = w1 >> half
    w0 *= multiplier1
    w0 ^= np.uint64(((w0_scalar << 32) & 0xFFFFFFFFFFFFFFFF) ^ (k0 << 32))
    w1 <<= half
    w1 ^= np.uint64(product0 ^ (k1 << 32))
    p0, p1 = np.empty_like(w0), np.empty_like(w1)
    for _ in range(_philox.ROUNDS - 2):
        k0, k1 = (k0 + _philox.WEYL[0]) & _philox.MASK, (k1 + _philox.WEYL[1]) & _philox.MASK
        np.right_shift(w0, half, out=p0)
        np.right_shift(w1, half, out=p1)
        p0 *= multiplier0
        p1 *= multiplier1
        w0 <<= half
        w1 <<= half
        w0 ^= np.uint64(k0 << 32)
        w1 ^= np.uint64(k1 << 32)
        w0 ^= p1
        w1 ^= p0
    return w0, w1


def _split(w0: U64, w1: U64) -> list[npt.NDArray[np.uint32]]:
    half = np.uint64(32)
    return [
        (w0 >> half).astype(np.uint32),
        w0.astype(np.uint32),
        (w1 >> half).astype(np.uint32),
        w1.astype(np.uint32),
    ]


def _store_bits(out: Array, w0: U64, w1: U64) -> None:
    lanes = [lane[None, :] for lane in _split(w0, w1)]
    out[...] = _philox.assemble(xp, lanes, (1, out.shape[0]))[0]


def _store_normals(out: Array, w0: U64, w1: U64) -> None:
    wide = np.dtype(np.float64) if out.dtype == np.float64 else np.dtype(np.float32)
    w = _split(w0, w1)
    lanes = [*_philox.pair(xp, w[0], w[1], wide, np.int32), *_philox.pair(xp, w[2], w[3], wide, np.int32)]
    out[...] = _philox.assemble(xp, [lane[None, :] for lane in lanes], (1, out.shape[0]))[0]
