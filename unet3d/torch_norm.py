"""Group norm of frames in PyTorch, with SiLU or without: on CUDA one Triton kernel, elsewhere torch's operations.

The kernel is an operation of its own, `diffcore::normed`, which compilers take as it is and autograd keeps little for: what
came in and two numbers a group. It serves float32, bfloat16 and float16 with parameters of float32.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

from diffcore.backends.torch_compiling import is_compiler_error, warn
from diffcore.unet3d import structure
from diffcore.unet3d.config import groups

ON = "cuda"
"""The type of the devices that the kernel serves."""
_triton = importlib.util.find_spec("triton") is not None  # and false once it has failed to compile


def norm(h: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, silu: bool = False) -> torch.Tensor:
    """Return the group norm of each frame of h (N, H, W, C), in float32 at least, after SiLU where asked."""
    global _triton
    if _triton and _serves(h, weight):
        try:
            out: torch.Tensor = normed(h, weight, bias, groups(len(weight)), silu)[0]
            return out
        except Exception as error:
            if torch.compiler.is_compiling() or not is_compiler_error(error):
                raise
            warn("the Triton kernel of the norm", error, "norms are computed by torch's operations")
            _triton = False
    return (composed if transformed(h, weight) else plain)(h, weight, bias, silu)


def plain(h: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, silu: bool) -> torch.Tensor:
    """`norm` by torch's operations."""
    wide = h.to(weight.dtype).permute(0, 3, 1, 2)
    out = F.group_norm(wide, groups(len(weight)), weight, bias, structure.EPSILON).permute(0, 2, 3, 1).to(h.dtype)
    return F.silu(out) if silu else out


def composed(h: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, silu: bool) -> torch.Tensor:
    """`norm` by operations that forward-mode differentiation and vmap know, which take no channels-last group norm."""
    grouped = h.to(weight.dtype).unflatten(-1, (groups(len(weight)), -1))
    variance, mean = torch.var_mean(grouped, dim=(-4, -3, -1), correction=0, keepdim=True)
    normal = ((grouped - mean) * torch.rsqrt(variance + structure.EPSILON)).flatten(-2)
    out = (normal * weight + bias).to(h.dtype)
    return F.silu(out) if silu else out


def _serves(h: torch.Tensor, weight: torch.Tensor) -> bool:
    """Return whether the kernel takes a tensor."""
    if h.device.type != ON or weight.dtype != torch.float32 or h.numel() == 0:
        return False
    return h.dtype in (torch.float32, torch.bfloat16, torch.float16) and not transformed(h, weight)


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


@torch.library.custom_op("diffcore::normed", mutates_args=())
def normed(
    h: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, groups: int, silu: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the norm, after SiLU where asked; what the gradient needs of the statistics, twice (N, groups)."""
    from diffcore.unet3d import torch_norm_kernel

    return torch_norm_kernel.forward(h, weight, bias, groups, structure.EPSILON, silu)


@torch.library.custom_op("diffcore::normed_gradient", mutates_args=())
def gradient(
    of_out: torch.Tensor,
    h: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    mean: torch.Tensor,
    scale: torch.Tensor,
    silu: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of h, weight and bias."""
    from diffcore.unet3d import torch_norm_kernel

    return torch_norm_kernel.backward(of_out, h, weight, bias, mean, scale, silu)


@normed.register_fake
def _(h: Any, weight: Any, bias: Any, groups: Any, silu: Any) -> Any:  # noqa: ARG001
    one = h.new_empty((h.shape[0], groups), dtype=torch.float32)
    return h.new_empty(h.shape), one, torch.empty_like(one)


@gradient.register_fake
def _(of_out: Any, h: Any, weight: Any, bias: Any, mean: Any, scale: Any, silu: Any) -> Any:  # noqa: ARG001
    return h.new_empty(h.shape), torch.empty_like(weight), torch.empty_like(bias)


def _kept(ctx: Any, inputs: Any, output: Any) -> None:
    h, weight, bias, _, ctx.silu = inputs
    ctx.save_for_backward(h, weight, bias, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _back(ctx: Any, of_out: torch.Tensor, *_: Any) -> Any:
    return *gradient(of_out, *ctx.saved_tensors, ctx.silu), None, None


def _kept_twice(ctx: Any, inputs: Any, output: Any) -> None:  # noqa: ARG001
    *tensors, _, _, ctx.silu = inputs
    ctx.save_for_backward(*tensors)


def _back_twice(ctx: Any, *cotangents: Any) -> Any:
    """The gradients of the gradients, through torch's operations; as rare as they are needed."""
    with torch.enable_grad():
        given = [part.detach().requires_grad_() for part in ctx.saved_tensors]
        of_out, h, weight, bias = given
        out = plain(h, weight, bias, ctx.silu)
        slopes = torch.autograd.grad(out, (h, weight, bias), of_out, create_graph=True)
        return *torch.autograd.grad(slopes, given, cotangents), None, None, None


normed.register_autograd(_back, setup_context=_kept)
gradient.register_autograd(_back_twice, setup_context=_kept_twice)
