"""Group norm of frames in PyTorch, with SiLU or without: on CUDA one Triton kernel, elsewhere torch's operations.

The kernel is an operation of its own, `diffcore::normed`, which compilers take as it is and autograd keeps little for: what
came in and two numbers a group. It serves float32, bfloat16 and float16 with parameters of float32.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from diffcore.unet3d import structure, torch_kernels
from diffcore.unet3d.config import groups


def norm(
    h: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    silu: bool = False,
    shift: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the group norm of each frame of h (N, H, W, C), in float32 at least: of h + shift, where a shift (N, C) is given, and
    with SiLU after it where asked."""
    followed = (h, weight, bias) if shift is None else (h, weight, bias, shift)
    if torch_kernels.serve(h, weight) and not torch_kernels.transformed(*followed):
        given = h, shift, weight, bias, groups(len(weight)), silu
        made = torch_kernels.tried("the norm", "norms are computed by torch's operations", normed, *given)
        if made is not None:
            out: torch.Tensor = made[0]
            return out
    return (composed if torch_kernels.transformed(*followed) else plain)(_shifted(h, shift), weight, bias, silu)


def _shifted(h: torch.Tensor, shift: torch.Tensor | None) -> torch.Tensor:
    return h if shift is None else h + shift[:, None, None].to(h.dtype)


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


@torch.library.custom_op("diffcore::normed", mutates_args=())
def normed(
    h: torch.Tensor, shift: torch.Tensor | None, weight: torch.Tensor, bias: torch.Tensor, groups: int, silu: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the norm, after SiLU where asked; what the gradient needs of the statistics, twice (N, groups)."""
    from diffcore.unet3d import torch_norm_kernel

    return torch_norm_kernel.forward(h, shift, weight, bias, groups, structure.EPSILON, silu)


@torch.library.custom_op("diffcore::normed_gradient", mutates_args=())
def gradient(
    of_out: torch.Tensor,
    h: torch.Tensor,
    shift: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    mean: torch.Tensor,
    scale: torch.Tensor,
    silu: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of h, shift (of no frame where there is none), weight and bias."""
    from diffcore.unet3d import torch_norm_kernel

    return torch_norm_kernel.backward(of_out, h, shift, weight, bias, mean, scale, silu)


@normed.register_fake
def _(h: Any, shift: Any, weight: Any, bias: Any, groups: Any, silu: Any) -> Any:  # noqa: ARG001
    one = h.new_empty((h.shape[0], groups), dtype=torch.float32)
    return h.new_empty(h.shape), one, torch.empty_like(one)


@gradient.register_fake
def _(of_out: Any, h: Any, shift: Any, weight: Any, bias: Any, mean: Any, scale: Any, silu: Any) -> Any:  # noqa: ARG001
    of_shift = h.new_empty((0, h.shape[-1])) if shift is None else shift.new_empty(shift.shape)
    return h.new_empty(h.shape), of_shift, torch.empty_like(weight), torch.empty_like(bias)


def _kept(ctx: Any, inputs: Any, output: Any) -> None:
    h, shift, weight, bias, _, ctx.silu = inputs
    ctx.save_for_backward(h, shift, weight, bias, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _back(ctx: Any, of_out: torch.Tensor, *_: Any) -> Any:
    saved = ctx.saved_tensors  # once: a checkpoint gives each but once
    of_h, of_shift, *rest = gradient(of_out, *saved, ctx.silu)
    return of_h, None if saved[1] is None else of_shift, *rest, None, None


def _kept_twice(ctx: Any, inputs: Any, output: Any) -> None:  # noqa: ARG001
    *tensors, _, _, ctx.silu = inputs
    ctx.save_for_backward(*tensors)


def _back_twice(ctx: Any, *cotangents: Any) -> Any:
    """The gradients of the gradients, through torch's operations; as rare as they are needed."""
    with torch.enable_grad():
        given: list[Any] = [None if part is None else part.detach().requires_grad_() for part in ctx.saved_tensors]
        of_out, h, shift, weight, bias = given
        shifted = shift is not None
        out = plain(_shifted(h, shift), weight, bias, ctx.silu)
        of = (h, *([shift] if shifted else []), weight, bias)
        slopes = torch.autograd.grad(out, of, of_out, create_graph=True)
        along = [part for number, part in enumerate(cotangents) if shifted or number != 1]
        found = iter(torch.autograd.grad(slopes, (of_out, *of), along))
    return *(None if part is None else next(found) for part in given), None, None, None


normed.register_autograd(_back, setup_context=_kept)
gradient.register_autograd(_back_twice, setup_context=_kept_twice)
