"""Noise on torch tensors: the reference's arithmetic in int64, without an overflow.

It compiles to one loop. An eager call on a CPU is NumPy's, by the compiled kernel, which is far faster than a call for each
operation; on CUDA a Triton kernel draws in one launch, for a compiler as an operation of its own.
"""

from __future__ import annotations

import importlib.util
import math
from functools import partial
from typing import Any

import array_api_compat.torch as xp
import numpy as np
import torch

from diffcore import _philox, _streams
from diffcore._array import Array, is_half
from diffcore._philox import Finish, Region
from diffcore.backends import numpy_noise
from diffcore.backends.torch_compiling import is_compiler_error, warn

ON = "cuda"
"""The type of the devices that the kernel serves."""
_triton = importlib.util.find_spec("triton") is not None  # and false once it has failed to compile


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
    if (found := _by_kernel(words, draw, shape, torch.int64, device, stream, region)) is not None:
        return found
    if (host := _eager(words, draw, device)) is not None:
        return torch.from_numpy(numpy_noise.bits(*host, shape, stream=stream, region=region).astype(np.int64))
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
    if (found := _by_kernel(words, draw, shape, dtype, device, stream, region)) is not None:
        return found
    wide = torch.float32 if is_half(dtype) else dtype
    if (host := _eager(words, draw, device)) is not None:
        kind = np.float64 if wide == torch.float64 else np.float32
        drawn = numpy_noise.normal(*host, shape, dtype=kind, stream=stream, region=region)
        return torch.from_numpy(drawn).to(dtype)
    finish = partial(_philox.normals, xp, dtype=wide, small=torch.int32)
    return _made(words, draw, shape, device, stream, region, finish).to(dtype)


def _eager(words: Array, draw: Any, device: Any) -> tuple[Any, Any] | None:
    """Return the words and the draw for NumPy, where a call on a CPU is not traced; else None."""
    if torch.compiler.is_compiling() or not (device is None or torch.device(device).type == "cpu"):
        return None
    host = _on_host(words), _on_host(draw)
    return None if host[0] is None or host[1] is None else host


def _by_kernel(
    words: Array, draw: Any, shape: tuple[int, ...], dtype: torch.dtype, device: Any, stream: int, region: Region | None
) -> torch.Tensor | None:
    """Return the noise drawn by the Triton kernel, without waiting for the device; None where it does not serve."""
    global _triton
    if not _triton or device is None or torch.device(device).type != ON:
        return None
    if not isinstance(words, torch.Tensor):
        words = torch.as_tensor(np.asarray(words).astype(np.int64))
    words = words.to(device, torch.int64)
    origin, counts, strides = _philox.axes(shape, region)
    sizes = _philox.sizes(shape, region)
    size = math.prod(sizes[1:])
    if torch.compiler.is_compiling():
        numbers = [_number(number, device) for number in (draw, origin)]
        found: torch.Tensor = _drawn(words, *numbers, stream, size, counts, strides, dtype)
        return found.reshape(sizes)
    if not all(_has_memory(array) for array in (words, draw, origin)):
        return None
    draw, origin = (_placed(number, words.device) for number in (draw, origin))
    try:
        from diffcore.backends import torch_triton_noise

        return torch_triton_noise.drawn(words, draw, origin, stream, size, counts, strides, dtype).reshape(sizes)
    except Exception as error:
        if not is_compiler_error(error):
            raise
        warn("the Triton kernel of the noise", error, "noise is drawn by plain operations, with equal bits")
        _triton = False
        return None


@torch.library.custom_op("diffcore::drawn", mutates_args=())
def _drawn(
    words: torch.Tensor,
    draw: torch.Tensor,
    origin: torch.Tensor,
    stream: int,
    size: int,
    counts: list[int],
    strides: list[int],
    dtype: torch.dtype,
) -> torch.Tensor:
    """`torch_triton_noise.drawn` for a compiler, which takes it as it is."""
    from diffcore.backends import torch_triton_noise

    return torch_triton_noise.drawn(words, draw, origin, stream, size, counts, strides, dtype)


@_drawn.register_fake
def _(words: Any, draw: Any, origin: Any, stream: Any, size: Any, counts: Any, strides: Any, dtype: Any) -> Any:
    return words.new_empty((words.shape[0], size), dtype=dtype)


def _has_memory(value: Any) -> bool:
    """Return whether a tensor has a memory of its own, which one inside a transformation such as vmap, and one that a subclass
    stands for, have not; a number has."""
    if not isinstance(value, torch.Tensor):
        return True
    try:
        return type(value) is torch.Tensor and value.data_ptr() != 0
    except RuntimeError:
        return False


def _placed(number: Any, device: torch.device) -> Any:
    """Return a number that the host knows as an int, and any other on the device."""
    if isinstance(number, torch.Tensor) and number.device.type != "cpu":
        return number.to(device)
    return int(number)


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
