"""Noise on JAX arrays: uint32 arithmetic only, so that it is the same with and without 64-bit integers."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffcore import _philox, _streams
from diffcore._array import Array, is_half
from diffcore._philox import Finish, Region
from diffcore.backends import jax_kernel, jax_shards
from diffcore.backends.jax_shards import Part


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


Words = tuple[jax.Array, ...]


def rounds(
    count: int,
    state: tuple[Words, Words],
    multiply: Callable[[int, jax.Array], tuple[jax.Array, jax.Array]] = _multiply,
) -> tuple[Words, Words]:
    """Return the counter and the key after some rounds."""
    (c0, c1, c2, c3), (k0, k1) = state
    for _ in range(count):
        high0, low0 = multiply(_philox.MULTIPLIERS[0], c0)
        high1, low1 = multiply(_philox.MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + jnp.uint32(_philox.WEYL[0]), k1 + jnp.uint32(_philox.WEYL[1])
    return (c0, c1, c2, c3), (k0, k1)


def _blocks(words: jax.Array, draw: jax.Array, stream: int, rolled: bool, block: jax.Array) -> list[jax.Array]:
    """Return the four words of each block (1, n) of each sample.

    On a CPU, XLA writes one array a loop, and computes what leads to it anew for each: ten rounds for every word. What a loop
    over the rounds carries is there, so with `rolled` each round is computed once.
    """
    key = (words[:, 0:1], words[:, 1:2])
    like = (key[0] & 0) | (draw & 0) | (block & 0)  # of the shape, and in a shard_map the type, of what the rounds make
    counter: Words = (like | block, like, like | draw, like | jnp.uint32(stream))
    state: tuple[Words, Words] = (counter, key)
    if rolled:
        state = jax.lax.fori_loop(0, _philox.ROUNDS // 2, lambda _, state: rounds(2, state), state)
    else:
        state = rounds(_philox.ROUNDS, state)
    return list(state[0])


def _normals(dtype: Any, rolled: bool, words: list[jax.Array]) -> list[jax.Array]:
    """Return the normals of words in pairs; with `rolled` in a loop over the pairs, which keeps them apart from what they are
    used for: in one loop with it XLA would neither compute a pair once nor in vectors."""
    if not rolled:
        return _philox.normals(jnp, words, dtype, jnp.int32)
    pairs = jnp.reshape(jnp.stack(words), (-1, 2, *words[0].shape))
    made = jax.lax.map(lambda pair: jnp.stack(_philox.normals(jnp, list(pair), dtype, jnp.int32)), pairs)
    return list(jnp.reshape(made, (-1, *words[0].shape)))


def _made(
    words: jax.Array,
    draw: jax.Array,
    starts: jax.Array | None,
    sizes: tuple[int, ...],
    stream: int,
    dtype: Any,
    beside: jax.Array | None = None,
) -> jax.Array:
    """Return the elements of samples, or of the runs of each that begin at `starts`, in `dtype`; on a CPU the kernel makes
    them where it works. Each device makes its part of what it has part of; on a mesh with explicit axes that is what it has of
    `beside`, of this shape, or of the words."""
    divides = jax_shards.divides(words, draw, starts, beside)
    like = words if beside is None or starts is not None else beside

    def by_kernel(words: jax.Array, draw: jax.Array, starts: jax.Array | None) -> jax.Array:
        return jax_kernel.noise(words, draw, starts, stream, sizes, dtype, like)

    def by_operations(rolled: bool, words: jax.Array, draw: jax.Array, starts: jax.Array | None) -> jax.Array:
        finish: Finish = list if dtype == jnp.uint32 else partial(_normals, dtype, rolled)

        def runs(words: jax.Array, draw: jax.Array, starts: jax.Array, sizes: tuple[int, ...]) -> jax.Array:
            element = _philox.elements(jnp, starts, math.prod(sizes[1:]) // starts.shape[0])
            some = _philox.draw_some(jnp, partial(_blocks, words, draw, stream, rolled), finish, element)
            return jnp.reshape(some, sizes)

        def part_of(part: Part | None, _: Any, given: tuple[jax.Array, jax.Array]) -> jax.Array:
            words, draw = given
            here = sizes if part is None else part.shape
            if part is not None:
                words = part.of(words, 1)
                if any(part.divided[1:]):
                    return runs(words, draw, _philox.runs(jnp, part.whole, part.region(), np.uint32)[0], here)
            blocks = partial(_blocks, words, draw, stream, rolled)
            found: jax.Array = _philox.draw_all(jnp, blocks, finish, here, jnp.uint32, None)
            return found

        if starts is not None:
            return runs(words, draw, starts, sizes)
        if not divides:
            return part_of(None, (), (words, draw))
        axes = jax_shards.most(sizes)
        return jax_shards.everywhere(part_of, sizes, (), (words, draw), axes, like)  # type: ignore[no-any-return]

    kernel = divides and jax_kernel.works()
    on_cpu = by_kernel if kernel else partial(by_operations, True)
    found: jax.Array = jax.lax.platform_dependent(
        words, draw, starts, cpu=on_cpu, default=partial(by_operations, False)
    )
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
    beside: jax.Array | None = None,
) -> jax.Array:
    """Return standard normals (B, ...); see `diffcore.noise.normal`. They lie on devices as `beside` does, of this shape."""
    dtype, sizes = jnp.dtype(dtype), _philox.sizes(shape, region)
    _philox.check_dtype(dtype)
    if 0 in sizes:
        return jnp.zeros(sizes, dtype=dtype)
    words = jnp.asarray(words, dtype=jnp.uint32)
    if hasattr(device, "device_set"):  # how the result is divided among devices
        beside = jnp.zeros(sizes, dtype, device=device)
        placed: jax.Array = _placed(device)(words, _word(draw), _starts(shape, region), sizes, dtype, stream, beside)
        return placed
    found: jax.Array = _normal(words, _word(draw), _starts(shape, region), sizes, dtype, stream, beside)
    return found


@partial(jax.jit, static_argnums=(3, 4))
def _bits(
    words: jax.Array, draw: jax.Array, starts: jax.Array | None, sizes: tuple[int, ...], stream: int
) -> jax.Array:
    return _made(words, draw, starts, sizes, stream, jnp.dtype(jnp.uint32))


def _all(
    words: jax.Array,
    draw: jax.Array,
    starts: jax.Array | None,
    sizes: tuple[int, ...],
    dtype: Any,
    stream: int,
    beside: jax.Array | None,
) -> jax.Array:
    wide = jnp.float32 if is_half(dtype) else dtype
    return _made(words, draw, starts, sizes, stream, jnp.dtype(wide), beside).astype(dtype)


_normal = jax.jit(_all, static_argnums=(3, 4, 5))


@lru_cache(maxsize=16)
def _placed(sharding: Any) -> Any:
    return jax.jit(_all, static_argnums=(3, 4, 5), out_shardings=sharding)
