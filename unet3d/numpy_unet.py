r"""The network in NumPy: the reference that the others are held to, forward only, and enough to sample a small model.

Every function is the formula. Arrays are (N, H, W, C), N = B * T frames, channels last; a weight is looked up by its
canonical name (`structure.arrays`).

    norm       (h - mean) / sqrt(variance + 1e-5) w + b             over pixels and channels of a group, in each frame
    block      h' = conv(silu(norm(h)));  h' = h' + W silu(e);  skip(h) + conv(silu(norm(h')))
    space      h + W_o softmax(q k^T / sqrt(d)) v                   over the pixels of a frame
    time       h + W_o sum_j a_ij (v_j + V_{j-i}),  a = softmax_j(q_i (k_j + K_{j-i}) / sqrt(d))    over the frames of a pixel

The last `images` frames of a clip are independent images: for them a is the identity matrix. In a causal network a_ij is 0
for j > i and for j <= i - `frames`; k_j and v_j of past frames, which depend on no later one, may then be given.

Source: Ho et al. 2022 (arXiv 2204.03458), sec. 3; Shaw et al. 2018 (arXiv 1803.02155), eq. 3-4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from diffcore.unet3d import _inputs, structure
from diffcore.unet3d.config import UNet3DConfig, groups

Floats = npt.NDArray[Any]


class UNet3D(_inputs.Network):
    """The space-time U-Net on NumPy arrays.

    Args:
        config: what the network is.
        weights: canonical name -> array, as `structure.arrays` lists them; `unet3d.build` and `unet3d.load` give them.

    A model is a denoiser: give it to `diffcore.sample` as it is.
    """

    def __init__(self, config: UNet3DConfig, weights: Mapping[str, Floats]) -> None:
        self.config = config
        self.weights = dict(weights)
        self.rows = structure.rows(config)

    def null(self, cond: Any) -> Any:
        """Return the condition that says nothing, in the structure of `cond`, for guidance."""
        return _inputs.null(self.config, cond, np)

    def arrays(self) -> dict[str, Floats]:
        """Return the weights by canonical name."""
        return dict(self.weights)

    def __call__(self, z: Floats, log_snr: Any, cond: Any = None, images: int = 0, past: Any = None) -> Floats:
        """Return the prediction for z (B, T, H, W, C); see `unet3d.build` for the arguments."""
        return self._run(z, log_snr, cond, images, past, None)

    def past(self, z: Floats, log_snr: Any, cond: Any = None, past: Any = None) -> structure.Past:
        """Return what a causal network keeps of the frames z (B, T, H, W, C), after those of `past`; see `unet3d.build`."""
        _inputs.check_past(self.config, past, *_inputs.check(self.config, z, log_snr, cond, 0, np.ndarray).of_past)
        kept: list[structure.Pair] = []
        self._run(z, log_snr, cond, 0, past, kept)
        return tuple(kept)

    def _run(self, z: Floats, log_snr: Any, cond: Any, images: int, past: Any, kept: Any) -> Floats:
        w = self.weights
        dtype = w["input.weight"].dtype
        sizes = _inputs.check(self.config, z, log_snr, cond, images, np.ndarray)
        if past is not None:
            _inputs.check_past(self.config, past, *sizes.of_past)
        pairs = iter(past or ())
        e = silu(_per_frame(self.embed(np.asarray(log_snr, dtype=dtype), cond), sizes))
        h = conv(z.astype(dtype, copy=False).reshape(-1, *z.shape[2:]), w["input.weight"], w["input.bias"])
        skips = [h]
        for row in self.rows:
            if row.pops:
                h = np.concatenate([h, skips.pop()], axis=-1)
            if row.kind == "block":
                h = self.block(row, h, e, sizes, next(pairs, None) if row.attends else None, kept)
            elif row.kind == "down":
                h = conv(h, w[f"{row.name}.weight"], w[f"{row.name}.bias"], stride=2)
            else:
                h = conv(resize(h, skips[-1].shape[1:3]), w[f"{row.name}.weight"], w[f"{row.name}.bias"])
            if row.pushes:
                skips.append(h)
        y = conv(silu(self.norm("output.norm", h)), w["output.weight"], w["output.bias"])
        return y.reshape(z.shape).astype(z.dtype, copy=False)

    def embed(self, log_snr: Floats, cond: Any) -> Floats:
        """Return what log-SNR and condition are turned into, (..., embedding), the leading axes those of both."""
        angles = np.clip(log_snr, -structure.LOG_SNR_LIMIT, structure.LOG_SNR_LIMIT)[..., None]
        angles = angles * np.asarray(structure.FREQUENCIES, dtype=log_snr.dtype)
        e = self.linear("embed.0", np.concatenate([np.sin(angles), np.cos(angles)], axis=-1))
        if self.config.condition != "none":
            c = self.condition(cond)
            e, c = _lead(e, c), _lead(c, e)
            e = e + c
        for layer in range(1, self.config.mlp_layers):
            e = self.linear(f"embed.{layer}", silu(e))
        return e

    def condition(self, cond: Any) -> Floats:
        """Return the vector of a condition, (..., embedding); of the null condition where there is none."""
        w = self.weights
        if self.config.condition == "class":
            return w["condition.classes"][self.config.classes if cond is None else cond]
        if cond is None:
            return w["condition.null"]
        tokens, mask = cond[0].astype(w["condition.null"].dtype, copy=False), np.asarray(cond[1], dtype=bool)
        centred = tokens - tokens.mean(axis=-1, keepdims=True)
        normed = centred / np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + structure.EPSILON)
        normed = normed * w["condition.norm.weight"] + w["condition.norm.bias"]
        heads = self.config.token_heads, self.config.embedding // self.config.token_heads
        keys, values = (
            self.linear(f"condition.{part}", normed).reshape(*mask.shape, *heads) for part in ("keys", "values")
        )
        logits = np.einsum("...lhd,hd->...hl", keys, w["condition.query"].reshape(heads)) / np.sqrt(heads[1])
        share = softmax(np.where(mask[..., None, :], logits, np.finfo(logits.dtype).min))
        pooled = np.einsum("...hl,...lhd->...hd", share, values).reshape(*mask.shape[:-1], -1)
        return np.where(np.any(mask, axis=-1, keepdims=True), pooled, w["condition.null"])

    def block(
        self, row: structure.Row, h: Floats, e: Floats, sizes: _inputs.Sizes, past: Any = None, kept: Any = None
    ) -> Floats:
        """Return a residual block, and the attention after it, of h (B * T, H, W, inputs); e is (B * T, embedding)."""
        w, name = self.weights, row.name
        inner = conv(silu(self.norm(f"{name}.norm1", h)), w[f"{name}.conv1.weight"], w[f"{name}.conv1.bias"])
        inner = inner + self.linear(f"{name}.embed", e)[:, None, None, :]
        inner = conv(silu(self.norm(f"{name}.norm2", inner)), w[f"{name}.conv2.weight"], w[f"{name}.conv2.bias"])
        h = inner + (self.linear(f"{name}.skip", h) if row.inputs != row.outputs else h)
        if row.attends:
            h = self.space(f"{name}.space", h)
            h = self.time(f"{name}.time", h, sizes, past, kept)
        return h

    def space(self, name: str, h: Floats) -> Floats:
        """Return attention over the pixels of each frame."""
        n, height, width, channels = h.shape
        q, k, v = self.heads(name, self.norm(f"{name}.norm", h).reshape(n, height * width, channels))
        share = softmax(q @ np.swapaxes(k, -1, -2) / np.sqrt(self.config.head_dim))
        return h + self.linear(f"{name}.out", np.swapaxes(share @ v, 1, 2).reshape(h.shape))

    def time(self, name: str, h: Floats, sizes: _inputs.Sizes, past: Any = None, kept: Any = None) -> Floats:
        """Return attention over the frames of each pixel; independent images attend to themselves alone.

        `past` are keys and values of frames before these; those of both together are appended to `kept`.
        """
        batch, frames, channels = sizes.batch, sizes.frames, h.shape[-1]
        video = frames - sizes.images
        tokens = self.norm(f"{name}.norm", h).reshape(batch, frames, -1, channels)
        q, k, v = self.heads(name, np.swapaxes(tokens, 1, 2).reshape(-1, frames, channels))
        alone = v[:, :, video:] + self.weights[f"{name}.value_positions"][self.config.frames - 1]
        q, k, v = q[:, :, :video], k[:, :, :video], v[:, :, :video]
        if past is not None:
            k, v = (np.concatenate([_folded(old), new], axis=2) for old, new in zip(past, (k, v), strict=True))
        if kept is not None:
            kept.append(tuple(_unfolded(part, batch, self.config.frames - 1) for part in (k, v)))
        before = k.shape[2] - video
        keys, values = (self.positions(f"{name}.{part}_positions", video, before) for part in ("key", "value"))
        logits = q @ np.swapaxes(k, -1, -2)
        logits = logits + np.einsum("nhid,ijd->nhij", q, keys)
        if self.config.causal:
            logits = np.where(structure.seen(self.config.frames, video, before), logits, -np.inf)
        share = softmax(logits / np.sqrt(self.config.head_dim))
        mixed = share @ v + np.einsum("nhij,ijd->nhid", share, values)
        mixed = np.swapaxes(np.concatenate([mixed, alone], axis=2), 1, 2)  # (B * pixels, frames, heads, d)
        mixed = np.swapaxes(mixed.reshape(batch, -1, frames, channels), 1, 2)
        return h + self.linear(f"{name}.out", mixed.reshape(h.shape))

    def positions(self, name: str, frames: int, before: int = 0) -> Floats:
        """Return the vector of each distance j - i, (frames, before + frames, d); beyond the longest known it stays the same."""
        far = self.config.frames - 1
        return self.weights[name][np.clip(structure.distances(frames, before), -far, far) + far]

    def heads(self, name: str, tokens: Floats) -> tuple[Floats, ...]:
        """Return queries, keys and values, (N, heads, tokens, d), of tokens (N, tokens, C)."""
        n, length, _ = tokens.shape
        parts = self.linear(f"{name}.qkv", tokens).reshape(n, length, 3, -1, self.config.head_dim)
        return tuple(np.swapaxes(parts[:, :, part], 1, 2) for part in range(3))

    def norm(self, name: str, h: Floats) -> Floats:
        """Return the group norm of each frame."""
        n, height, width, channels = h.shape
        count = groups(channels)
        grouped = h.reshape(n, height * width, count, channels // count)
        centred = grouped - grouped.mean(axis=(1, 3), keepdims=True)
        variance = np.mean(centred**2, axis=(1, 3), keepdims=True)
        normed = (centred / np.sqrt(variance + structure.EPSILON)).reshape(h.shape)
        return normed * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def linear(self, name: str, h: Floats) -> Floats:
        """Return h W + b over the last axis."""
        return h @ self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]


def conv(h: Floats, weight: Floats, bias: Floats, stride: int = 1) -> Floats:
    """Return the 3x3 convolution of each frame with a border of zeros: a matrix product with all its windows."""
    n, channels = h.shape[0], h.shape[-1]
    padded = np.pad(h, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))[:, ::stride, ::stride]
    kernel = weight.reshape(9 * channels, -1)
    out = np.empty((*windows.shape[:3], kernel.shape[1]), dtype=np.result_type(h, weight))
    for frame in range(n):  # one frame's windows at a time stay in the cache
        columns = windows[frame].transpose(0, 1, 3, 4, 2).reshape(-1, 9 * channels)
        out[frame] = (columns @ kernel + bias).reshape(out.shape[1:])
    return out


def resize(h: Floats, size: tuple[int, ...]) -> Floats:
    """Return each pixel four times, cropped to a size."""
    return np.repeat(np.repeat(h, 2, axis=1), 2, axis=2)[:, : size[0], : size[1]]


def silu(h: Floats) -> Floats:
    """Return h sigmoid(h), without overflow."""
    return h * (0.5 * (1.0 + np.tanh(0.5 * h)))


def softmax(logits: Floats) -> Floats:
    """Return the softmax over the last axis; of an empty axis, nothing."""
    if logits.shape[-1] == 0:
        return logits
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _folded(part: Floats) -> Floats:
    """Return keys or values that are kept, (B, P, pixels, heads, d), as (B * pixels, heads, P, d)."""
    return part.transpose(0, 2, 3, 1, 4).reshape(-1, part.shape[3], part.shape[1], part.shape[4])


def _unfolded(part: Floats, batch: int, most: int) -> Floats:
    """Return the last keys or values, of (B * pixels, heads, P, d), as they are kept."""
    n, heads, length, width = part.shape
    first = max(0, length - most)
    return part[:, :, first:].reshape(batch, n // batch, heads, length - first, width).transpose(0, 3, 1, 2, 4)


def _lead(part: Floats, other: Floats) -> Floats:
    """Return a vector per clip (B, E) as (B, 1, E) where the other has one per frame (B, T, E)."""
    return part[:, None] if part.ndim == 2 and other.ndim == 3 else part


def _per_frame(e: Floats, sizes: _inputs.Sizes) -> Floats:
    """Return a vector per frame, (B * T, E), of () or (B,) or (B, T) vectors."""
    e = e.reshape(-1, 1, e.shape[-1]) if e.ndim < 3 else e
    return np.broadcast_to(e, (sizes.batch, sizes.frames, e.shape[-1])).reshape(-1, e.shape[-1])
