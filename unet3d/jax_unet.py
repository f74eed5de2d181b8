r"""The network in JAX: `numpy_unet` as a `flax.nnx` module, with gradients, compiled, and in bfloat16 where asked.

A convolution is XLA's own on (B * T, H, W, C) and the canonical (height, width, in, out), so no array is laid out anew.
Every layer computes in the dtype of what comes in: parameters keep theirs and are cast where they are used; norms, softmax
and the embedding compute in that of the parameters. A call is one compiled function, traced once per shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from diffcore._array import to_host
from diffcore.unet3d import _inputs, structure
from diffcore.unet3d.config import UNet3DConfig
from diffcore.unet3d.jax_layers import CONDITIONS, Conv, Linear, Norm, Take, attend

MOST_ROWS = 65_535
"""Of a batched matrix product on CUDA: the batch is an axis of the grid."""


class UNet3D(_inputs.Network, nnx.Module):
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
            self.condition = CONDITIONS[config.condition](config, take)
        self.input = Conv(take, "input")
        for row in structure.rows(config):
            _place(self, row.name, Block(config, row, take) if row.kind == "block" else Conv(take, row.name))
        self.output = Output(take, "output")

    def null(self, cond: Any) -> Any:
        """Return the condition that says nothing, in the structure of `cond`, for guidance."""
        return _inputs.null(self.config, cond, jnp)

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return the weights by canonical name in the canonical layouts, on the host."""
        found = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(nnx.state(self))}
        return {name: to_host(found[name][...]) for name in structure.arrays(self.config)}

    def __call__(
        self, z: Any, log_snr: Any, cond: Any = None, images: int = 0, past: Any = None, rngs: Any = None
    ) -> jax.Array:
        """Return the prediction for z (B, T, H, W, C); see `unet3d.build` for the arguments.

        `rngs`, an `nnx.Rngs`, a key, or a key for each sample, turns dropout on.
        """
        sizes = _inputs.check(self.config, z, log_snr, cond, images, jax.Array, np.ndarray)
        if past is not None:
            _inputs.check_past(self.config, past, *sizes.of_past)
        key = rngs.dropout() if isinstance(rngs, nnx.Rngs) else rngs
        key = key if self.config.dropout else None
        return _forward(self, jnp.asarray(z), log_snr, cond, key, past, sizes=sizes)[0]

    def past(self, z: Any, log_snr: Any, cond: Any = None, past: Any = None) -> structure.Past:
        """Return what a causal network keeps of the frames z (B, T, H, W, C), after those of `past`; see `unet3d.build`."""
        sizes = _inputs.check(self.config, z, log_snr, cond, 0, jax.Array, np.ndarray)
        _inputs.check_past(self.config, past, *sizes.of_past)
        return _forward(self, jnp.asarray(z), log_snr, cond, None, past, sizes=sizes, keeps=True)[1]

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


@partial(jax.jit, static_argnames=("sizes", "keeps"))
def _forward(
    model: UNet3D, z: Any, log_snr: Any, cond: Any, key: Any, past: Any, *, sizes: _inputs.Sizes, keeps: bool = False
) -> tuple[jax.Array | None, structure.Past]:
    e = _per_frame(model.embedding(jnp.asarray(log_snr, model.dtype), cond), sizes)
    e = jax.nn.silu(e).astype(model.compute_dtype)
    h = model.input(z.astype(model.compute_dtype).reshape(-1, *z.shape[2:]))
    skips, pairs, kept = [h], iter(past or ()), list[structure.Pair]()
    for number, row in enumerate(structure.rows(model.config)):
        part = model.part(row.name)
        if row.pops:
            h = jnp.concatenate([h, skips.pop()], axis=-1)
        if row.kind == "block":
            run = lambda part, *given: part(*given, sizes, kept if keeps else None)  # noqa: E731
            run = nnx.remat(run) if model.checkpointing and not keeps else run
            pair = next(pairs, None) if row.attends else None
            h = run(part, h, e, None if key is None else _key_of(key, number), pair)
        elif row.kind == "down":
            h = part(h, stride=2)
        else:
            h = part.enlarged(h, skips[-1].shape[1:3])
        if row.pushes:
            skips.append(h)
    return None if keeps else model.output(h).reshape(z.shape).astype(z.dtype), tuple(kept)


def _place(root: nnx.Module, name: str, part: nnx.Module) -> None:
    """Set a module under a dotted name, so that the paths of the state are the canonical names."""
    *path, last = name.split(".")
    for step in path:
        if not hasattr(root, step):
            setattr(root, step, nnx.Module())
        root = getattr(root, step)
    setattr(root, last, part)


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

    def __call__(
        self, h: jax.Array, e: jax.Array, key: Any, past: Any, sizes: _inputs.Sizes, kept: Any = None
    ) -> jax.Array:
        inner = self.conv1(jax.nn.silu(self.norm1(h)))
        inner = inner + self.embed(e)[:, None, None, :]
        inner = self.conv2(drop(jax.nn.silu(self.norm2(inner)), self.dropout, key))
        h = inner + (h if self.skip is None else self.skip(h))
        if self.space is not None and self.time is not None:
            h = self.time(self.space(h), sizes, past, kept)
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
        self.far, self.causal = config.frames - 1, config.causal

    def __call__(self, h: jax.Array, sizes: _inputs.Sizes, past: Any = None, kept: Any = None) -> jax.Array:
        batch, frames, channels = sizes.batch, sizes.frames, h.shape[-1]
        tokens = self.norm(h).reshape(batch, frames, -1, channels).swapaxes(1, 2).reshape(-1, frames, channels)
        step = max(1, MOST_ROWS // (channels // self.head_dim))
        starts = range(0, max(1, len(tokens)), step)
        old = None if past is None else [_folded(part).astype(tokens.dtype) for part in past]
        found = []
        for start in starts:
            some = slice(start, start + step)
            given = None if old is None else [part[some] for part in old]
            found.append(self._mixed(tokens[some], frames - sizes.images, given))
        mixed = jnp.concatenate([part for part, *_ in found])
        if kept is not None:
            pairs = (jnp.concatenate(parts) for parts in list(zip(*found, strict=True))[1:])
            kept.append(tuple(_unfolded(part, batch, self.far) for part in pairs))
        mixed = mixed.reshape(batch, -1, frames, channels).swapaxes(1, 2)
        return h + self.out(mixed.reshape(h.shape))

    def _mixed(self, tokens: jax.Array, video: int, past: Any = None) -> tuple[jax.Array, ...]:
        q, k, v = self.heads(tokens)
        keys, values = self.key_positions[...], self.value_positions[...]
        alone = v[:, video:] + values[self.far].astype(v.dtype)
        q, k, v = q[:, :video], k[:, :video], v[:, :video]
        if past is not None:
            k, v = (jnp.concatenate([old, new], axis=1) for old, new in zip(past, (k, v), strict=True))
        apart = structure.distances(video, k.shape[1] - video)
        at = np.clip(apart, -self.far, self.far) + self.far
        logits = jnp.einsum("nihd,njhd->nhij", q, k) + jnp.einsum("nihd,ijd->nhij", q, keys[at].astype(q.dtype))
        if self.causal:
            logits = jnp.where((apart > 0) | (apart < -self.far), -jnp.inf, logits)
        share = jax.nn.softmax(logits.astype(keys.dtype) * self.head_dim**-0.5, axis=-1).astype(v.dtype)
        mixed = jnp.einsum("nhij,njhd->nihd", share, v) + jnp.einsum(
            "nhij,ijd->nihd", share, values[at].astype(v.dtype)
        )
        return jnp.concatenate([mixed, alone], axis=1).reshape(tokens.shape), k, v


def drop(h: jax.Array, rate: float, key: Any) -> jax.Array:
    """Return h with a share of its entries zero and the others scaled up; h itself without a key.

    Of keys (B,), those of sample i, the i-th part of the first axis, are drawn from key i alone.
    """
    if key is None:
        return h
    if not _one_each(key):
        kept = jax.random.bernoulli(key, 1.0 - rate, h.shape)
    else:
        shape = (len(h) // len(key), *h.shape[1:])
        kept = jax.vmap(lambda one: jax.random.bernoulli(one, 1.0 - rate, shape))(key).reshape(h.shape)
    return jnp.where(kept, h / (1.0 - rate), 0.0)


def _key_of(key: Any, number: int) -> Any:
    """Return the keys of a block."""
    fold = jax.random.fold_in
    return jax.vmap(fold, (0, None))(key, number) if _one_each(key) else fold(key, number)


def _one_each(key: Any) -> bool:
    """Whether there is a key for each sample; an old key of JAX is an array of two words."""
    return key.ndim == 1 and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)


def _folded(part: jax.Array) -> jax.Array:
    """Return keys or values that are kept, (B, P, pixels, heads, d), as (B * pixels, P, heads, d)."""
    return part.swapaxes(1, 2).reshape(-1, part.shape[1], *part.shape[3:])


def _unfolded(part: jax.Array, batch: int, most: int) -> jax.Array:
    """Return the last keys or values, of (B * pixels, P, heads, d), as they are kept."""
    last = part[:, max(0, part.shape[1] - most) :]
    return last.reshape(batch, -1, *last.shape[1:]).swapaxes(1, 2)


def _lead(part: jax.Array, other: jax.Array) -> jax.Array:
    return part[:, None] if part.ndim == 2 and other.ndim == 3 else part


def _per_frame(e: jax.Array, sizes: _inputs.Sizes) -> jax.Array:
    e = e.reshape(-1, 1, e.shape[-1]) if e.ndim < 3 else e
    return jnp.broadcast_to(e, (sizes.batch, sizes.frames, e.shape[-1])).reshape(-1, e.shape[-1])
