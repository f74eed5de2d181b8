"""Dropout in PyTorch that is a function of seeds, one for each sample, whatever batch and process the sample is in."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Dropout(nn.Module):
    """Dropout of a batch of frames (B * T, ...): torch's own, or, once `seeds` is set, drawn from it alone.

    Fields:
        seeds: None, or (B,) int64 on the host.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.seeds: torch.Tensor | None = None

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """Return h with a share of its entries zero and the others scaled up."""
        if self.seeds is None or not self.training or self.rate == 0.0:
            return F.dropout(h, self.rate, self.training)
        mask: torch.Tensor = kept(h.detach(), self.seeds, self.rate)
        return h * mask * (1.0 / (1.0 - self.rate))


@torch.library.custom_op("diffcore::kept", mutates_args=())
def kept(h: torch.Tensor, seeds: torch.Tensor, rate: float) -> torch.Tensor:
    """Return which entries of h stay: a mask of booleans, of each sample by a generator of its own."""
    mask = torch.empty(h.shape, dtype=torch.bool, device=h.device)
    generator = torch.Generator(h.device)
    for part, seed in zip(mask.chunk(len(seeds)), seeds.tolist(), strict=True):
        part.bernoulli_(1.0 - rate, generator=generator.manual_seed(seed))
    return mask


@kept.register_fake
def _(h: torch.Tensor, seeds: torch.Tensor, rate: float) -> torch.Tensor:  # noqa: ARG001
    return torch.empty(h.shape, dtype=torch.bool, device=h.device)
