"""CUDA: Triton kernels that draw noise, in one launch and one pass, and the arithmetic that the kernel of a stage shares.

A program of the whole array is one tile of `diffcore._philox`: T blocks of four words, each made once, which are 4 T elements in
a row. In a region each element makes its own block, as in the plain function. The words are those of every other library, bit
for bit; float32 normals are right to a few ulp, float64 ones to rounding, and half precision rounds the float32 ones, so
that a number differs from another library's, by one unit of its last place, only where a few ulp of float32 move it
across a tie. Sums of products are written as fused ones, so that every kernel draws equal bits.

With TRITON_INTERPRET=1 the kernels run on a CPU, slowly, for tests.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from diffcore import _philox

TILE = tl.constexpr(_philox.TILE)
LANE = tl.constexpr(_philox.TILE.bit_length() - 1)  # TILE is 2^LANE
UNIT = tl.constexpr(not triton.knobs.runtime.interpret and torch.version.hip is None)
"""Whether approximate functions are written as NVIDIA's instructions."""
BLOCK = tl.constexpr(512)
"""Elements of a region that a program makes."""


@triton.jit
def _words(c0, c1, c2, c3, k0, k1):
    for _ in tl.static_range(10):
        first, second = c0.to(tl.uint64) * 0xD2511F53, c2.to(tl.uint64) * 0xCD9E8D57  # one instruction for both halves
        c0, c2 = (second >> 32).to(tl.uint32) ^ c1 ^ k0, (first >> 32).to(tl.uint32) ^ c3 ^ k1
        c1, c3 = second.to(tl.uint32), first.to(tl.uint32)
        k0, k1 = k0 + 0x9E3779B9, k1 + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def _radius(word):
    """sqrt(-2 log u), u = (word + 1/2) / 2^32, where log u = k log 2 + log(1 + f) with f in [-1/2, 0]: for u > 1/2, f is
    u - 1, which is not rounded; else f + 1 is the significand. The polynomial is within 2e-8 of -2 log(1 + f) / f.
    """
    signed = word.to(tl.int32, bitcast=True).to(tl.float32) + 0.5  # 2^32 u, or 2^32 (u - 1) for u > 1/2
    upper = signed < 0.0
    bits = signed.to(tl.int32, bitcast=True)
    significand = (bits & 0x007FFFFF) | 0x3F000000
    power = tl.where(upper, 0, (bits & 0x7F800000) - (158 << 23))  # 2^23 k
    f = tl.where(upper, signed * 2.3283064365386963e-10, significand.to(tl.float32, bitcast=True) - 1.0)
    series = tl.fma(f, -2.882215738296509, -3.3916239738464355)
    series = tl.fma(series, f, -2.5153396129608154)
    series = tl.fma(series, f, -0.4070779085159302)
    series = tl.fma(series, f, -0.5392255187034607)
    series = tl.fma(series, f, 0.48561015725135803)
    series = tl.fma(series, f, -0.6674012541770935)
    series = tl.fma(series, f, 0.9999856948852539)
    series = tl.fma(series, f, -2.0)
    square = tl.fma(series, f, power.to(tl.float32) * -1.6525916589735634e-07)  # -2 log 2 / 2^23
    return square * tl.rsqrt(square)


@triton.jit
def _flipped(x, word):
    """x with the sign turned where the word's top bit is set."""
    return (x.to(tl.uint32, bitcast=True) ^ (word & 0x80000000)).to(tl.float32, bitcast=True)


@triton.jit
def _pair(first, second):
    """Two normals of two words, as `_philox.pair`, without a division, a branch or a slow function."""
    radius = _radius(first)
    angle = (second << 2).to(tl.int32, bitcast=True).to(tl.float32)
    angle = tl.fma(angle, 3.657295198167899e-10, 7.314590396335798e-10)
    square = angle * angle
    sine = tl.fma(tl.fma(square, -1.9515295891e-4, 8.3321608736e-3), square, -1.6666654611e-1)
    sine = tl.fma(sine * square, angle, angle)
    cosine = tl.fma(tl.fma(square, 2.443315711809948e-5, -1.388731625493765e-3), square, 4.166664568298827e-2)
    cosine = tl.fma(tl.fma(cosine, square, -0.5), square, 1.0)
    turn = second + 0x20000000  # its two top bits are the quadrant
    odd = (turn & 0x40000000) != 0
    x, y = tl.where(odd, sine, cosine), tl.where(odd, cosine, sine)
    return radius * _flipped(x, turn + 0x40000000), radius * _flipped(y, turn)


@triton.jit
def _approximately(x, function: tl.constexpr):
    """log2, sine or cosine by the unit that works beside the others, where there is one."""
    if UNIT:
        code: tl.constexpr = function + ".approx.ftz.f32 $0, $1;"
        return tl.inline_asm_elementwise(code, "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    elif function == "lg2":
        return tl.log2(x)
    else:
        return tl.sin(x) if function == "sin" else tl.cos(x)


@triton.jit
def _pair_half(first, second):
    """Two normals of two words for what is then rounded to 8 or 11 bits: within 2^-16 of those of `_pair` times the larger of 1 and
    their own size. The unit's errors are at most 2^-22 for log2 u, relative for u < 1/2, and 2^-20 for sine and cosine (PTX ISA).
    """
    u = tl.fma(first.to(tl.float32), 2.3283064365386963e-10, 1.1641532182693481e-10)
    rest = tl.fma(
        (~first).to(tl.float32), 2.3283064365386963e-10, 1.1641532182693481e-10
    )  # 1 - u, which is not rounded
    near = rest * tl.fma(
        rest, tl.fma(rest, 0.6666666865348816, 1.0), 2.0
    )  # -2 log(1 - rest), where the unit's is too coarse
    square = tl.where(rest < 0.03125, near, _approximately(u, "lg2") * -1.3862943649291992)
    radius = square * tl.rsqrt(square)
    angle = second.to(tl.int32, bitcast=True).to(tl.float32)
    angle = tl.fma(angle, 1.4629180792671596e-09, 7.314590396335798e-10)  # in [-pi, pi]
    return radius * _approximately(angle, "cos"), radius * _approximately(angle, "sin")


@triton.jit
def _pair_wide(first, second):
    """Two normals of two words in float64, operation by operation as `_philox.pair`."""
    upper = first > 0x7FFFFFFF
    tail = (tl.where(upper, 0xFFFFFFFF - first, first).to(tl.float64) + 0.5) * 2.3283064365386963e-10
    argument = tl.where(upper, 1.0 - tail, tail)
    logarithm = tl.log(argument)
    logarithm = tl.where(upper, logarithm * (tail / (1.0 - argument)), logarithm)
    radius = tl.sqrt(-2.0 * logarithm)
    turn = second + 0x20000000
    remainder = (turn & 0x3FFFFFFF).to(tl.int32) - 0x20000000
    angle = (remainder.to(tl.float64) + 0.5) * 1.4629180792671596e-09  # pi / 2^31
    cosine, sine = tl.cos(angle), tl.sin(angle)
    odd = (turn & 0x40000000) != 0
    x, y = tl.where(odd, sine, cosine), tl.where(odd, cosine, sine)
    x = tl.where(((turn + 0x40000000) & 0x80000000) != 0, -x, x)
    y = tl.where((turn & 0x80000000) != 0, -y, y)
    return radius * x, radius * y


@triton.jit
def _finished(first, second, kind: tl.constexpr):
    """What two words become: themselves as integers, or two normals."""
    if kind == tl.int64:
        return first, second
    elif kind == tl.float64:
        return _pair_wide(first, second)
    else:
        return _pair(first, second)


@triton.jit
def _blocks(block, draw, stream, keys_p, sample):
    """The four words of blocks (int64) of a sample."""
    k0, k1 = tl.load(keys_p + 2 * sample).to(tl.uint32), tl.load(keys_p + 2 * sample + 1).to(tl.uint32)
    zero = tl.zeros_like(block).to(tl.uint32)
    return _words(
        block.to(tl.uint32), (block >> 32).to(tl.uint32), zero + draw.to(tl.uint32), zero + stream.to(tl.uint32), k0, k1
    )


@triton.jit
def _number(given, ON_DEVICE: tl.constexpr):
    """A number that the host gave, or one that it left on the device."""
    if ON_DEVICE:
        return tl.load(given)
    else:
        return given


# fmt: off
@triton.jit(do_not_specialize=["keys_p", "draw", "stream", "tiles"])
def _whole(to, keys_p, draw, stream, size, tiles, DRAW: tl.constexpr, WIDTH: tl.constexpr):
    """One tile of one sample, (WIDTH, TILE / WIDTH), so that a thread makes the WIDTH neighbours that it writes."""
    program = tl.program_id(0).to(tl.int64)
    sample, tile = program // tiles, program % tiles
    neighbours = WIDTH * tl.arange(0, TILE // WIDTH)[None, :]
    each = tl.arange(0, WIDTH)[:, None]
    w0, w1, w2, w3 = _blocks(tile * TILE + neighbours + each, _number(draw, DRAW), stream, keys_p, sample)
    e0, e1 = _finished(w0, w1, to.dtype.element_ty)
    e2, e3 = _finished(w2, w3, to.dtype.element_ty)
    for lane in tl.static_range(4):
        begin = (4 * tile + lane) * TILE + neighbours
        mask = begin < size  # neighbours are all inside, or all outside
        made = e0 if lane == 0 else e1 if lane == 1 else e2 if lane == 2 else e3
        tl.store(to + sample * size + begin + each, made.to(to.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["keys_p", "draw", "stream", "origin", "tiles"])
def _part(
    to, keys_p, draw, stream, origin, size, tiles, counts, strides,
    DRAW: tl.constexpr, ORIGIN: tl.constexpr, WIDE: tl.constexpr,
):
    """Some of the elements of a region of one sample: `counts` along its axes, the innermost first, `strides` apart."""
    program = tl.program_id(0).to(tl.int64)
    sample = program // tiles
    at = (program % tiles) * BLOCK + tl.arange(0, BLOCK)
    rest = at if WIDE else at.to(tl.int32)
    element = tl.zeros_like(at) + _number(origin, ORIGIN)
    for axis in tl.static_range(len(counts) - 1):
        inner = rest % counts[axis]
        element += inner.to(tl.int64) * strides[axis]
        rest = (rest - inner) // counts[axis]
    element += rest.to(tl.int64) * strides[len(counts) - 1]
    block, lane = (element >> LANE + 2 << LANE) + (element & TILE - 1), element >> LANE & 3
    w0, w1, w2, w3 = _blocks(block, _number(draw, DRAW), stream, keys_p, sample)
    x, y = _finished(tl.where(lane > 1, w2, w0), tl.where(lane > 1, w3, w1), to.dtype.element_ty)
    made = tl.where((lane & 1) != 0, y, x)
    tl.store(to + sample * size + at, made.to(to.dtype.element_ty), mask=at < size)
# fmt: on


def drawn(
    words: torch.Tensor,
    draw: int | torch.Tensor,
    origin: int | torch.Tensor,
    stream: int,
    size: int,
    counts: list[int],
    strides: list[int],
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return the noise of each sample, (B, size): normals, or in int64 the words behind them.

    Args:
        words: of the keys, (B, 2), int64.
        draw: its number; a tensor is read on the device, when the kernel runs.
        origin: the number of the first element, likewise.
        stream: see `diffcore._streams`.
        size: how many elements of each sample, at least 1.
        counts, strides: those of a region along its axes, the innermost first; none for the first `size` elements.
        dtype: of what is returned.
    """
    words = words.contiguous()
    to = torch.empty((words.shape[0], size), dtype=dtype, device=words.device)
    on_device, draw = isinstance(draw, torch.Tensor), signed(draw)
    if counts:
        tiles = -(-size // BLOCK.value)
        grid: Any = (words.shape[0] * tiles,)
        with torch.cuda.device_of(to):
            _part[grid](
                to, words, draw, signed(stream), origin, size, tiles, tuple(counts), tuple(strides),
                DRAW=on_device, ORIGIN=isinstance(origin, torch.Tensor), WIDE=size >= 2**31,
                num_warps=4, enable_fp_fusion=False,
            )  # fmt: skip
        return to
    tiles, width = -(-size // (4 * TILE.value)), 16 // to.element_size()
    with torch.cuda.device_of(to):
        _whole[(words.shape[0] * tiles,)](
            to, words, draw, signed(stream), size, tiles,
            DRAW=on_device, WIDTH=width if size % 16 == 0 else 1,
            num_warps=4 // max(width // 2, 1), enable_fp_fusion=False,  # TILE elements are WIDTH for each thread
        )  # fmt: skip
    return to


def signed(number: Any) -> Any:
    """Return a number of 32 bits as one with a sign, so that one kernel takes all; a tensor as it is."""
    return number if isinstance(number, torch.Tensor) else (int(number) + (1 << 31)) % (1 << 32) - (1 << 31)
