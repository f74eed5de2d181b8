"""Noise on torch tensors: the reference's arithmetic in int64, whose products wrap as unsigned ones do."""

from __future__ import annotations

import math
from typing import Any

import array_api_compat.torch as xp
import numpy as np
import torch

from diffcore import _philox
from diffcore._array import Array, is_half

CHUNK = 1 << 15
"""Blocks an eager call makes at a time: its int64 temporaries stay in the cache."""


def bits(words: Array, draw: Any, shape: tuple[int, ...], *, device: Any = None, stream: int = 0) -> torch.Tensor:
    """Return the 32-bit words of each element, in int64; see `diffcore.noise.bits`."""
    if 0 in shape:
        return torch.zeros(shape, dtype=torch.int64, device=device)
    return _philox.assemble(
        xp, _philox.lanes(xp, words, _draw(draw, device), shape, device, stream, torch.int64), shape
    )


def normal(
    words: Array, draw: Any, shape: tuple[int, ...], *, dtype: Any, device: Any = None, stream: int = 0
) -> torch.Tensor:
    """Return standard normals (B, ...); see `diffcore.noise.normal`."""
    _philox.check_dtype(dtype)
    if 0 in shape:
        return torch.zeros(shape, dtype=dtype, device=device)
    wide = torch.float32 if is_half(dtype) else dtype
    draw = _draw(draw, device)
    blocks = sum(_philox.counts(shape)[1:]) * shape[0]
    if torch.compiler.is_compiling() or blocks <= CHUNK or (device is not None and torch.device(device).type != "cpu"):
        return _whole(words, draw, shape, wide, device, stream).to(dtype)
    out = torch.empty((shape[0], math.prod(shape[1:])), dtype=dtype)
    for sample in range(shape[0]):
        _chunked(out[sample], words[sample : sample + 1], draw, wide, stream)
    return out.reshape(shape)


def _draw(draw: Any, device: Any) -> torch.Tensor:
    if isinstance(draw, torch.Tensor):
        return draw.to(device)
    return torch.as_tensor(int(draw) if isinstance(draw, np.generic) else draw, device=device)


def _whole(words: Array, draw: Any, shape: tuple[int, ...], wide: Any, device: Any, stream: int) -> torch.Tensor:
    w = _philox.lanes(xp, words, draw, shape, device, stream, torch.int64)
    lanes = [*_philox.pair(xp, w[0], w[1], wide, torch.int32), *_philox.pair(xp, w[2], w[3], wide, torch.int32)]
    drawn: torch.Tensor = _philox.assemble(xp, lanes, shape)
    return drawn


def _chunked(out: torch.Tensor, words: Array, draw: torch.Tensor, wide: Any, stream: int) -> None:
    """Fill one sample, tile by tile, so that nothing larger than the cache is made in between."""
    key = _philox.key_words(xp, words, torch.int64, None)
    zero = torch.zeros((1, 1), dtype=torch.int64)
    size, full, rest = _philox.counts((1, out.shape[0]))
    for first in range(0, full * _philox.TILE + rest, CHUNK):
        last = min(first + CHUNK, full * _philox.TILE + rest)
        block = torch.arange(first, last).reshape(1, -1)
        counter = (block & _philox.MASK, block >> 32, draw.reshape(1, 1) & _philox.MASK, zero + stream)
        w = _philox.rounds(_philox.multiply_wide, counter, key)
        lanes = [*_philox.pair(xp, w[0], w[1], wide, torch.int32), *_philox.pair(xp, w[2], w[3], wide, torch.int32)]
        begin, end = 4 * first, min(4 * last, size) if last < full * _philox.TILE + rest else size
        out[begin:end] = _philox.assemble(xp, lanes, (1, end - begin))[0]
