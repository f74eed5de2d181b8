"""A Triton kernel that shows the normals of words; Triton wants its source in a file."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from diffcore.backends import torch_triton_noise


@triton.jit
def _show_normals(words_p, to, COUNT: tl.constexpr, HALF: tl.constexpr):
    at = tl.arange(0, COUNT)
    first, second = tl.load(words_p + 2 * at).to(tl.uint32), tl.load(words_p + 2 * at + 1).to(tl.uint32)
    if HALF:
        x, y = torch_triton_noise._pair_half(first, second)
    else:
        x, y = torch_triton_noise._pair(first, second)
    tl.store(to + at, x)
    tl.store(to + COUNT + at, y)


def normals(words: Any, device: str, half: bool = False) -> Any:
    """Return the normals (2, n) of pairs of words (n, 2), n a power of two, perhaps those that half precision rounds."""
    out = torch.zeros((2, len(words)), device=device)
    _show_normals[(1,)](torch.tensor(words, device=device), out, len(words), half, enable_fp_fusion=True)
    return out.cpu().numpy()
