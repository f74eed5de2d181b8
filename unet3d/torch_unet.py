r"""The network in PyTorch: `numpy_unet` with gradients, on any device, compiled, and in bfloat16 under autocast.

Activations are (B * T, H, W, C) in memory all the way, which a convolution sees as channels_last. Norms, softmax and the
embedding stay in float32 under autocast. Temporal attention goes through matrix products over a folded batch of
B * H * W * heads rows, at most 65,535 at once, which is what a CUDA grid takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from diffcore._array import to_host
from diffcore.schedules import Schedule
from diffcore.unet3d import _inputs, structure
from diffcore.unet3d.config import UNet3DConfig, groups

MOST_ROWS = 65_535
"""Of a batched matrix product on CUDA: the batch is an axis of the grid."""


class UNet3D(nn.Module):
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
        self.condition = _CONDITIONS[config.condition](config, take)
        self.input = Conv(take, "input")
        self.rows = structure.rows(config)
        self.parts = [_KINDS[row.kind](config, row, take) for row in self.rows]
        for row, part in zip(self.rows, self.parts, strict=True):
            _place(self, row.name, part)
        self.output = Output(take, "output")
        frequencies = torch.tensor(structure.FREQUENCIES, dtype=torch.float64).to(device=device, dtype=dtype)
        self.register_buffer("frequencies", frequencies, persistent=False)

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
        return _inputs.null(self.config, cond, torch)

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return the weights by canonical name in the canonical layouts, on the host; those in bfloat16 in float32."""
        return {name: to_host(canonical(name, value)) for name, value in self.state_dict().items()}

    def forward(self, z: torch.Tensor, log_snr: Any, cond: Any = None, images: int = 0) -> torch.Tensor:
        """Return the prediction for z (B, T, H, W, C); see `unet3d.build` for the arguments."""
        sizes = _inputs.check(self.config, z, log_snr, cond, images, torch.Tensor)
        dtype = self.frequencies.dtype
        with torch.autocast(z.device.type, enabled=False):
            e = F.silu(_per_frame(self._embedding(torch.as_tensor(log_snr, device=z.device).to(dtype), cond), sizes))
        h = self.input(z.to(dtype).reshape(-1, *z.shape[2:]))
        skips = [h]
        for row, part in zip(self.rows, self.parts, strict=True):
            if row.pops:
                h = torch.cat([h, skips.pop()], dim=-1)
            if row.kind == "block":
                kept = self.checkpointing and torch.is_grad_enabled()
                h = checkpoint(part, h, e, sizes, use_reentrant=False) if kept else part(h, e, sizes)
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


Take = Callable[[str], nn.Parameter]
"""Canonical name -> parameter."""


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


class Linear(nn.Module):
    """h W + b over the last axis."""

    def __init__(self, take: Take, name: str) -> None:
        super().__init__()
        self.weight, self.bias = take(f"{name}.weight"), take(f"{name}.bias")

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return F.linear(h, self.weight, self.bias)


class Conv(nn.Module):
    """A 3x3 convolution of each frame."""

    def __init__(self, take: Take, name: str, stride: int = 1) -> None:
        super().__init__()
        self.weight, self.bias, self.stride = take(f"{name}.weight"), take(f"{name}.bias"), stride

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        out = F.conv2d(h.permute(0, 3, 1, 2), self.weight, self.bias, self.stride, padding=1)
        return out.permute(0, 2, 3, 1)


class Norm(nn.Module):
    """The group norm of each frame, in float32 at least."""

    def __init__(self, take: Take, name: str) -> None:
        super().__init__()
        self.weight, self.bias = take(f"{name}.weight"), take(f"{name}.bias")
        self.groups = groups(len(self.weight))

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        wide = h.to(self.weight.dtype).permute(0, 3, 1, 2)
        out = F.group_norm(wide, self.groups, self.weight, self.bias, structure.EPSILON)
        return out.permute(0, 2, 3, 1).to(h.dtype)


class LayerNorm(nn.Module):
    """The norm of each token."""

    def __init__(self, take: Take, name: str) -> None:
        super().__init__()
        self.weight, self.bias = take(f"{name}.weight"), take(f"{name}.bias")

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(tokens, tokens.shape[-1:], self.weight, self.bias, structure.EPSILON)


class Block(nn.Module):
    """A residual block, then attention over space and over time where the level has it."""

    def __init__(self, config: UNet3DConfig, row: structure.Row, take: Take) -> None:
        super().__init__()
        name = row.name
        self.norm1, self.conv1 = Norm(take, f"{name}.norm1"), Conv(take, f"{name}.conv1")
        self.embed = Linear(take, f"{name}.embed")
        self.norm2, self.conv2 = Norm(take, f"{name}.norm2"), Conv(take, f"{name}.conv2")
        self.skip = Linear(take, f"{name}.skip") if row.inputs != row.outputs else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.space = SpaceAttention(config, take, f"{name}.space") if row.attends else None
        self.time = TimeAttention(config, take, f"{name}.time") if row.attends else None

    def forward(self, h: torch.Tensor, e: torch.Tensor, sizes: _inputs.Sizes) -> torch.Tensor:
        inner = self.conv1(F.silu(self.norm1(h)))
        inner = inner + self.embed(e)[:, None, None, :]
        inner = self.conv2(self.dropout(F.silu(self.norm2(inner))))
        h = self.skip(h) + inner
        if self.space is not None and self.time is not None:
            h = self.time(self.space(h), sizes)
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

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return super().forward(F.silu(self.norm(h)))


class Attention(nn.Module):
    """What both attentions share: the norm, the heads, and the way back."""

    def __init__(self, config: UNet3DConfig, take: Take, name: str) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.norm, self.qkv, self.out = (
            Norm(take, f"{name}.norm"),
            Linear(take, f"{name}.qkv"),
            Linear(take, f"{name}.out"),
        )

    def heads(self, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return queries, keys and values, (N, heads, tokens, d), of tokens (N, tokens, C)."""
        n, length, _ = tokens.shape
        return self.qkv(tokens).reshape(n, length, 3, -1, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)


class SpaceAttention(Attention):
    """Attention over the pixels of each frame."""

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        n, height, width, channels = h.shape
        q, k, v = self.heads(self.norm(h).reshape(n, height * width, channels))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return h + self.out(mixed.transpose(1, 2).reshape(h.shape))


class TimeAttention(Attention):
    """Attention over the frames of each pixel, with relative positions; an independent image attends to itself."""

    def __init__(self, config: UNet3DConfig, take: Take, name: str) -> None:
        super().__init__(config, take, name)
        self.key_positions = take(f"{name}.key_positions")
        self.value_positions = take(f"{name}.value_positions")
        self.far = config.frames - 1

    def forward(self, h: torch.Tensor, sizes: _inputs.Sizes) -> torch.Tensor:
        batch, frames, channels = sizes.batch, sizes.frames, h.shape[-1]
        tokens = self.norm(h).reshape(batch, frames, -1, channels).transpose(1, 2).reshape(-1, frames, channels)
        step = max(1, MOST_ROWS // (channels // self.head_dim))
        mixed = torch.cat([self._mixed(part, frames - sizes.images) for part in tokens.split(step)])
        mixed = mixed.reshape(batch, -1, frames, channels).transpose(1, 2)
        return h + self.out(mixed.reshape(h.shape))

    def _mixed(self, tokens: torch.Tensor, video: int) -> torch.Tensor:
        q, k, v = self.heads(tokens)
        alone = v[:, :, video:] + self.value_positions[self.far].to(v.dtype)
        if video == 0:
            return alone.transpose(1, 2).reshape(tokens.shape)
        q, k, v = q[:, :, :video], k[:, :, :video], v[:, :, :video]
        at = torch.arange(video, device=q.device)
        at = (at[None, :] - at[:, None]).clamp(-self.far, self.far) + self.far
        keys, values = self.key_positions[at].to(q.dtype), self.value_positions[at].to(q.dtype)
        logits = q @ k.transpose(-1, -2) + torch.einsum("nhid,ijd->nhij", q, keys)
        share = (logits.to(self.key_positions.dtype) * self.head_dim**-0.5).softmax(dim=-1).to(v.dtype)
        mixed = share @ v + torch.einsum("nhij,ijd->nhid", share, values)
        return torch.cat([mixed, alone], dim=2).transpose(1, 2).reshape(tokens.shape)


class NoCondition(nn.Module):
    """No condition."""

    def __init__(self, config: UNet3DConfig, take: Take) -> None:
        super().__init__()

    def forward(self, cond: Any) -> torch.Tensor | None:
        return None


class ClassCondition(nn.Module):
    """A vector per class; the last one is that of the null condition."""

    def __init__(self, config: UNet3DConfig, take: Take) -> None:
        super().__init__()
        self.config = config
        self.classes = take("condition.classes")

    def forward(self, cond: Any) -> torch.Tensor:
        if cond is not None and cond.device.type == "cpu" and not torch.compiler.is_compiling():
            _inputs.check_labels(self.config, cond)
        return self.classes[-1] if cond is None else F.embedding(cond, self.classes)


class TokenCondition(nn.Module):
    """Tokens pooled by attention with a learned query; a learned vector where no token counts."""

    def __init__(self, config: UNet3DConfig, take: Take) -> None:
        super().__init__()
        self.norm = LayerNorm(take, "condition.norm")
        self.keys, self.values = Linear(take, "condition.keys"), Linear(take, "condition.values")
        self.query, self.null = take("condition.query"), take("condition.null")

    def forward(self, cond: Any) -> torch.Tensor:
        if cond is None:
            return self.null
        tokens, mask = cond[0].to(self.null.dtype), cond[1].bool()
        normed = self.norm(tokens)
        logits = self.keys(normed) @ self.query / len(self.query) ** 0.5
        share = logits.masked_fill(~mask, torch.finfo(logits.dtype).min).softmax(dim=-1)
        pooled = (share[..., None] * self.values(normed)).sum(dim=-2)
        return torch.where(mask.any(dim=-1)[..., None], pooled, self.null)


_CONDITIONS: dict[str, type[nn.Module]] = {"none": NoCondition, "class": ClassCondition, "tokens": TokenCondition}
_KINDS: dict[str, type[nn.Module]] = {"block": Block, "down": Down, "up": Up}


def _lead(part: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return part[:, None] if part.ndim == 2 and other.ndim == 3 else part


def _per_frame(e: torch.Tensor, sizes: _inputs.Sizes) -> torch.Tensor:
    e = e.reshape(-1, 1, e.shape[-1]) if e.ndim < 3 else e
    return e.expand(sizes.batch, sizes.frames, e.shape[-1]).reshape(-1, e.shape[-1])
