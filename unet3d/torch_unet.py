r"""The network in PyTorch: `numpy_unet` with gradients, on any device, compiled, and in bfloat16 under autocast.

Activations are (B * T, H, W, C) in memory all the way, which a convolution sees as channels_last. Norms, softmax and the
embedding stay in float32 under autocast. Where no kernel serves, temporal attention goes through matrix products over a folded
batch of B * H * W * heads rows, at most 65,535 at once, which is what a CUDA grid takes. A block reads the bias of its first
convolution itself, so that what shards or offloads parameters does so by blocks or larger parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from diffcore._array import to_host
from diffcore.unet3d import _inputs, structure, torch_time
from diffcore.unet3d.config import UNet3DConfig
from diffcore.unet3d.torch_dropout import Dropout
from diffcore.unet3d.torch_kernels import transformed
from diffcore.unet3d.torch_layers import CONDITIONS, Conv, Linear, Norm, Take

MOST_ROWS = 65_535
"""Of a batched matrix product on CUDA: the batch is an axis of the grid."""


class UNet3D(_inputs.Network, nn.Module):
    """The space-time U-Net as a `torch.nn.Module`; its state dict has the canonical names.

    Args:
        config: what the network is.
        weights: canonical name -> array, in the canonical layouts (`structure.arrays`).
        dtype, device: of the parameters.
        checkpointing: recompute each block in the backward pass instead of keeping its activations.
    """

    frequencies: torch.Tensor

    def __init__(
        self,
        config: UNet3DConfig,
        weights: Mapping[str, Any],
        *,
        dtype: torch.dtype = torch.float32,
        device: Any = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = checkpointing
        take: Take = lambda name: _parameter(name, np.asarray(weights[name]), dtype, device)  # noqa: E731
        self.embed = nn.ModuleList(Linear(take, f"embed.{layer}") for layer in range(config.mlp_layers))
        self.condition = CONDITIONS[config.condition](config, take)
        self.input = Conv(take, "input")
        self.rows = structure.rows(config)
        self.parts = [_KINDS[row.kind](config, row, take) for row in self.rows]
        for row, part in zip(self.rows, self.parts, strict=True):
            _place(self, row.name, part)
        self.output = Output(take, "output")
        frequencies = torch.tensor(structure.FREQUENCIES, dtype=torch.float64).to(device=device, dtype=dtype)
        self.register_buffer("frequencies", frequencies, persistent=False)

    @property
    def dropouts(self) -> list[Dropout]:
        """The dropout of each block, whose seeds may be set."""
        return [part.dropout for part in self.parts if isinstance(part, Block)]

    def null(self, cond: Any) -> Any:
        """Return the condition that says nothing, in the structure of `cond`, for guidance."""
        return _inputs.null(self.config, cond, torch)

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return the weights by canonical name in the canonical layouts, on the host; those in bfloat16 in float32."""
        return {name: to_host(canonical(name, value)) for name, value in self.state_dict().items()}

    def forward(
        self, z: torch.Tensor, log_snr: Any, cond: Any = None, images: int = 0, past: Any = None
    ) -> torch.Tensor:
        """Return the prediction for z (B, T, H, W, C); see `unet3d.build` for the arguments."""
        return self._run(z, log_snr, cond, images, past, None)

    def past(self, z: torch.Tensor, log_snr: Any, cond: Any = None, past: Any = None) -> structure.Past:
        """Return what a causal network keeps of the frames z (B, T, H, W, C), after those of `past`; see `unet3d.build`."""
        _inputs.check_past(self.config, past, *_inputs.check(self.config, z, log_snr, cond, 0, torch.Tensor).of_past)
        kept: list[structure.Pair] = []
        with torch.no_grad():
            self._run(z, log_snr, cond, 0, past, kept)
        return tuple(kept)

    def _run(self, z: torch.Tensor, log_snr: Any, cond: Any, images: int, past: Any, kept: Any) -> torch.Tensor:
        sizes = _inputs.check(self.config, z, log_snr, cond, images, torch.Tensor)
        if past is not None:
            _inputs.check_past(self.config, past, *sizes.of_past)
        pairs = iter(past or ())
        dtype = self.frequencies.dtype
        with torch.autocast(z.device.type, enabled=False):
            e = F.silu(_per_frame(self._embedding(torch.as_tensor(log_snr, device=z.device).to(dtype), cond), sizes))
        h = self.input(z.to(dtype).reshape(-1, *z.shape[2:]))
        skips = [h]
        for row, part in zip(self.rows, self.parts, strict=True):
            if row.pops:
                h = torch.cat([h, skips.pop()], dim=-1)
            if row.kind == "block":
                given = (h, e, sizes, next(pairs, None) if row.attends else None, kept)
                again = self.checkpointing and torch.is_grad_enabled()
                h = checkpoint(part, *given, use_reentrant=False) if again else part(*given)
            else:
                h = part(h, skips[-1].shape[1:3]) if row.kind == "up" else part(h)
            if row.pushes:
                skips.append(h)
        return self.output(h).reshape(z.shape).to(z.dtype)

    def _embedding(self, log_snr: torch.Tensor, cond: Any) -> torch.Tensor:
        limit = structure.LOG_SNR_LIMIT
        angles = log_snr.clamp(-limit, limit)[..., None] * self.frequencies
        e = self.embed[0](torch.cat([angles.sin(), angles.cos()], dim=-1))
        c = self.condition(cond)
        if c is not None:
            e, c = _lead(e, c), _lead(c, e)
            e = e + c
        for layer in self.embed[1:]:
            e = layer(F.silu(e))
        return e


def _place(root: nn.Module, name: str, part: nn.Module) -> None:
    """Register a module under a dotted name, so that the state dict has the canonical names."""
    *path, last = name.split(".")
    for step in path:
        if not hasattr(root, step):
            root.add_module(step, nn.Module())
        root = getattr(root, step)
    root.add_module(last, part)


def _parameter(name: str, array: np.ndarray[Any, Any], dtype: torch.dtype, device: Any) -> nn.Parameter:
    value = torch.from_numpy(np.array(array)).to(dtype=dtype)
    if array.ndim == 4:  # (height, width, in, out) to (out, in, height, width), channels last in memory
        value = value.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
    elif name.endswith("weight") and array.ndim == 2:  # (in, out) to (out, in)
        value = value.T.contiguous()
    return nn.Parameter(value.to(device))


def canonical(name: str, value: torch.Tensor) -> torch.Tensor:
    """Return a parameter in its canonical layout: (height, width, in, out) or (in, out)."""
    if value.ndim == 4:
        return value.detach().permute(2, 3, 1, 0).contiguous()
    return value.detach().T.contiguous() if name.endswith("weight") and value.ndim == 2 else value.detach()


class Block(nn.Module):
    """A residual block, then attention over space and over time where the level has it."""

    def __init__(self, config: UNet3DConfig, row: structure.Row, take: Take) -> None:
        super().__init__()
        name = row.name
        self.norm1, self.conv1 = Norm(take, f"{name}.norm1"), Conv(take, f"{name}.conv1")
        self.embed = Linear(take, f"{name}.embed")
        self.norm2, self.conv2 = Norm(take, f"{name}.norm2"), Conv(take, f"{name}.conv2")
        self.skip = Linear(take, f"{name}.skip") if row.inputs != row.outputs else nn.Identity()
        self.dropout = Dropout(config.dropout)
        self.space = SpaceAttention(config, take, f"{name}.space") if row.attends else None
        self.time = TimeAttention(config, take, f"{name}.time") if row.attends else None

    def forward(
        self, h: torch.Tensor, e: torch.Tensor, sizes: _inputs.Sizes, past: Any = None, kept: Any = None
    ) -> torch.Tensor:
        inner = self.conv1(self.norm1(h, silu=True), biased=False)
        shift = self.embed(e) + self.conv1.bias  # both are a number a frame and channel, which the norm adds on its way
        inner = self.conv2(self.dropout(self.norm2(inner, silu=True, shift=shift)))
        h = self.skip(h) + inner
        if self.space is not None and self.time is not None:
            h = self.time(self.space(h), sizes, past, kept)
        return h


class Down(Conv):
    """Half the height and width, rounded up."""

    def __init__(self, config: UNet3DConfig, row: structure.Row, take: Take) -> None:
        super().__init__(take, row.name, stride=2)


class Up(Conv):
    """Twice the height and width by repetition, cropped to the next skip, then a convolution."""

    def __init__(self, config: UNet3DConfig, row: structure.Row, take: Take) -> None:
        super().__init__(take, row.name)

    def forward(self, h: torch.Tensor, size: Any = None) -> torch.Tensor:
        n, height, width, channels = h.shape
        twice = h[:, :, None, :, None].expand(n, height, 2, width, 2, channels)
        twice = twice.reshape(n, 2 * height, 2 * width, channels)
        return super().forward(twice[:, : size[0], : size[1]])


class Output(Conv):
    """The norm and the convolution that end the network."""

    def __init__(self, take: Take, name: str) -> None:
        super().__init__(take, name)
        self.norm = Norm(take, f"{name}.norm")

    def forward(self, h: torch.Tensor, biased: bool = True) -> torch.Tensor:
        return super().forward(self.norm(h, silu=True), biased)


class Attention(nn.Module):
    """What both attentions share: the norm, the heads, and the way back."""

    def __init__(self, config: UNet3DConfig, take: Take, name: str) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.norm = Norm(take, f"{name}.norm")
        self.qkv, self.out = Linear(take, f"{name}.qkv"), Linear(take, f"{name}.out")

    def heads(self, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return queries, keys and values, (N, heads, tokens, d), of tokens (N, tokens, C)."""
        n, length, _ = tokens.shape
        return self.qkv(tokens).reshape(n, length, 3, -1, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)


class SpaceAttention(Attention):
    """Attention over the pixels of each frame."""

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        n, height, width, channels = h.shape
        q, k, v = self.heads(self.norm(h).reshape(n, height * width, channels))
        with _as_products(q) if transformed(q) else nullcontext():
            mixed = F.scaled_dot_product_attention(q, k, v)
        return h + self.out(mixed.transpose(1, 2).reshape(h.shape))


@contextmanager
def _as_products(q: torch.Tensor) -> Iterator[None]:
    """Let attention be matrix products and a softmax, which have the rules of every transform, in the dtype of q.

    Autocast would take the softmax to float32, and the transforms of torch then multiply two dtypes on the way back.
    """
    with sdpa_kernel(SDPBackend.MATH), torch.autocast(q.device.type, enabled=False):
        yield


class TimeAttention(Attention):
    """Attention over the frames of each pixel, with relative positions; an independent image attends to itself."""

    def __init__(self, config: UNet3DConfig, take: Take, name: str) -> None:
        super().__init__(config, take, name)
        self.key_positions = take(f"{name}.key_positions")
        self.value_positions = take(f"{name}.value_positions")
        self.far, self.causal = config.frames - 1, config.causal

    def forward(self, h: torch.Tensor, sizes: _inputs.Sizes, past: Any = None, kept: Any = None) -> torch.Tensor:
        batch, frames, channels = sizes.batch, sizes.frames, h.shape[-1]
        normed = self.norm(h)
        if past is None and kept is None and torch_time.serves(normed, self.key_positions, frames):
            qkv = self.qkv(normed).reshape(batch, frames, -1, 3, channels // self.head_dim, self.head_dim)
            video = frames - sizes.images
            mixed = torch_time.attend(qkv, self.key_positions, self.value_positions, video, self.causal)
            if mixed is not None:
                return h + self.out(mixed.reshape(h.shape))
        tokens = normed.reshape(batch, frames, -1, channels).transpose(1, 2).reshape(-1, frames, channels)
        step = max(1, MOST_ROWS // (channels // self.head_dim))
        if past is None and kept is None:
            parts = [self._mixed(part, sizes.images) for part in tokens.split(step)]
        else:
            olds = tokens.new_zeros(2, len(tokens), channels // self.head_dim, 0, self.head_dim)
            if past is not None:
                olds = torch.stack([_folded(part) for part in past]).to(tokens.dtype)
            own: list[torch.Tensor] = []
            pieces = zip(tokens.split(step), olds.split(step, dim=1), strict=True)
            parts = [self._mixed(part, sizes.images, old, own) for part, old in pieces]
            if kept is not None:
                kept.append(tuple(_unfolded(part, batch, self.far) for part in torch.cat(own, dim=1)))
        mixed = torch.cat(parts)
        mixed = mixed.reshape(batch, -1, frames, channels).transpose(1, 2)
        return h + self.out(mixed.reshape(h.shape))

    def _mixed(self, tokens: torch.Tensor, images: int, past: Any = None, kept: Any = None) -> torch.Tensor:
        q, k, v = self.heads(tokens)
        if past is not None:
            k, v = (torch.cat([old, new], dim=2) for old, new in zip(past, (k, v), strict=True))
            kept.append(torch.stack([k, v])[..., : k.shape[2] - images, :])
        mixed = torch_time.plain(q, k, v, self.key_positions, self.value_positions, images, self.causal)
        return mixed.transpose(1, 2).reshape(tokens.shape)


def _folded(part: torch.Tensor) -> torch.Tensor:
    """Return keys or values that are kept, (B, P, pixels, heads, d), as (B * pixels, heads, P, d)."""
    return part.permute(0, 2, 3, 1, 4).flatten(0, 1)


def _unfolded(part: torch.Tensor, batch: int, most: int) -> torch.Tensor:
    """Return the last keys or values, of (B * pixels, heads, P, d), as they are kept."""
    return part[:, :, max(0, part.shape[2] - most) :].unflatten(0, (batch, -1)).permute(0, 3, 1, 2, 4).contiguous()


_KINDS: dict[str, type[nn.Module]] = {"block": Block, "down": Down, "up": Up}


def _lead(part: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return part[:, None] if part.ndim == 2 and other.ndim == 3 else part


def _per_frame(e: torch.Tensor, sizes: _inputs.Sizes) -> torch.Tensor:
    e = e.reshape(-1, 1, e.shape[-1]) if e.ndim < 3 else e
    return e.expand(sizes.batch, sizes.frames, e.shape[-1]).reshape(-1, e.shape[-1])
