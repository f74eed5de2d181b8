"""Noise on JAX arrays: uint32 arithmetic only, so that it is the same with and without 64-bit integers."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffcore import _philox, _streams
from diffcore._array import Array, is_half
from diffcore._philox import Blocks, Finish, Region
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


def _blocks(words: jax.Array, draw: jax.Array, stream: int, rolled: bool, block: jax.Array) -> list[jax.Array]:
    """Return the four words of each block (1, n) of each sample.

    With `rolled` the rounds are a loop, whose end is in memory, so that what reads a word does not make it again; on a CPU XLA
    does that for every element, one by one. On a GPU one kernel makes everything, and reads nothing.
    """
    zero = 0 * (words[:, 0:1] + draw + block)  # in a `shard_map` its type varies with all that a word is made of

    def one(number: Any, c: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        k0, k1 = (words[:, i : i + 1] + jnp.uint32(number) * jnp.uint32(_philox.WEYL[i]) for i in (0, 1))
        high0, low0 = _multiply(_philox.MULTIPLIERS[0], c[0])
        high1, low1 = _multiply(_philox.MULTIPLIERS[1], c[2])
        return high1 ^ c[1] ^ k0, low1, high0 ^ c[3] ^ k1, low0

    c: Any = (zero + block, zero, zero + draw, zero + jnp.uint32(stream))
    if rolled:
        return list(jax.lax.fori_loop(0, _philox.ROUNDS, one, c))
    for number in range(_philox.ROUNDS):
        c = one(number, c)
    return list(c)


def _all(blocks: Blocks, finish: Finish, shape: tuple[int, ...]) -> jax.Array:
    """Return all elements of each sample, as `_philox.draw_all`, with a loop over the two pairs of a block, for the same reason."""
    _, full, rest = _philox.counts(shape)
    w = blocks(jnp.arange(full * _philox.TILE + rest, dtype=jnp.uint32)[None, :])
    lanes = jax.lax.map(lambda pair: jnp.stack(finish(*pair)), (jnp.stack(w[0::2]), jnp.stack(w[1::2])))
    found: jax.Array = _philox.assemble(jnp, [*lanes[0], *lanes[1]], shape)
    return found


def _made(
    words: jax.Array,
    draw: jax.Array,
    starts: jax.Array | None,
    sizes: tuple[int, ...],
    stream: int,
    dtype: Any,
    finish: Finish,
) -> jax.Array:
    """Return the elements of samples, or of the runs of each that begin at `starts`; on a CPU the kernel makes them, in
    `dtype`."""
    size = math.prod(sizes[1:])

    def by_kernel(words: jax.Array, draw: jax.Array, starts: jax.Array | None) -> jax.Array:
        return jax_kernel.noise(words, draw, starts, stream, sizes, dtype)

    def by_operations(words: jax.Array, draw: jax.Array, starts: jax.Array | None, rolled: bool = False) -> jax.Array:
        blocks = partial(_blocks, words, draw, stream, rolled)
        if starts is None:
            return (
                _all(blocks, finish, sizes)
                if rolled
                else _philox.draw_all(jnp, blocks, finish, sizes, jnp.uint32, None)
            )
        element = _philox.elements(jnp, starts, size // starts.shape[0])
        return jnp.reshape(_philox.draw_some(jnp, blocks, finish, element), sizes)

    kernel = jax_kernel.whole(words, draw, starts) and jax_kernel.works()
    on_cpu = by_kernel if kernel else partial(by_operations, rolled=True)
    found: jax.Array = jax.lax.platform_dependent(words, draw, starts, cpu=on_cpu, default=by_operations)
    return found


def _starts(shape: tuple[int, ...], region: Region | None) -> jax.Array | None:
    """Return where the runs of a region begin in a sample, or None; and check that 32 bits are enough to count."""
    size, full, rest = _philox.counts(shape)
    if full * _philox.TILE + rest > 1 << 32:
        raise ValueError(f"noise: a sample has {size} elements, but takes at most 2^34 on JAX, which counts in 32 bits")
    if region is None:
        return None
    if size > 1 << 32:
        raise ValueError(
            f"noise: a sample has {size} elements, but takes at most 2^32 for a region of it on JAX, which counts in 32 bits"
        )
    here = all(isinstance(first, int) for first, _ in region)  # then it is worked out on the host
    return jnp.asarray(_philox.runs(np if here else jnp, shape, region, np.uint32)[0])


def bits(
    words: Array,
    draw: Any,
    shape: tuple[int, ...],
    *,
    device: Any = None,
    stream: int = _streams.SAMPLER,
    region: Region | None = None,
) -> jax.Array:
    """Return the 32-bit words of each element, in uint32; see `diffcore.noise.bits`."""
    sizes = _philox.sizes(shape, region)
    if 0 in sizes:
        return jnp.zeros(sizes, dtype=jnp.uint32)
    words = jnp.asarray(words, dtype=jnp.uint32)
    found: jax.Array = _bits(words, _word(draw), _starts(shape, region), sizes, stream)
    return found


def normal(
    words: Array,
    draw: Any,
    shape: tuple[int, ...],
    *,
    dtype: Any,
    device: Any = None,
    stream: int = _streams.SAMPLER,
    region: Region | None = None,
) -> jax.Array:
    """Return standard normals (B, ...); see `diffcore.noise.normal`."""
    dtype, sizes = jnp.dtype(dtype), _philox.sizes(shape, region)
    _philox.check_dtype(dtype)
    if 0 in sizes:
        return jnp.zeros(sizes, dtype=dtype)
    words = jnp.asarray(words, dtype=jnp.uint32)
    found: jax.Array = _normal(words, _word(draw), _starts(shape, region), sizes, dtype, stream)
    return found


@partial(jax.jit, static_argnums=(3, 4))
def _bits(
    words: jax.Array, draw: jax.Array, starts: jax.Array | None, sizes: tuple[int, ...], stream: int
) -> jax.Array:
    return _made(words, draw, starts, sizes, stream, jnp.dtype(jnp.uint32), _philox.both)


@partial(jax.jit, static_argnums=(3, 4, 5))
def _normal(
    words: jax.Array, draw: jax.Array, starts: jax.Array | None, sizes: tuple[int, ...], dtype: Any, stream: int
) -> jax.Array:
    wide = jnp.float32 if is_half(dtype) else dtype
    finish = partial(_philox.pair, jnp, dtype=wide, small=jnp.int32)
    return _made(words, draw, starts, sizes, stream, wide, finish).astype(dtype)
