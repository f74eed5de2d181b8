r"""The network in JAX: `numpy_unet` as a `flax.nnx` module, with gradients, compiled, and in bfloat16 where asked.

A convolution is XLA's own on (B * T, H, W, C) and the canonical (height, width, in, out), so no array is laid out anew.
Every layer computes in the dtype of what comes in: parameters keep theirs and are cast where they are used; norms, softmax
and the embedding compute in that of the parameters. A call is one compiled function, traced once per shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from diffcore._array import to_host
from diffcore.schedules import Schedule
from diffcore.unet3d import _inputs, structure
from diffcore.unet3d.config import UNet3DConfig, groups

MOST_ROWS = 65_535
"""Of a batched matrix product on CUDA: the batch is an axis of the grid."""


class UNet3D(nnx.Module):
    """The space-time U-Net as an `nnx.Module`; the paths of its state are the canonical names.

    Args:
        config: what the network is.
        weights: canonical name -> array, in the canonical layouts (`structure.arrays`).
        dtype: of the parameters; "float64" inside `jax.enable_x64(True)` alone.
        device: where the parameters live, a JAX device or sharding, or a platform such as "cpu".
        checkpointing: recompute each block in the backward pass instead of keeping its activations.
        compute_dtype: of convolutions, linear maps and attention, such as "bfloat16"; None takes `dtype`.

    Raises:
        ValueError: "float64" where JAX is not in 64 bits.
    """

    def __init__(
        self,
        config: UNet3DConfig,
        weights: Mapping[str, Any],
        *,
        dtype: Any = "float32",
        device: Any = None,
        checkpointing: bool = False,
        compute_dtype: Any = None,
    ) -> None:
        self.config = config
        self.checkpointing = checkpointing
        self.dtype, self.compute_dtype = jnp.dtype(dtype), jnp.dtype(compute_dtype or dtype)
        if self.dtype != jax.dtypes.canonicalize_dtype(self.dtype):
            raise ValueError(
                f"unet3d: `dtype` is {self.dtype.name!r}, but JAX computes in 32 bits here; build and call the model inside "
                f"`with jax.enable_x64(True):`"
            )
        device = jax.devices(device)[0] if isinstance(device, str) else device
        take: Take = lambda name: nnx.Param(jax.device_put(np.array(weights[name], self.dtype), device))  # noqa: E731
        for layer in range(config.mlp_layers):
            _place(self, f"embed.{layer}", Linear(take, f"embed.{layer}"))
        if config.condition != "none":
            self.condition = _CONDITIONS[config.condition](config, take)
        self.input = Conv(take, "input")
        for row in structure.rows(config):
            _place(self, row.name, Block(config, row, take) if row.kind == "block" else Conv(take, row.name))
        self.output = Output(take, "output")

    @property
    def prediction(self) -> str:
        """What the network predicts, for `diffcore.sample`."""
        return self.config.prediction

    @property
    def schedule(self) -> Schedule | None:
        """What it was trained on, or None: a plan of another scaling is refused."""
        return self.config.schedule

    @property
    def scaling(self) -> str | None:
        """The scaling of that schedule."""
        return None if self.config.schedule is None else self.config.schedule.scaling

    def null(self, cond: Any) -> Any:
        """Return the condition that says nothing, in the structure of `cond`, for guidance."""
        return _inputs.null(self.config, cond, jnp)

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return the weights by canonical name in the canonical layouts, on the host."""
        found = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(nnx.state(self))}
        return {name: to_host(found[name][...]) for name in structure.arrays(self.config)}

    def __call__(self, z: Any, log_snr: Any, cond: Any = None, images: int = 0, rngs: Any = None) -> jax.Array:
        """Return the prediction for z (B, T, H, W, C); see `unet3d.build` for the arguments.

        `rngs`, an `nnx.Rngs` or a key, turns dropout on.
        """
        sizes = _inputs.check(self.config, z, log_snr, cond, images, jax.Array, np.ndarray)
        key = rngs.dropout() if isinstance(rngs, nnx.Rngs) else rngs
        return _forward(self, jnp.asarray(z), log_snr, cond, key if self.config.dropout else None, sizes=sizes)

    def embedding(self, log_snr: jax.Array, cond: Any) -> jax.Array:
        """Return what log-SNR and condition are turned into, (..., embedding), the leading axes those of both."""
        limit = structure.LOG_SNR_LIMIT
        angles = jnp.clip(log_snr, -limit, limit)[..., None] * jnp.asarray(structure.FREQUENCIES, log_snr.dtype)
        e = self.part("embed.0")(jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1))
        if self.config.condition != "none":
            c = self.condition(cond)
            e, c = _lead(e, c), _lead(c, e)
            e = e + c
        for layer in range(1, self.config.mlp_layers):
            e = self.part(f"embed.{layer}")(jax.nn.silu(e))
        return e

    def part(self, name: str) -> Any:
        """Return the module of a dotted name."""
        return reduce(getattr, name.split("."), self)


@partial(jax.jit, static_argnames="sizes")
def _forward(model: UNet3D, z: Any, log_snr: Any, cond: Any, key: Any, *, sizes: _inputs.Sizes) -> jax.Array:
    e = _per_frame(model.embedding(jnp.asarray(log_snr, model.dtype), cond), sizes)
    e = jax.nn.silu(e).astype(model.compute_dtype)
    h = model.input(z.astype(model.compute_dtype).reshape(-1, *z.shape[2:]))
    skips = [h]
    for number, row in enumerate(structure.rows(model.config)):
        part = model.part(row.name)
        if row.pops:
            h = jnp.concatenate([h, skips.pop()], axis=-1)
        if row.kind == "block":
            run = lambda part, *given: part(*given, sizes)  # noqa: E731
            run = nnx.remat(run) if model.checkpointing else run
            h = run(part, h, e, None if key is None else jax.random.fold_in(key, number))
        elif row.kind == "down":
            h = part(h, stride=2)
        else:
            h = part(resize(h, skips[-1].shape[1:3]))
        if row.pushes:
            skips.append(h)
    return model.output(h).reshape(z.shape).astype(z.dtype)


def _place(root: nnx.Module, name: str, part: nnx.Module) -> None:
    """Set a module under a dotted name, so that the paths of the state are the canonical names."""
    *path, last = name.split(".")
    for step in path:
        if not hasattr(root, step):
            setattr(root, step, nnx.Module())
        root = getattr(root, step)
    setattr(root, last, part)


Take = Callable[[str], nnx.Param[jax.Array]]
"""Canonical name -> parameter."""


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
        weight, layouts = self.weight[...].astype(h.dtype), ("NHWC", "HWIO", "NHWC")
        out = lax.conv_general_dilated(h, weight, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=layouts)
        return out + self.bias[...].astype(h.dtype)


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


class Block(nnx.Module):
    """A residual block, then attention over space and over time where the level has it."""

    def __init__(self, config: UNet3DConfig, row: structure.Row, take: Take) -> None:
        name = row.name
        self.norm1, self.conv1 = Norm(take, f"{name}.norm1"), Conv(take, f"{name}.conv1")
        self.embed = Linear(take, f"{name}.embed")
        self.norm2, self.conv2 = Norm(take, f"{name}.norm2"), Conv(take, f"{name}.conv2")
        self.skip = Linear(take, f"{name}.skip") if row.inputs != row.outputs else None
        self.dropout = config.dropout
        self.space = SpaceAttention(config, take, f"{name}.space") if row.attends else None
        self.time = TimeAttention(config, take, f"{name}.time") if row.attends else None

    def __call__(self, h: jax.Array, e: jax.Array, key: Any, sizes: _inputs.Sizes) -> jax.Array:
        inner = self.conv1(jax.nn.silu(self.norm1(h)))
        inner = inner + self.embed(e)[:, None, None, :]
        inner = self.conv2(drop(jax.nn.silu(self.norm2(inner)), self.dropout, key))
        h = inner + (h if self.skip is None else self.skip(h))
        if self.space is not None and self.time is not None:
            h = self.time(self.space(h), sizes)
        return h


class Output(Conv):
    """The norm and the convolution that end the network."""

    def __init__(self, take: Take, name: str) -> None:
        super().__init__(take, name)
        self.norm = Norm(take, f"{name}.norm")

    def __call__(self, h: jax.Array, stride: int = 1) -> jax.Array:
        return super().__call__(jax.nn.silu(self.norm(h)), stride)


class Attention(nnx.Module):
    """What both attentions share: the norm, the heads, and the way back."""

    def __init__(self, config: UNet3DConfig, take: Take, name: str) -> None:
        self.head_dim = config.head_dim
        self.norm = Norm(take, f"{name}.norm")
        self.qkv, self.out = Linear(take, f"{name}.qkv"), Linear(take, f"{name}.out")

    def heads(self, tokens: jax.Array) -> tuple[jax.Array, ...]:
        """Return queries, keys and values, (N, tokens, heads, d), of tokens (N, tokens, C)."""
        n, length, _ = tokens.shape
        parts = self.qkv(tokens).reshape(n, length, 3, -1, self.head_dim)
        return parts[:, :, 0], parts[:, :, 1], parts[:, :, 2]


class SpaceAttention(Attention):
    """Attention over the pixels of each frame."""

    def __call__(self, h: jax.Array) -> jax.Array:
        n, height, width, channels = h.shape
        q, k, v = self.heads(self.norm(h).reshape(n, height * width, channels))
        fused = attend if q.dtype == jnp.float64 else jax.nn.dot_product_attention  # whose softmax is float32 always
        mixed = lax.platform_dependent(q, k, v, cpu=attend, default=fused)  # on a CPU it takes twice as long
        return h + self.out(mixed.reshape(h.shape))


class TimeAttention(Attention):
    """Attention over the frames of each pixel, with relative positions; an independent image attends to itself."""

    def __init__(self, config: UNet3DConfig, take: Take, name: str) -> None:
        super().__init__(config, take, name)
        self.key_positions = take(f"{name}.key_positions")
        self.value_positions = take(f"{name}.value_positions")
        self.far = config.frames - 1

    def __call__(self, h: jax.Array, sizes: _inputs.Sizes) -> jax.Array:
        batch, frames, channels = sizes.batch, sizes.frames, h.shape[-1]
        tokens = self.norm(h).reshape(batch, frames, -1, channels).swapaxes(1, 2).reshape(-1, frames, channels)
        step = max(1, MOST_ROWS // (channels // self.head_dim))
        parts = [tokens[start : start + step] for start in range(0, len(tokens), step)] or [tokens]
        mixed = jnp.concatenate([self._mixed(part, frames - sizes.images) for part in parts])
        mixed = mixed.reshape(batch, -1, frames, channels).swapaxes(1, 2)
        return h + self.out(mixed.reshape(h.shape))

    def _mixed(self, tokens: jax.Array, video: int) -> jax.Array:
        q, k, v = self.heads(tokens)
        keys, values = self.key_positions[...], self.value_positions[...]
        alone = v[:, video:] + values[self.far].astype(v.dtype)
        q, k, v = q[:, :video], k[:, :video], v[:, :video]
        at = jnp.arange(video)
        at = jnp.clip(at[None, :] - at[:, None], -self.far, self.far) + self.far
        logits = jnp.einsum("nihd,njhd->nhij", q, k) + jnp.einsum("nihd,ijd->nhij", q, keys[at].astype(q.dtype))
        share = jax.nn.softmax(logits.astype(keys.dtype) * self.head_dim**-0.5, axis=-1).astype(v.dtype)
        mixed = jnp.einsum("nhij,njhd->nihd", share, v) + jnp.einsum(
            "nhij,ijd->nihd", share, values[at].astype(v.dtype)
        )
        return jnp.concatenate([mixed, alone], axis=1).reshape(tokens.shape)


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
    """Tokens pooled by attention with a learned query; a learned vector where no token counts."""

    def __init__(self, config: UNet3DConfig, take: Take) -> None:
        self.norm = LayerNorm(take, "condition.norm")
        self.keys, self.values = Linear(take, "condition.keys"), Linear(take, "condition.values")
        self.query, self.null = take("condition.query"), take("condition.null")

    def __call__(self, cond: Any) -> jax.Array:
        query, null = self.query[...], self.null[...]
        if cond is None:
            return null
        normed, mask = self.norm(jnp.asarray(cond[0], null.dtype)), jnp.asarray(cond[1], bool)
        logits = self.keys(normed) @ query / len(query) ** 0.5
        share = jax.nn.softmax(jnp.where(mask, logits, jnp.finfo(logits.dtype).min), axis=-1)
        pooled = jnp.einsum("...l,...ld->...d", share, self.values(normed))
        return jnp.where(mask.any(axis=-1)[..., None], pooled, null)


_CONDITIONS: dict[str, Any] = {"class": ClassCondition, "tokens": TokenCondition}


def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Return softmax(q k^T / sqrt(d)) v of arrays (N, tokens, heads, d); the softmax in float32 at least."""
    wide = jnp.promote_types(q.dtype, jnp.float32)
    logits = jnp.einsum("nihd,njhd->nhij", q * q.shape[-1] ** -0.5, k, preferred_element_type=wide)
    return jnp.einsum("njhd,nhij->nihd", v, jax.nn.softmax(logits, axis=-1).astype(v.dtype))


def resize(h: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """Return each pixel four times, cropped to a size."""
    n, height, width, channels = h.shape
    twice = jnp.broadcast_to(h[:, :, None, :, None], (n, height, 2, width, 2, channels))
    return twice.reshape(n, 2 * height, 2 * width, channels)[:, : size[0], : size[1]]


def drop(h: jax.Array, rate: float, key: Any) -> jax.Array:
    """Return h with a share of its entries zero and the others scaled up; h itself without a key."""
    return h if key is None else jnp.where(jax.random.bernoulli(key, 1.0 - rate, h.shape), h / (1.0 - rate), 0.0)


def _lead(part: jax.Array, other: jax.Array) -> jax.Array:
    return part[:, None] if part.ndim == 2 and other.ndim == 3 else part


def _per_frame(e: jax.Array, sizes: _inputs.Sizes) -> jax.Array:
    e = e.reshape(-1, 1, e.shape[-1]) if e.ndim < 3 else e
    return jnp.broadcast_to(e, (sizes.batch, sizes.frames, e.shape[-1])).reshape(-1, e.shape[-1])
