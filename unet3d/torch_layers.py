"""The layers of the network in PyTorch that see one frame or token at a time, and the conditions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from diffcore.unet3d import _inputs, structure
from diffcore.unet3d.config import UNet3DConfig
from diffcore.unet3d.torch_norm import norm

Take = Callable[[str], nn.Parameter]
"""Canonical name -> parameter."""


class Affine(nn.Module):
    """A weight and a bias."""

    def __init__(self, take: Take, name: str) -> None:
        super().__init__()
        self.weight, self.bias = take(f"{name}.weight"), take(f"{name}.bias")


class Linear(Affine):
    """h W + b over the last axis."""

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return F.linear(h, self.weight, self.bias)


class Conv(Affine):
    """A 3x3 convolution of each frame."""

    def __init__(self, take: Take, name: str, stride: int = 1) -> None:
        super().__init__(take, name)
        self.stride = stride

    def forward(self, h: torch.Tensor, biased: bool = True) -> torch.Tensor:
        bias = self.bias if biased else None
        return F.conv2d(h.permute(0, 3, 1, 2), self.weight, bias, self.stride, padding=1).permute(0, 2, 3, 1)


class Norm(Affine):
    """The group norm of each frame, in float32 at least; see `torch_norm.norm`."""

    def forward(self, h: torch.Tensor, silu: bool = False, shift: torch.Tensor | None = None) -> torch.Tensor:
        return norm(h, self.weight, self.bias, silu, shift)


class LayerNorm(Affine):
    """The norm of each token."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(tokens, tokens.shape[-1:], self.weight, self.bias, structure.EPSILON)


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
    """Tokens pooled by attention, a learned query to each head; a learned vector where no token counts."""

    def __init__(self, config: UNet3DConfig, take: Take) -> None:
        super().__init__()
        self.heads = config.token_heads, config.embedding // config.token_heads
        self.norm = LayerNorm(take, "condition.norm")
        self.keys, self.values = Linear(take, "condition.keys"), Linear(take, "condition.values")
        self.query, self.null = take("condition.query"), take("condition.null")

    def forward(self, cond: Any) -> torch.Tensor:
        if cond is None:
            return self.null
        tokens, mask = cond[0].to(self.null.dtype), cond[1].bool()
        normed = self.norm(tokens)
        keys, values = (part(normed).unflatten(-1, self.heads) for part in (self.keys, self.values))
        logits = (keys * self.query.unflatten(0, self.heads)).sum(dim=-1) / self.heads[1] ** 0.5  # (..., L, heads)
        share = logits.masked_fill(~mask[..., None], torch.finfo(logits.dtype).min).softmax(dim=-2)
        pooled = (share[..., None] * values).sum(dim=-3).flatten(-2)
        return torch.where(mask.any(dim=-1)[..., None], pooled, self.null)


CONDITIONS: dict[str, type[nn.Module]] = {"none": NoCondition, "class": ClassCondition, "tokens": TokenCondition}
