"""Noise on JAX arrays: uint32 arithmetic only, so that it is the same with and without 64-bit integers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from diffcore import _philox
from diffcore._array import Array, is_half
from diffcore.backends import jax_kernel


def _multiply(constant: int, words: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the high and low words of the product; from products of 16-bit halves on a JAX without `mulhi`, and on several
    devices, since XLA cannot divide `mulhi` among them (jax 0.10.2: "Unable to convert MHLO to StableHLO")."""
    if hasattr(jax.lax, "mulhi") and jax.device_count() == 1:
        return jax.lax.mulhi(words, jnp.full_like(words, constant)), words * jnp.uint32(constant)
    c_high, c_low = jnp.uint32(constant >> 16), jnp.uint32(constant & 0xFFFF)
    w_high, w_low = words >> 16, words & jnp.uint32(0xFFFF)
    low_low, low_high = w_low * c_low, w_low * c_high
    middle = w_high * c_low + (low_low >> 16)
    carry = (low_high + (middle & jnp.uint32(0xFFFF))) >> 16
    return w_high * c_high + (middle >> 16) + carry, words * jnp.uint32(constant)


def _word(value: Any) -> jax.Array:
    return jnp.uint32(value) if isinstance(value, int) else jnp.asarray(value).astype(jnp.uint32)


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


def _elements(
    words: jax.Array, draw: jax.Array, shape: tuple[int, ...], stream: int, dtype: Any, finish: Finish
) -> jax.Array:
    """Return what `finish` makes of the words of every element, of shape `shape`; on a CPU the kernel makes it, in `dtype`."""
    size, full, rest = _philox.counts(shape)
    if full * _philox.TILE + rest > 1 << 32:
        raise ValueError(f"noise: a sample has {size} elements, but takes at most 2^34 on JAX, which counts in 32 bits")

    def by_kernel(words: jax.Array, draw: jax.Array) -> jax.Array:
        return jax_kernel.noise(words, draw, stream, shape, dtype)

    def by_operations(words: jax.Array, draw: jax.Array) -> jax.Array:
        block = jnp.arange(full * _philox.TILE + rest, dtype=jnp.uint32)[None, :]
        lanes = finish(_words(block, words[:, 0:1], words[:, 1:2], draw, stream))
        assembled: jax.Array = _philox.assemble(jnp, lanes, shape)
        return assembled

    if not (jax_kernel.whole(words, draw) and jax_kernel.works()):
        return by_operations(words, draw)
    found: jax.Array = jax.lax.platform_dependent(words, draw, cpu=by_kernel, default=by_operations)
    return found


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
    return _elements(words, draw, shape, stream, jnp.dtype(jnp.uint32), lambda w: w)


@partial(jax.jit, static_argnums=(2, 3, 4))
def _normal(words: jax.Array, draw: jax.Array, shape: tuple[int, ...], dtype: Any, stream: int) -> jax.Array:
    wide = jnp.float32 if is_half(dtype) else dtype

    def normals(w: list[jax.Array]) -> list[jax.Array]:
        return [lane for i in (0, 2) for lane in _philox.pair(jnp, w[i], w[i + 1], wide, jnp.int32)]

    return _elements(words, draw, shape, stream, wide, normals).astype(dtype)
