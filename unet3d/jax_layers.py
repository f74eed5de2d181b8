"""The layers of the network in JAX that see one frame or token at a time, and the conditions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from diffcore.backends import cpu_threads
from diffcore.unet3d import structure
from diffcore.unet3d.config import UNet3DConfig, groups
from diffcore.unet3d.jax_conv import conv, enlarged

Take = Callable[[str], nnx.Param[jax.Array]]
"""Canonical name -> parameter."""


LEAST = 256
"""Tokens of a frame from which on a CPU takes less time for so many queries after another."""


class Affine(nnx.Module):
    """A weight and a bias."""

    def __init__(self, take: Take, name: str) -> None:
        self.weight, self.bias = take(f"{name}.weight"), take(f"{name}.bias")


class Linear(Affine):
    """h W + b over the last axis."""

    def __call__(self, h: jax.Array) -> jax.Array:
        return h @ self.weight[...].astype(h.dtype) + self.bias[...].astype(h.dtype)


class Conv(Affine):
    """A 3x3 convolution of each frame."""

    def __call__(self, h: jax.Array, stride: int = 1) -> jax.Array:
        return conv(h, self.weight[...].astype(h.dtype), stride) + self.bias[...].astype(h.dtype)

    def enlarged(self, h: jax.Array, size: tuple[int, ...]) -> jax.Array:
        """Return the convolution of each frame after each of its pixels was made four, cropped to a size."""
        return enlarged(h, self.weight[...], size) + self.bias[...].astype(h.dtype)


class Norm(Affine):
    """The group norm of each frame, in the dtype of the parameters."""

    def __call__(self, h: jax.Array) -> jax.Array:
        wide, weight = h.astype(self.weight.dtype), self.weight[...]
        centred = wide - self._mean(wide)
        normed = centred * (lax.rsqrt(self._mean(centred**2) + structure.EPSILON) * weight) + self.bias[...]
        return normed.astype(h.dtype)

    def _mean(self, h: jax.Array) -> jax.Array:
        """Return the mean of each group for each of its channels: over pixels first, which XLA does three times as fast."""
        size = h.shape[-1] // groups(h.shape[-1])
        means = h.mean(axis=(1, 2)).reshape(len(h), -1, size).mean(axis=-1)
        return jnp.repeat(means, size, axis=-1)[:, None, None, :]


def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Return softmax(q k^T / sqrt(d)) v of arrays (N, tokens, heads, d); the softmax in float32 at least.

    As many heads at once as there are cores, and at most 256 queries of each where equal parts can be made, whose logits stay in
    the cache and are computed anew in the backward pass. Keys and values are laid out as (d, tokens), since XLA computes their
    gradients more than twice as fast as (d, queries) times (queries, tokens).
    """
    wide, (n, tokens, heads, d) = jnp.promote_types(q.dtype, jnp.float32), q.shape
    if tokens < LEAST or jax.device_count() > 1:  # several devices would gather the frames
        logits = jnp.einsum("nihd,njhd->nhij", q * d**-0.5, k, preferred_element_type=wide)
        return jnp.einsum("njhd,nhij->nihd", v, jax.nn.softmax(logits, axis=-1).astype(v.dtype))

    @jax.checkpoint
    def one(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        logits = jnp.matmul(q * d**-0.5, k, preferred_element_type=wide)
        share = jnp.exp(logits - lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
        mixed = jnp.matmul(share.astype(v.dtype), v.T, preferred_element_type=wide)
        return (mixed / share.sum(axis=-1, keepdims=True)).astype(v.dtype)

    def head(given: tuple[jax.Array, ...]) -> jax.Array:
        q, k, v = given
        found: jax.Array = lax.map(lambda q: one(q, k, v), q.reshape(parts, -1, d))
        return found.reshape(tokens, d)

    parts, cores = -(-tokens // LEAST), cpu_threads.count()
    parts = parts if tokens % parts == 0 else 1
    turned = tuple(part.transpose(0, 2, 3, 1).reshape(-1, d, tokens) for part in (k, v))
    apart = q.swapaxes(1, 2).reshape(-1, tokens, d), *turned
    together = cores if cores > 1 else None  # a batch of one would take half as long again
    found = lax.map(head, apart, batch_size=together)
    return found.reshape(n, heads, tokens, d).swapaxes(1, 2)


class ClassCondition(nnx.Module):
    """A vector per class; the last one is that of the null condition."""

    def __init__(self, config: UNet3DConfig, take: Take) -> None:
        self.classes = take("condition.classes")

    def __call__(self, cond: Any) -> jax.Array:
        classes = self.classes[...]
        if cond is None:
            return classes[-1]
        inside = jnp.where(cond < 0, len(classes), cond)  # a negative label would count from the end
        return jnp.take(classes, inside, axis=0, mode="fill")  # NaN where out of range


class LayerNorm(Affine):
    """The norm of each token."""

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return jax.nn.standardize(tokens, epsilon=structure.EPSILON) * self.weight[...] + self.bias[...]


class TokenCondition(nnx.Module):
    """Tokens pooled by attention, a learned query to each head; a learned vector where no token counts."""

    def __init__(self, config: UNet3DConfig, take: Take) -> None:
        self.heads = config.token_heads, config.embedding // config.token_heads
        self.norm = LayerNorm(take, "condition.norm")
        self.keys, self.values = Linear(take, "condition.keys"), Linear(take, "condition.values")
        self.query, self.null = take("condition.query"), take("condition.null")

    def __call__(self, cond: Any) -> jax.Array:
        query, null = self.query[...], self.null[...]
        if cond is None:
            return null
        normed, mask = self.norm(jnp.asarray(cond[0], null.dtype)), jnp.asarray(cond[1], bool)
        keys, values = (part(normed).reshape(*mask.shape, *self.heads) for part in (self.keys, self.values))
        logits = jnp.sum(keys * query.reshape(self.heads), axis=-1) / self.heads[1] ** 0.5  # (..., L, heads)
        share = jax.nn.softmax(jnp.where(mask[..., None], logits, jnp.finfo(logits.dtype).min), axis=-2)
        pooled = jnp.einsum("...lh,...lhd->...hd", share, values).reshape(*mask.shape[:-1], -1)
        return jnp.where(mask.any(axis=-1)[..., None], pooled, null)


CONDITIONS: dict[str, Any] = {"class": ClassCondition, "tokens": TokenCondition}
