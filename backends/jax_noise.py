"""Noise on JAX arrays: uint32 arithmetic only, so that it is the same with and without 64-bit integers."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from diffcore import _philox
from diffcore._array import Array, is_half


def _multiply(constant: int, words: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the high and low words of the product, from products of 16-bit halves."""
    c_high, c_low = jnp.uint32(constant >> 16), jnp.uint32(constant & 0xFFFF)
    w_high, w_low = words >> 16, words & jnp.uint32(0xFFFF)
    low_low, low_high = w_low * c_low, w_low * c_high
    middle = w_high * c_low + (low_low >> 16)
    carry = (low_high + (middle & jnp.uint32(0xFFFF))) >> 16
    return w_high * c_high + (middle >> 16) + carry, words * jnp.uint32(constant)


def _word(value: Any) -> jax.Array:
    return jnp.uint32(value) if isinstance(value, int) else jnp.asarray(value).astype(jnp.uint32)


def _lanes(words: Array, draw: Any, shape: tuple[int, ...], stream: int) -> list[jax.Array]:
    _, full, rest = _philox.counts(shape)
    block = jnp.arange(full * _philox.TILE + rest, dtype=jnp.uint32)[None, :]
    zero = jnp.zeros((1, 1), dtype=jnp.uint32)
    counter = (block, zero, zero + draw, zero + jnp.uint32(stream))
    k0, k1 = words[:, 0:1], words[:, 1:2]
    c0, c1, c2, c3 = counter
    for _ in range(_philox.ROUNDS):
        high0, low0 = _multiply(_philox.MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_philox.MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + jnp.uint32(_philox.WEYL[0]), k1 + jnp.uint32(_philox.WEYL[1])
    return [c0, c1, c2, c3]


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
    found: jax.Array = _philox.assemble(jnp, _lanes(words, draw, shape, stream), shape)
    return found


@partial(jax.jit, static_argnums=(2, 3, 4))
def _normal(words: jax.Array, draw: jax.Array, shape: tuple[int, ...], dtype: Any, stream: int) -> jax.Array:
    w = _lanes(words, draw, shape, stream)
    wide = jnp.float32 if is_half(dtype) else dtype
    pairs = [_philox.pair(jnp, w[i], w[i + 1], wide, jnp.int32) for i in (0, 2)]
    found: jax.Array = _philox.assemble(jnp, [lane for pair in pairs for lane in pair], shape).astype(dtype)
    return found
