"""Attention over the frames of each pixel in PyTorch, with relative positions: on CUDA in half precision one Triton kernel,
elsewhere torch's operations.

The kernel is an operation of its own, `diffcore::attended`, as `diffcore::normed` is; see `torch_norm`.
"""

from __future__ import annotations

from typing import Any

import torch

from diffcore.unet3d import torch_kernels

MOST = 2048
"""Numbers of the queries of a pixel and a head, of all frames, or of their shares of the keys, that the kernel takes at most."""


def attend(
    qkv: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, video: int, causal: bool
) -> torch.Tensor | None:
    """Return by the kernel what is attended to (B, T, P, heads, d), of queries, keys and values (B, T, P, 3, heads, d) and the
    positions of keys and values (2 F - 1, d), or None where it does not serve. Frames from `video` on see themselves
    alone, but where another frame is not finite, they are not either: what they do not see counts 0 times."""
    instead = "frames attend by torch's operations"
    given = qkv, keys, values, video, causal
    made: torch.Tensor | None = torch_kernels.tried("attention over frames", instead, attended, *given)
    return made


def serves(h: torch.Tensor, keys: torch.Tensor, frames: int) -> bool:
    """Return whether the kernel takes the frames of h (N, H, W, C), at positions of keys (2 F - 1, d): in half precision, in which
    products of matrices are fast, and as many as fit into registers, such as 32 frames of heads of 64."""
    queries = torch_kernels.padded(frames)
    fits = queries * max(queries, torch_kernels.padded(keys.shape[1])) <= MOST
    return h.dtype != torch.float32 and fits and torch_kernels.serve(h, keys)


def plain(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    images: int,
    causal: bool,
) -> torch.Tensor:
    """Attention by torch's operations, of queries (N, heads, T, d) to keys and values of as many frames or, by those before
    them, more; the last `images` of both see themselves alone."""
    far, before = len(keys) // 2, k.shape[2] - q.shape[2]
    video = q.shape[2] - images
    alone = v[:, :, before + video :] + values[far].to(v.dtype)
    if video == 0:
        return alone
    q, k, v = q[:, :, :video], k[:, :, : before + video], v[:, :, : before + video]
    at = torch.arange(-before, video, device=q.device)
    apart = at[None, :] - at[before:, None]
    at = apart.clamp(-far, far) + far
    logits = q @ k.transpose(-1, -2) + torch.einsum("nhid,ijd->nhij", q, keys[at].to(q.dtype))
    if causal:
        logits = logits.masked_fill((apart > 0) | (apart < -far), -torch.inf)
    share = (logits.to(keys.dtype) * q.shape[-1] ** -0.5).softmax(dim=-1).to(v.dtype)
    mixed = share @ v + torch.einsum("nhij,ijd->nhid", share, values[at].to(v.dtype))
    return torch.cat([mixed, alone], dim=2)


def composed(qkv: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, video: int, causal: bool) -> torch.Tensor:
    """What `attend` returns, by `plain`."""
    q, k, v = qkv.permute(3, 0, 2, 4, 1, 5).flatten(1, 2).unbind(0)
    apart = plain(q, k, v, keys, values, qkv.shape[1] - video, causal).unflatten(0, (len(qkv), -1))
    mixed: torch.Tensor = apart.permute(0, 3, 1, 2, 4)
    return mixed


@torch.library.custom_op("diffcore::attended", mutates_args=())
def attended(qkv: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, video: int, causal: bool) -> torch.Tensor:
    """Return what is attended to."""
    from diffcore.unet3d import torch_time_kernel

    return torch_time_kernel.forward(qkv, keys, values, video, causal)


@torch.library.custom_op("diffcore::attended_gradient", mutates_args=())
def gradient(
    of_out: torch.Tensor, qkv: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, video: int, causal: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of qkv, keys and values."""
    from diffcore.unet3d import torch_time_kernel

    return torch_time_kernel.backward(of_out, qkv, keys, values, video, causal)


@attended.register_fake
def _(qkv: Any, keys: Any, values: Any, video: Any, causal: Any) -> Any:  # noqa: ARG001
    return qkv.new_empty((*qkv.shape[:3], *qkv.shape[4:]))


@gradient.register_fake
def _(of_out: Any, qkv: Any, keys: Any, values: Any, video: Any, causal: Any) -> Any:  # noqa: ARG001
    return qkv.new_empty(qkv.shape), torch.empty_like(keys), torch.empty_like(values)


def _kept(ctx: Any, inputs: Any, output: Any) -> None:  # noqa: ARG001
    *tensors, ctx.video, ctx.causal = inputs
    ctx.save_for_backward(*tensors)


def _back(ctx: Any, of_out: torch.Tensor) -> Any:
    return *gradient(of_out, *ctx.saved_tensors, ctx.video, ctx.causal), None, None


def _back_twice(ctx: Any, *cotangents: Any) -> Any:
    """The gradients of the gradients, through torch's operations; as rare as they are needed."""
    with torch.enable_grad():
        given = [part.detach().requires_grad_() for part in ctx.saved_tensors]
        of_out, qkv, keys, values = given
        how = {"allow_unused": True, "materialize_grads": True}  # images alone have no use for keys
        out = composed(qkv, keys, values, ctx.video, ctx.causal)
        slopes = torch.autograd.grad(out, (qkv, keys, values), of_out, create_graph=True, **how)
        found = torch.autograd.grad(slopes, given, cotangents, **how)
    return *found, None, None


attended.register_autograd(_back, setup_context=_kept)
gradient.register_autograd(_back_twice, setup_context=_kept)
