"""Triton kernels that show the words behind the noise and the normals of words; Triton wants their source in a file."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

from diffcore.backends import torch_triton


@triton.jit
def _show(to, key_low, key_high, draw):
    at = tl.arange(0, 256)
    zero = tl.zeros((256,), tl.uint32)
    low, high = tl.load(key_low).to(tl.uint32), tl.load(key_high).to(tl.uint32)
    number = tl.load(draw).to(tl.uint32)
    w0, w1, w2, w3 = torch_triton._words(at.to(tl.uint32), zero, zero + number, zero, zero + low, zero + high)
    tl.store(to + at, w0.to(tl.int64))
    tl.store(to + 256 + at, w1.to(tl.int64))
    tl.store(to + 512 + at, w2.to(tl.int64))
    tl.store(to + 768 + at, w3.to(tl.int64))


def words(seed: int, draw: int, device: str) -> Any:
    """Return the words of the first 256 blocks of a seed and draw, lane by lane."""
    low, high, number = (torch.tensor([value], device=device) for value in (seed & 0xFFFFFFFF, seed >> 32, draw))
    out = torch.zeros(1024, dtype=torch.int64, device=device)
    _show[(1,)](out, low, high, number, enable_fp_fusion=True)
    return out.cpu().numpy().astype(np.uint32)


@triton.jit
def _show_normals(words_p, to, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    first, second = tl.load(words_p + 2 * at).to(tl.uint32), tl.load(words_p + 2 * at + 1).to(tl.uint32)
    x, y = torch_triton._pair(first, second)
    tl.store(to + at, x)
    tl.store(to + COUNT + at, y)


def normals(words: Any, device: str) -> Any:
    """Return the normals (2, n) of pairs of words (n, 2), n a power of two."""
    out = torch.zeros((2, len(words)), device=device)
    _show_normals[(1,)](torch.tensor(words, device=device), out, len(words), enable_fp_fusion=True)
    return out.cpu().numpy()
