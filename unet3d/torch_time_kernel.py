"""CUDA: attention over the frames of each pixel with relative positions, in one launch forward and one backward.

A program walks over rows, a row being a pixel of a clip and a head, and reads queries, keys and values where the linear layer
wrote them, frame by frame, so that nothing is moved on the way in or out. What is attended to fits into registers, and all of it
is small products of matrices: of the queries with the keys, and with the positions of all distances, (T, 2 T), whose rows are
then moved until the same key lies in one column (Huang et al. 2018, arXiv 1809.04281, sec. 3.4, who move by a reshape). The way
back takes the softmax again instead of keeping it. What the gradients of the positions sum over rows stays in the program, and
is written once a program, so that each sum has one order.

With TRITON_INTERPRET=1 the kernels run on a CPU, slowly, for tests.
"""

from __future__ import annotations

import math
import os
from typing import Any

import torch
import triton
import triton.language as tl

from diffcore.unet3d.torch_kernels import padded

PROGRAMS = 2048
"""At most, each of which writes a sum: 15 a multiprocessor of an H200."""


# fmt: off
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def _product(a, b):
    """The product in float32; the interpreter of Triton 3.9 multiplies the bits of bfloat16 as if they were integers."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _seen(i, j, video, far, CAUSAL: tl.constexpr):
    """Whether the query of frame i sees the key of frame j; an independent image sees itself, and so does what is no frame."""
    seen = (i < video) & (j < video)
    if CAUSAL:
        seen = seen & (j <= i) & (i - j <= far)
    return seen | (i == j)


@triton.jit
def _positions(table_p, far, dtype: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr):
    """The positions of keys that are 1 - QUERIES to QUERIES frames after their query (2 QUERIES, WIDTH)."""
    apart, column = tl.arange(0, 2 * QUERIES) - (QUERIES - 1), tl.arange(0, WIDTH)
    row = tl.minimum(tl.maximum(apart, -far), far) + far
    return tl.load(table_p + row[:, None] * SIZE + column[None, :], mask=(column < SIZE)[None, :], other=0.0).to(dtype)


@triton.jit
def _by_key(by_distance, QUERIES: tl.constexpr):
    """(QUERIES, 2 QUERIES), a column for each distance, as (QUERIES, QUERIES), a column for each key."""
    i, j = tl.arange(0, QUERIES)[:, None], tl.arange(0, QUERIES)[None, :]
    return tl.gather(by_distance, j - i + (QUERIES - 1), axis=1)


@triton.jit
def _by_distance(by_key, QUERIES: tl.constexpr):
    """The other way round, with 0 where no key is so far from the query."""
    j = tl.arange(0, QUERIES)[:, None] + tl.arange(0, 2 * QUERIES)[None, :] - (QUERIES - 1)
    moved = tl.gather(by_key, tl.minimum(tl.maximum(j, 0), QUERIES - 1), axis=1)
    return tl.where((j >= 0) & (j < QUERIES), moved, 0.0)


@triton.jit
def _softmax(q, k, keys, seen, scale, QUERIES: tl.constexpr):
    """The shares (QUERIES, QUERIES) of the keys; `scale` is that of the products, in powers of two."""
    logit = _product(q, tl.trans(k))
    logit += _by_key(_product(q, tl.trans(keys)), QUERIES)
    logit = tl.where(seen, logit * scale, float("-inf"))
    share = tl.exp2(logit - tl.max(logit, axis=1, keep_dims=True))
    return share / tl.sum(share, axis=1, keep_dims=True)


@triton.jit(do_not_specialize=["rows", "pixels", "frames", "video", "far"])
def _forward(
    qkv_p, keys_p, values_p, to, rows, pixels, frames, video, far, scale,
    HEADS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, CAUSAL: tl.constexpr,
):
    dtype: tl.constexpr = to.dtype.element_ty
    i, column = tl.arange(0, QUERIES)[:, None], tl.arange(0, WIDTH)[None, :]
    here = (i < frames) & (column < SIZE)
    seen = _seen(i, tl.arange(0, QUERIES)[None, :], video, far, CAUSAL)
    keys = _positions(keys_p, far, dtype, SIZE, WIDTH, QUERIES)
    values = _positions(values_p, far, dtype, SIZE, WIDTH, QUERIES)
    step = pixels.to(tl.int64) * (HEADS * SIZE)
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        pixel = (row // (pixels * HEADS)).to(tl.int64) * frames * pixels + (row % (pixels * HEADS)) // HEADS
        head = row % HEADS
        given = qkv_p + (pixel * (3 * HEADS) + head) * SIZE + i * (3 * step) + column
        q = tl.load(given, mask=here, other=0.0)
        k = tl.load(given + HEADS * SIZE, mask=here, other=0.0)
        v = tl.load(given + 2 * HEADS * SIZE, mask=here, other=0.0)
        share = _softmax(q, k, keys, seen, scale, QUERIES)
        out = _product(share.to(dtype), v)
        out += _product(_by_distance(share, QUERIES).to(dtype), values)
        tl.store(to + (pixel * HEADS + head) * SIZE + i * step + column, out.to(dtype), mask=here)


@triton.jit(do_not_specialize=["rows", "pixels", "frames", "video", "far"])
def _backward(
    of_out_p, qkv_p, keys_p, values_p, to, sums_p, rows, pixels, frames, video, far, scale, slope,
    HEADS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, CAUSAL: tl.constexpr,
):
    dtype: tl.constexpr = to.dtype.element_ty
    i, column = tl.arange(0, QUERIES)[:, None], tl.arange(0, WIDTH)[None, :]
    here = (i < frames) & (column < SIZE)
    seen = _seen(i, tl.arange(0, QUERIES)[None, :], video, far, CAUSAL)
    keys = _positions(keys_p, far, dtype, SIZE, WIDTH, QUERIES)
    values = _positions(values_p, far, dtype, SIZE, WIDTH, QUERIES)
    of_keys = tl.zeros((2 * QUERIES, WIDTH), tl.float32)
    of_values = tl.zeros((2 * QUERIES, WIDTH), tl.float32)
    step = pixels.to(tl.int64) * (HEADS * SIZE)
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        pixel = (row // (pixels * HEADS)).to(tl.int64) * frames * pixels + (row % (pixels * HEADS)) // HEADS
        head = row % HEADS
        at = (pixel * (3 * HEADS) + head) * SIZE + i * (3 * step) + column
        q = tl.load(qkv_p + at, mask=here, other=0.0)
        k = tl.load(qkv_p + at + HEADS * SIZE, mask=here, other=0.0)
        v = tl.load(qkv_p + at + 2 * HEADS * SIZE, mask=here, other=0.0)
        of_out = tl.load(of_out_p + (pixel * HEADS + head) * SIZE + i * step + column, mask=here, other=0.0)
        share = _softmax(q, k, keys, seen, scale, QUERIES)
        of_share = _product(of_out, tl.trans(v))
        of_share += _by_key(_product(of_out, tl.trans(values)), QUERIES)
        along = tl.sum(share * of_share, axis=1, keep_dims=True)
        wide = share * (of_share - along) * slope
        of_logit, apart = wide.to(dtype), _by_distance(wide, QUERIES).to(dtype)
        of_q = _product(of_logit, k)
        of_q += _product(apart, keys)
        tl.store(to + at, of_q.to(dtype), mask=here)
        of_k = _product(tl.trans(of_logit), q)
        tl.store(to + at + HEADS * SIZE, of_k.to(dtype), mask=here)
        of_v = _product(tl.trans(share.to(dtype)), of_out)
        tl.store(to + at + 2 * HEADS * SIZE, of_v.to(dtype), mask=here)
        of_keys += _product(tl.trans(apart), q)
        apart = _by_distance(share, QUERIES).to(dtype)
        of_values += _product(tl.trans(apart), of_out)
    shift = tl.arange(0, 2 * QUERIES)[:, None]
    sums_p += tl.program_id(0) * (4 * QUERIES * SIZE) + shift * SIZE + column
    tl.store(sums_p, of_keys, mask=column < SIZE)
    tl.store(sums_p + 2 * QUERIES * SIZE, of_values, mask=column < SIZE)
# fmt: on


def forward(qkv: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, video: int, causal: bool) -> torch.Tensor:
    """Return what is attended to (B, T, P, heads, d), of queries, keys and values (B, T, P, 3, heads, d)."""
    qkv, keys, values = (part.contiguous() for part in (qkv, keys, values))
    out = qkv.new_empty((*qkv.shape[:3], *qkv.shape[4:]))
    grid, numbers, settings = _sizes(qkv, keys, video, causal)
    with torch.cuda.device_of(qkv):
        _forward[grid](qkv, keys, values, out, *numbers, num_warps=_warps(settings, 512), num_stages=2, **settings)
    return out


def backward(
    of_out: torch.Tensor, qkv: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, video: int, causal: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of queries, keys and values together, and of the positions of keys and of values."""
    of_out, qkv, keys, values = (part.contiguous() for part in (of_out, qkv, keys, values))
    grid, numbers, settings = _sizes(qkv, keys, video, causal)
    size, distances = qkv.shape[-1], 2 * settings["QUERIES"]
    of_qkv, sums = torch.empty_like(qkv), qkv.new_empty((*grid, 2, distances, size), dtype=torch.float32)
    with torch.cuda.device_of(qkv):
        _backward[grid](
            of_out, qkv, keys, values, of_qkv, sums, *numbers, size**-0.5, num_warps=_warps(settings, 256), num_stages=1, **settings
        )  # fmt: skip
    of_keys, of_values = (_by_position(part[:-1], keys) for part in sums.sum(dim=0))
    return of_qkv, of_keys, of_values


def _by_position(apart: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Return a table of positions (2 F - 1, d), of the rows of all distances, an odd number: the farthest share the last."""
    far, most = len(table) // 2, len(apart) // 2
    of_table = torch.zeros_like(table)
    if most <= far:
        of_table[far - most : far + most + 1] = apart
        return of_table
    of_table[:] = apart[most - far : most + far + 1]
    of_table[0] += apart[: most - far].sum(dim=0)
    of_table[-1] += apart[most + far + 1 :].sum(dim=0)
    return of_table


def _warps(settings: dict[str, Any], numbers: int) -> int:
    """Return how many warps have so many numbers each, of the queries or of their shares; with more, threads would spill."""
    queries, width = int(settings["QUERIES"]), int(settings["WIDTH"])
    return max(1, queries * max(queries, width) // numbers)


def _sizes(
    qkv: torch.Tensor, keys: torch.Tensor, video: int, causal: bool
) -> tuple[tuple[int], tuple[float, ...], dict[str, Any]]:
    """Return the grid, the numbers that a kernel reads, and how a program's tile is divided."""
    batch, frames, pixels, _, heads, size = qkv.shape
    rows, queries, width = batch * pixels * heads, padded(frames), padded(size)
    sizes = {"HEADS": heads, "SIZE": size, "WIDTH": width, "QUERIES": queries, "CAUSAL": causal}
    numbers = rows, pixels, frames, video, len(keys) // 2, size**-0.5 * math.log2(math.e)
    return (min(rows, PROGRAMS),), numbers, {**sizes, "enable_fp_fusion": True}
