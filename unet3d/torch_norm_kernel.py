"""CUDA: group norm of frames with SiLU, or without, of what is shifted by a vector of each frame, in one launch forward and one
backward.

A program has some groups of one frame: it walks over the pixels once for the statistics and once for the result. Rows of
64 bytes are what it reads of a pixel, so that neighbouring programs share no sector. Statistics are in float32, of
differences from the first number of the group, so that a mean that is large beside the deviation costs no digits. What the
gradients of the weights sum over frames is kept apart by frame, so that each sum has one order.

With TRITON_INTERPRET=1 the kernels run on a CPU, slowly, for tests.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

TILE = 4096
"""Numbers that a program holds at once."""
BYTES = 64
"""Of the channels of a pixel that a program reads, at least."""


# fmt: off
@triton.jit
def _over_groups(x, GROUPS: tl.constexpr, WIDTH: tl.constexpr):
    """The sum over the columns of each group, for each of them."""
    sums = tl.sum(tl.reshape(x, (GROUPS, WIDTH)), axis=1, keep_dims=True)
    return tl.reshape(tl.broadcast_to(sums, (GROUPS, WIDTH)), (GROUPS * WIDTH,))


@triton.jit
def _shift(shift_p, after, inside):
    """The shift of each channel less that of the first of its group, in which the numbers that are normed differ."""
    first = tl.load(shift_p - after, mask=inside, other=0.0).to(tl.float32)
    return tl.load(shift_p, mask=inside, other=0.0).to(tl.float32) - first


@triton.jit
def _apart(h_p, row, here, filler, shift, CHANNELS: tl.constexpr, SHIFTED: tl.constexpr):
    """What is normed, less the first number of the group; 0 outside."""
    apart = tl.load(h_p[None, :] + row * CHANNELS, mask=here, other=filler).to(tl.float32) - filler.to(tl.float32)
    return tl.where(here, apart + shift[None, :], 0.0) if SHIFTED else apart


@triton.jit
def _slope(apart, of_out, mean, scale, weight, bias, SILU: tl.constexpr):
    """The normed h, and the gradient of what weight and bias make of it."""
    normed = (apart - mean) * scale
    if SILU:
        wide = tl.fma(normed, weight, bias)
        share = 1.0 / (1.0 + tl.exp(-wide))
        of_out *= share * tl.fma(wide, 1.0 - share, 1.0)
    return normed, of_out


@triton.jit(do_not_specialize=["pixels"])
def _forward(
    h_p, shift_p, weight_p, bias_p, to, mean_p, scale_p, pixels, epsilon,
    CHANNELS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr,
    SILU: tl.constexpr, SHIFTED: tl.constexpr,
):
    parts: tl.constexpr = CHANNELS // (SIZE * GROUPS)
    frame, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    column = tl.arange(0, GROUPS * WIDTH)
    inside = column % WIDTH < SIZE
    channel = (part * GROUPS + column // WIDTH) * SIZE + column % WIDTH
    h_p, to = h_p + frame.to(tl.int64) * pixels * CHANNELS + channel, to + frame.to(tl.int64) * pixels * CHANNELS + channel
    filler = tl.load(h_p - column % WIDTH)[None, :]
    shift = _shift(shift_p + frame * CHANNELS + channel, column % WIDTH, inside) if SHIFTED else 0.0
    ones = tl.zeros((ROWS, GROUPS * WIDTH), tl.float32)
    squares = tl.zeros((ROWS, GROUPS * WIDTH), tl.float32)
    for start in range(0, pixels, ROWS):
        row = start + tl.arange(0, ROWS)[:, None]
        here = (row < pixels) & inside[None, :]
        apart = _apart(h_p, row, here, filler, shift, CHANNELS, SHIFTED)
        ones += apart
        squares = tl.fma(apart, apart, squares)
    mean = _over_groups(tl.sum(ones, axis=0), GROUPS, WIDTH) / (SIZE * pixels)
    variance = _over_groups(tl.sum(squares, axis=0), GROUPS, WIDTH) / (SIZE * pixels) - mean * mean
    scale = 1.0 / tl.sqrt(tl.maximum(variance, 0.0) + epsilon)
    group = frame * (parts * GROUPS) + part * GROUPS + column // WIDTH
    tl.store(mean_p + group, mean, mask=column % WIDTH == 0)
    tl.store(scale_p + group, scale, mask=column % WIDTH == 0)
    weight = scale * tl.load(weight_p + channel, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_p + channel, mask=inside, other=0.0).to(tl.float32)
    for start in range(0, pixels, ROWS):
        row = start + tl.arange(0, ROWS)[:, None]
        here = (row < pixels) & inside[None, :]
        apart = _apart(h_p, row, here, filler, shift, CHANNELS, SHIFTED)
        out = tl.fma(apart - mean[None, :], weight[None, :], bias[None, :])
        if SILU:
            out = out / (1.0 + tl.exp(-out))
        tl.store(to[None, :] + row * CHANNELS, out.to(to.dtype.element_ty), mask=here)


@triton.jit(do_not_specialize=["pixels"])
def _backward(
    of_out_p, h_p, shift_p, weight_p, bias_p, mean_p, scale_p, to, of_weight_p, of_bias_p, of_shift_p, pixels,
    CHANNELS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr,
    SILU: tl.constexpr, SHIFTED: tl.constexpr,
):
    parts: tl.constexpr = CHANNELS // (SIZE * GROUPS)
    frame, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    column = tl.arange(0, GROUPS * WIDTH)
    inside = column % WIDTH < SIZE
    channel = (part * GROUPS + column // WIDTH) * SIZE + column % WIDTH
    origin = frame.to(tl.int64) * pixels * CHANNELS + channel
    filler = tl.load(h_p + (origin - column % WIDTH))[None, :]
    shift = _shift(shift_p + frame * CHANNELS + channel, column % WIDTH, inside) if SHIFTED else 0.0
    h_p, of_out_p, to = h_p + origin, of_out_p + origin, to + origin
    group = frame * (parts * GROUPS) + part * GROUPS + column // WIDTH
    mean, scale = tl.load(mean_p + group)[None, :], tl.load(scale_p + group)[None, :]
    weight = tl.load(weight_p + channel, mask=inside, other=0.0).to(tl.float32)[None, :]
    bias = tl.load(bias_p + channel, mask=inside, other=0.0).to(tl.float32)[None, :]
    of_bias = tl.zeros((ROWS, GROUPS * WIDTH), tl.float32)
    of_weight = tl.zeros((ROWS, GROUPS * WIDTH), tl.float32)
    for start in range(0, pixels, ROWS):
        row = start + tl.arange(0, ROWS)[:, None]
        here = (row < pixels) & inside[None, :]
        apart = _apart(h_p, row, here, filler, shift, CHANNELS, SHIFTED)
        of_out = tl.load(of_out_p[None, :] + row * CHANNELS, mask=here, other=0.0).to(tl.float32)
        normed, of_out = _slope(apart, of_out, mean, scale, weight, bias, SILU)
        of_bias += of_out
        of_weight = tl.fma(of_out, normed, of_weight)
    bias_sum, weight_sum = tl.sum(of_bias, axis=0), tl.sum(of_weight, axis=0)
    tl.store(of_bias_p + frame * CHANNELS + channel, bias_sum, mask=inside)
    tl.store(of_weight_p + frame * CHANNELS + channel, weight_sum, mask=inside)
    weights = tl.reshape(weight, (GROUPS * WIDTH,))
    plain = _over_groups(weights * bias_sum, GROUPS, WIDTH)[None, :] / (SIZE * pixels)
    along = _over_groups(weights * weight_sum, GROUPS, WIDTH)[None, :] / (SIZE * pixels)
    of_shift = tl.zeros((ROWS, GROUPS * WIDTH), tl.float32)
    for start in range(0, pixels, ROWS):
        row = start + tl.arange(0, ROWS)[:, None]
        here = (row < pixels) & inside[None, :]
        apart = _apart(h_p, row, here, filler, shift, CHANNELS, SHIFTED)
        of_out = tl.load(of_out_p[None, :] + row * CHANNELS, mask=here, other=0.0).to(tl.float32)
        normed, of_out = _slope(apart, of_out, mean, scale, weight, bias, SILU)
        of_h = scale * (weight * of_out - plain - normed * along)
        tl.store(to[None, :] + row * CHANNELS, of_h.to(to.dtype.element_ty), mask=here)
        if SHIFTED:
            of_shift += tl.where(here, of_h, 0.0)
    if SHIFTED:
        tl.store(of_shift_p + frame * CHANNELS + channel, tl.sum(of_shift, axis=0), mask=inside)
# fmt: on


def forward(
    h: torch.Tensor,
    shift: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    groups: int,
    epsilon: float,
    silu: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the norm of frames (N, H, W, C), shifted by (N, C) where there is a shift, after SiLU where asked; (N, groups) in
    float32, means less the first number of each group, and inverse deviations."""
    h = h.contiguous()
    out, mean = torch.empty_like(h), h.new_empty((len(h), groups), dtype=torch.float32)
    scale = torch.empty_like(mean)
    grid, settings = _sizes(h, shift, groups, silu)
    with torch.cuda.device_of(h):
        _forward[grid](
            h, _rows(shift, h), weight, bias, out, mean, scale, h[0, ..., 0].numel(), epsilon, **settings
        )  # fmt: skip
    return out, mean, scale


def backward(
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
    of_out, h = of_out.contiguous(), h.contiguous()
    of_h, sums = torch.empty_like(h), h.new_empty((3, len(h), h.shape[-1]), dtype=torch.float32)
    grid, settings = _sizes(h, shift, mean.shape[1], silu)
    with torch.cuda.device_of(h):
        _backward[grid](
            of_out, h, _rows(shift, h), weight, bias, mean, scale, of_h, *sums, h[0, ..., 0].numel(), **settings
        )  # fmt: skip
    of_shift = (
        h.new_empty((0, h.shape[-1])) if shift is None else sums[2].to(shift.dtype, copy=True)
    )  # which keeps no sums
    return of_h, of_shift, sums[0].sum(dim=0).to(weight.dtype), sums[1].sum(dim=0).to(bias.dtype)


def _rows(shift: torch.Tensor | None, h: torch.Tensor) -> torch.Tensor:
    """Return what the kernel has to point at."""
    return h if shift is None else shift.contiguous()


def _sizes(h: torch.Tensor, shift: torch.Tensor | None, groups: int, silu: bool) -> tuple[tuple[int], dict[str, Any]]:
    """Return the grid, and how a program's tile is divided; the number of groups is a power of two."""
    channels = h.shape[-1]
    size = channels // groups
    width = 1 << (size - 1).bit_length()
    together = min(groups, max(1, BYTES // (h.element_size() * width)))
    rows = max(1, TILE // (together * width))
    sizes = {"CHANNELS": channels, "SIZE": size, "WIDTH": width, "GROUPS": together, "ROWS": rows}
    kinds = {"SILU": silu, "SHIFTED": shift is not None}
    return (len(h) * groups // together,), {**sizes, **kinds, "num_warps": 8, "enable_fp_fusion": True}
