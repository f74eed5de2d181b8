"""Where the network's Triton kernels serve: on CUDA, until one fails to compile in a forward pass, and then that one no more."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

from diffcore.backends.torch_compiling import is_compiler_error, warn

ON = "cuda"
"""The type of the devices that the kernels serve."""
TRITON = importlib.util.find_spec("triton") is not None
_left: set[str] = set()


def serve(h: torch.Tensor, *parameters: torch.Tensor) -> bool:
    """Return whether the kernels take a tensor, in float32 or half precision, with parameters in float32."""
    if not TRITON or h.device.type != ON or h.numel() == 0:
        return False
    kinds = h.dtype in (torch.float32, torch.bfloat16, torch.float16), {p.dtype for p in parameters} == {torch.float32}
    return all(kinds) and not transformed(h, *parameters)


def tried(what: str, instead: str, operation: Callable[..., Any], *given: Any) -> Any:
    """Return what an operation makes, or None where its kernel has not compiled, which is said once."""
    if what in _left:
        return None
    try:
        return operation(*given)
    except Exception as error:
        if torch.compiler.is_compiling() or not is_compiler_error(error):
            raise
        warn(f"the Triton kernel of {what}", error, instead)
        _left.add(what)
        return None


def transformed(*tensors: torch.Tensor) -> bool:
    """Return whether forward-mode differentiation or vmap follows tensors, or a subclass stands for them: those without memory."""
    if getattr(forward_ad, "_current_level", 0) >= 0:  # only a private name tells without a cost
        return True
    return not torch.compiler.is_compiling() and not all(_has_memory(tensor) for tensor in tensors)


def _has_memory(tensor: torch.Tensor) -> bool:
    try:
        return type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.data_ptr() != 0
    except RuntimeError:
        return False


def padded(number: int) -> int:
    """Return the power of two, of at least 16, that has room for a number of rows or columns of what Triton multiplies."""
    return max(16, 1 << (number - 1).bit_length())
