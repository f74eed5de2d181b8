"""Noise on JAX arrays: uint32 arithmetic only, so that it is the same with and without 64-bit integers."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from diffcore import _philox
from diffcore._array import Array, is_half
from diffcore.backends import jax_order


def _multiply(constant: int, words: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the high and low words of the product; on a JAX without `mulhi` from products of 16-bit halves."""
    if hasattr(jax.lax, "mulhi"):
        return jax.lax.mulhi(words, jnp.full_like(words, constant)), words * jnp.uint32(constant)
    c_high, c_low = jnp.uint32(constant >> 16), jnp.uint32(constant & 0xFFFF)
    w_high, w_low = words >> 16, words & jnp.uint32(0xFFFF)
    low_low, low_high = w_low * c_low, w_low * c_high
    middle = w_high * c_low + (low_low >> 16)
    carry = (low_high + (middle & jnp.uint32(0xFFFF))) >> 16
    return w_high * c_high + (middle >> 16) + carry, words * jnp.uint32(constant)


def _word(value: Any) -> jax.Array:
    return jnp.uint32(value) if isinstance(value, int) else jnp.asarray(value).astype(jnp.uint32)


LARGE = 1 << 13
"""Elements from which XLA is told the order of its loops, which compiles more slowly and runs several times faster."""

Finish = Callable[[list[jax.Array]], list[jax.Array]]
"""The four words of each block -> its four lanes of elements."""


def _words(block: jax.Array, k0: jax.Array, k1: jax.Array, draw: jax.Array, stream: int) -> list[jax.Array]:
    """Return the four words of each block; the keys broadcast against the blocks."""
    zero = jnp.zeros((1,) * block.ndim, dtype=jnp.uint32)
    c0, c1, c2, c3 = block, zero, zero + draw, zero + jnp.uint32(stream)
    for _ in range(_philox.ROUNDS):
        high0, low0 = _multiply(_philox.MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_philox.MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + jnp.uint32(_philox.WEYL[0]), k1 + jnp.uint32(_philox.WEYL[1])
    return [c0, c1, c2, c3]


def _elements(words: jax.Array, draw: jax.Array, shape: tuple[int, ...], stream: int, finish: Finish) -> jax.Array:
    """Return what `finish` makes of the words of every element, of shape `shape`."""
    size, full, rest = _philox.counts(shape)
    if full * _philox.TILE + rest > 1 << 32:
        raise ValueError(f"noise: a sample has {size} elements, but takes at most 2^34 on JAX, which counts in 32 bits")
    if full and math.prod(shape) >= LARGE:
        parts = [_tiles(words, draw, stream, finish, full)]
        if rest:
            left = math.prod(shape[1:]) - 4 * _philox.TILE * full
            block = full * _philox.TILE + jnp.arange(rest, dtype=jnp.uint32)[None, :]
            lanes = finish(_words(block, words[:, 0:1], words[:, 1:2], draw, stream))
            parts.append(jnp.concatenate(lanes, axis=1)[:, :left])
        return jnp.concatenate(parts, axis=1).reshape(shape)
    block = jnp.arange(full * _philox.TILE + rest, dtype=jnp.uint32)[None, :]
    lanes = finish(_words(block, words[:, 0:1], words[:, 1:2], draw, stream))
    assembled: jax.Array = _philox.assemble(jnp, lanes, shape)
    return assembled


def _tiles(words: jax.Array, draw: jax.Array, stream: int, finish: Finish, full: int) -> jax.Array:
    """Return the full tiles of each sample as elements in order, (B, 4 T full)."""
    batch, tile = words.shape[0], _philox.TILE
    k0, k1 = (words[:, i].reshape(-1, 1, 1, 1) for i in (0, 1))

    def by_lane(draw: jax.Array) -> jax.Array:
        block = jnp.arange(full * tile, dtype=jnp.uint32).reshape(1, full, 1, tile)
        return jnp.concatenate(finish(_words(block, k0, k1, draw, stream)), axis=2)

    def by_block(draw: jax.Array) -> jax.Array:
        # With the lane as the last axis, the loop over it is the innermost, and all but the choice of the lane is moved out of
        # it: each block is made once. Merged with what reads it, the loop would run in another order.
        shape = (batch, full, tile, 4)
        index = partial(jax.lax.broadcasted_iota, jnp.uint32, shape)
        lanes = finish(_words(index(1) * jnp.uint32(tile) + index(2), k0, k1, draw, stream))
        pairs = [jnp.where(index(3) % 2 == 0, lanes[i], lanes[i + 1]) for i in (0, 2)]
        return jnp.where(index(3) < 2, pairs[0], pairs[1])

    def in_order(draw: jax.Array) -> jax.Array:
        return jnp.swapaxes(jax_order.apart(draw, by_block, draw), 2, 3)

    found: jax.Array = jax.lax.platform_dependent(draw, cpu=in_order, default=by_lane)
    return found.reshape(batch, -1)


def bits(words: Array, draw: Any, shape: tuple[int, ...], *, device: Any = None, stream: int = 0) -> jax.Array:
    """Return the 32-bit words of each element, in uint32; see `diffcore.noise.bits`."""
    if 0 in shape:
        return jnp.zeros(shape, dtype=jnp.uint32)
    found: jax.Array = _bits(jnp.asarray(words, dtype=jnp.uint32), _word(draw), shape, stream)
    return found


def normal(
    words: Array, draw: Any, shape: tuple[int, ...], *, dtype: Any, device: Any = None, stream: int = 0
) -> jax.Array:
    """Return standard normals (B, ...); see `diffcore.noise.normal`."""
    dtype = jnp.dtype(dtype)
    _philox.check_dtype(dtype)
    if 0 in shape:
        return jnp.zeros(shape, dtype=dtype)
    found: jax.Array = _normal(jnp.asarray(words, dtype=jnp.uint32), _word(draw), shape, dtype, stream)
    return found


@partial(jax.jit, static_argnums=(2, 3))
def _bits(words: jax.Array, draw: jax.Array, shape: tuple[int, ...], stream: int) -> jax.Array:
    return _elements(words, draw, shape, stream, lambda w: w)


@partial(jax.jit, static_argnums=(2, 3, 4))
def _normal(words: jax.Array, draw: jax.Array, shape: tuple[int, ...], dtype: Any, stream: int) -> jax.Array:
    wide = jnp.float32 if is_half(dtype) else dtype

    def normals(w: list[jax.Array]) -> list[jax.Array]:
        return [lane for i in (0, 2) for lane in _philox.pair(jnp, w[i], w[i + 1], wide, jnp.int32)]

    return _elements(words, draw, shape, stream, normals).astype(dtype)
