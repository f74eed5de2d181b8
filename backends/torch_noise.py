"""Noise on torch tensors: the reference's arithmetic in int64, without an overflow.

It compiles to one loop. An eager call on a CPU is NumPy's, by the compiled kernel, which is far faster than a call for each
operation.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import array_api_compat.torch as xp
import numpy as np
import torch

from diffcore import _philox, _streams
from diffcore._array import Array, is_half
from diffcore._philox import Finish, Region
from diffcore.backends import numpy_noise


def bits(
    words: Array,
    draw: Any,
    shape: tuple[int, ...],
    *,
    device: Any = None,
    stream: int = _streams.SAMPLER,
    region: Region | None = None,
) -> torch.Tensor:
    """Return the 32-bit words of each element, in int64; see `diffcore.noise.bits`."""
    sizes = _philox.sizes(shape, region)
    if 0 in sizes:
        return torch.zeros(sizes, dtype=torch.int64, device=device)
    return _made(words, draw, shape, device, stream, region, list)


def normal(
    words: Array,
    draw: Any,
    shape: tuple[int, ...],
    *,
    dtype: Any,
    device: Any = None,
    stream: int = _streams.SAMPLER,
    region: Region | None = None,
) -> torch.Tensor:
    """Return standard normals (B, ...); see `diffcore.noise.normal`."""
    _philox.check_dtype(dtype)
    sizes = _philox.sizes(shape, region)
    if 0 in sizes:
        return torch.zeros(sizes, dtype=dtype, device=device)
    wide = torch.float32 if is_half(dtype) else dtype
    if not torch.compiler.is_compiling() and (device is None or torch.device(device).type == "cpu"):
        host = _on_host(words), _on_host(draw)
        if host[0] is not None and host[1] is not None:
            kind = np.float64 if wide == torch.float64 else np.float32
            drawn = numpy_noise.normal(host[0], host[1], shape, dtype=kind, stream=stream, region=region)
            return torch.from_numpy(drawn).to(dtype)
    finish = partial(_philox.normals, xp, dtype=wide, small=torch.int32)
    return _made(words, draw, shape, device, stream, region, finish).to(dtype)


def _made(
    words: Array, draw: Any, shape: tuple[int, ...], device: Any, stream: int, region: Region | None, finish: Finish
) -> torch.Tensor:
    number, multiply = _number(draw, device), _philox.multiply_signed
    blocks = _philox.blocks_of(xp, words, number, device, stream, torch.int64, multiply)
    found: torch.Tensor = _philox.made(xp, blocks, finish, shape, region, torch.int64, device)
    return found


def _on_host(value: Any) -> Any:
    """Return a value that NumPy can read, or None where it is hidden inside a transformation such as vmap."""
    if not isinstance(value, torch.Tensor):
        return value
    try:
        return value.numpy()
    except RuntimeError:
        return None


def _number(draw: Any, device: Any) -> torch.Tensor:
    if isinstance(draw, torch.Tensor):
        return draw.to(device)
    return torch.as_tensor(int(draw) if isinstance(draw, np.generic) else draw, device=device)
