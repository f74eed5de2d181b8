"""CUDA: the Triton kernel of a stage, which reads and writes every array once and makes its noise in registers.

A program is one tile of `diffcore._philox`: T blocks of four words, which are 4 T elements in a row, so that no word is made
twice and every access is contiguous, 16 bytes a thread. Memory is the limit in float32; in half precision so is the arithmetic,
most of it for the noise. So no instruction is spent on what noise does not need: a division, a library function, a way through
shared memory, and in half precision digits that are rounded off.
"""

from __future__ import annotations

import triton
import triton.language as tl

from diffcore import _streams
from diffcore.backends.torch_triton_noise import TILE, _finished, _pair_half, _words

KNOWN = tl.constexpr(_streams.KNOWN)


@triton.jit
def _coefficient(row, which, mask, LEAD: tl.constexpr):
    if LEAD == 2:  # a frame is a run of elements, so that these are few lines of the cache
        return tl.load(row + which, mask=mask)
    return tl.load(row + which)


@triton.jit
def _sum(row, first, z, past, eps, x, second, mask, LEAD: tl.constexpr, NOISY: tl.constexpr, SECOND: tl.constexpr):
    """One row of the update, whose coefficients are those from `first` on."""
    total = _coefficient(row, first, mask, LEAD) * z
    for at in tl.static_range(len(past)):
        total += _coefficient(row, first + 1 + at, mask, LEAD) * past[at]
    if NOISY:
        total += _coefficient(row, first + 1 + len(past), mask, LEAD) * eps
    total += _coefficient(row, first + 2 + len(past), mask, LEAD) * x
    if SECOND:
        total += _coefficient(row, first + 3 + len(past), mask, LEAD) * second
    return total


@triton.jit
def _normals(first, second, TYPE: tl.constexpr, HALF: tl.constexpr):
    """Two normals of two words: approximate where they are part of a sum that is rounded to half precision."""
    if HALF:
        return _pair_half(first, second)
    else:
        return _finished(first, second, TYPE)


# fmt: off
@triton.jit(do_not_specialize=[
    "row_p", "factor_p", "keys_p", "counter_p", "held_p", "draw", "until", "tiles", "stride", "frame_size",
])
def _stage(
    z_p, y_p, other_p, memory_p, to_z, to_memory, to_x, row_p, factor_p, keys_p, counter_p,
    eps_p, x_p, observed_p, known_p, held_p, draw, until, size, tiles, stride, frame_size, weight, low, high,
    COLUMNS: tl.constexpr, LEAD: tl.constexpr, NOISY: tl.constexpr, COUNTED: tl.constexpr, CLIPS: tl.constexpr,
    GUIDED: tl.constexpr, SECOND: tl.constexpr, WRITES_X: tl.constexpr, WIDTH: tl.constexpr, HOLDS: tl.constexpr,
    ALONE: tl.constexpr, EXACT: tl.constexpr, TYPE: tl.constexpr,
):
    """One tile of one sample: `diffcore.stage.advance`. `row_p` are the coefficients of the stage, `stride` is how many rows of
    them a sample has, `factor_p` what guidance is multiplied by where GUIDED is 2; the draw is number `draw`, counted from
    what `counter_p` holds. A tensor is (WIDTH, TILE / WIDTH), so that a thread makes the noise of the WIDTH neighbours it reads.
    What `eps_p` to `held_p` are, `torch_triton.Extra` says. ALONE, x-hat is all that is written. EXACT are weight, low and high
    where a float32 argument would round them.
    """
    program = tl.program_id(0).to(tl.int64)
    sample, tile = program // tiles, program % tiles
    HALF: tl.constexpr = to_z.dtype.element_ty == tl.bfloat16 or to_z.dtype.element_ty == tl.float16
    count: tl.constexpr = 2 + (1 + len(memory_p)) * COLUMNS
    table = row_p + sample * stride * count
    neighbours = WIDTH * tl.arange(0, TILE // WIDTH)[None, :]
    each = tl.arange(0, WIDTH)[:, None]
    if EXACT is not None:
        weight, low, high = tl.full((), EXACT[0], TYPE), tl.full((), EXACT[1], TYPE), tl.full((), EXACT[2], TYPE)
    e0, e1, e2, e3 = 0.0, 0.0, 0.0, 0.0
    h0, h1, h2, h3 = 0.0, 0.0, 0.0, 0.0
    if NOISY == "keys" or HOLDS:
        k0, k1 = tl.load(keys_p + 2 * sample).to(tl.uint32), tl.load(keys_p + 2 * sample + 1).to(tl.uint32)
        block = tile * TILE + neighbours + each
        if COUNTED:
            draw += tl.load(counter_p)
        zero = tl.zeros((WIDTH, TILE // WIDTH), tl.uint32)
        low_block, high_block, number = block.to(tl.uint32), (block >> 32).to(tl.uint32), zero + draw.to(tl.uint32)
        if NOISY == "keys":
            w0, w1, w2, w3 = _words(low_block, high_block, number, zero, k0, k1)
            e0, e1 = _normals(w0, w1, TYPE, HALF)
            e2, e3 = _normals(w2, w3, TYPE, HALF)
        if HOLDS:
            w0, w1, w2, w3 = _words(low_block, high_block, number, zero + KNOWN, k0, k1)
            h0, h1 = _normals(w0, w1, TYPE, HALF)
            h2, h3 = _normals(w2, w3, TYPE, HALF)
    for lane in tl.static_range(4):
        begin = (4 * tile + lane) * TILE + neighbours
        mask = begin < size  # neighbours are all inside, or all outside, and what is outside is never stored
        at = sample * size + begin + each
        row = table
        if LEAD == 2:
            row = table + (begin // frame_size) * count
        z = tl.load(z_p + at, mask=mask).to(TYPE)
        y = tl.load(y_p + at, mask=mask).to(TYPE)
        of_z, of_y = _coefficient(row, 0, mask, LEAD), _coefficient(row, 1, mask, LEAD)
        second = 0.0
        if GUIDED or SECOND == "unguided":
            other = tl.load(other_p + at, mask=mask).to(TYPE)
            if GUIDED:
                y += weight * (y - other)
            if GUIDED == 2:
                y *= tl.load(factor_p + sample)
            if SECOND == "unguided":
                second = of_z * z + of_y * other
        x = of_z * z + of_y * y
        if ALONE:
            tl.store(to_x + at, x, mask=mask)
        else:
            if SECOND == "raw":
                second = x
            if CLIPS == "given":
                x = tl.load(x_p + at, mask=mask).to(TYPE)
            elif CLIPS is not None:
                top = high
                if CLIPS == "limits":
                    top = tl.load(x_p + sample)
                    low = -top
                x = tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)
                x = tl.minimum(x, top, propagate_nan=tl.PropagateNan.ALL)
                if CLIPS == "limits":
                    x *= high / top
            past = ()
            for number in tl.static_range(len(memory_p)):
                past += (tl.load(memory_p[number] + at, mask=mask).to(TYPE),)  # type: ignore[assignment]
            if NOISY == "given":
                eps = tl.load(eps_p + at, mask=mask).to(TYPE)
            else:
                eps = e0 if lane == 0 else e1 if lane == 1 else e2 if lane == 2 else e3
            new = _sum(row, 2, z, past, eps, x, second, mask, LEAD, NOISY is not None, SECOND is not None)
            if HOLDS:
                fixed = held_p + sample * stride * 3
                if LEAD == 2:
                    fixed = fixed + (begin // frame_size) * 3
                value = h0 if lane == 0 else h1 if lane == 1 else h2 if lane == 2 else h3
                value = _coefficient(fixed, 0, mask, LEAD) * z + _coefficient(fixed, 2, mask, LEAD) * value
                value += _coefficient(fixed, 1, mask, LEAD) * tl.load(observed_p + at, mask=mask).to(TYPE)
                new = tl.where(tl.load(known_p + at, mask=mask) >= until, value, new)
            tl.store(to_z + at, new.to(to_z.dtype.element_ty), mask=mask)
            for number in tl.static_range(len(to_memory)):
                at_row = 2 + (1 + number) * COLUMNS
                new = _sum(row, at_row, z, past, eps, x, second, mask, LEAD, NOISY is not None, SECOND is not None)
                tl.store(to_memory[number] + at, new.to(to_z.dtype.element_ty), mask=mask)
            if WRITES_X:
                tl.store(to_x + at, x.to(to_z.dtype.element_ty), mask=mask)
# fmt: on
