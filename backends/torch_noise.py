"""Noise on torch tensors: the reference's arithmetic in int64, without an overflow.

It compiles to one loop. An eager call on a CPU is NumPy's, by the compiled kernel, which is far faster than a call for each
operation.
"""

from __future__ import annotations

from typing import Any

import array_api_compat.torch as xp
import numpy as np
import torch

from diffcore import _philox
from diffcore._array import Array, is_half
from diffcore.backends import numpy_noise


def bits(words: Array, draw: Any, shape: tuple[int, ...], *, device: Any = None, stream: int = 0) -> torch.Tensor:
    """Return the 32-bit words of each element, in int64; see `diffcore.noise.bits`."""
    if 0 in shape:
        return torch.zeros(shape, dtype=torch.int64, device=device)
    lanes = _philox.lanes(xp, words, _number(draw, device), shape, device, stream, torch.int64, _philox.multiply_signed)
    found: torch.Tensor = _philox.assemble(xp, lanes, shape)
    return found


def normal(
    words: Array, draw: Any, shape: tuple[int, ...], *, dtype: Any, device: Any = None, stream: int = 0
) -> torch.Tensor:
    """Return standard normals (B, ...); see `diffcore.noise.normal`."""
    _philox.check_dtype(dtype)
    if 0 in shape:
        return torch.zeros(shape, dtype=dtype, device=device)
    wide = torch.float32 if is_half(dtype) else dtype
    if not torch.compiler.is_compiling() and (device is None or torch.device(device).type == "cpu"):
        host = _on_host(words), _on_host(draw)
        if host[0] is not None and host[1] is not None:
            kind = np.float64 if wide == torch.float64 else np.float32
            drawn = numpy_noise.normal(host[0], host[1], shape, dtype=kind, stream=stream)
            return torch.from_numpy(drawn).to(dtype)
    w = _philox.lanes(xp, words, _number(draw, device), shape, device, stream, torch.int64, _philox.multiply_signed)
    pairs = [_philox.pair(xp, w[i], w[i + 1], wide, torch.int32) for i in (0, 2)]
    found: torch.Tensor = _philox.assemble(xp, [lane for pair in pairs for lane in pair], shape)
    return found.to(dtype)


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
