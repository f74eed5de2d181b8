"""CUDA: what guidance is multiplied by so that each sample keeps the deviation of its conditional prediction.

One launch reads both predictions once and sums, in float64, what they and the guided prediction differ by from the first element
of the sample, and the squares of that: no square of a float32 number overflows there, a mean that is large beside the deviation
costs no digits, and a sample without deviation has exactly 0. A second launch makes the factors of these sums, which the kernel
of the stage reads. Nothing waits for the device. `diffcore._rescale.factor` is what both are held to.

With TRITON_INTERPRET=1 the kernels run on a CPU, slowly, for tests.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl

BLOCK = 1024
"""Elements that a program adds at once."""
PARTS = 512
"""Programs of a sample at most; how many does not depend on the batch, so neither do the bits of a sample."""


# fmt: off
@triton.jit(do_not_specialize=["parts"])
def _sums(c_p, u_p, to, size, parts, weight, BLOCK: tl.constexpr, EXACT: tl.constexpr):
    """The sums of some elements of one sample: c, c^2, guided, guided^2, less the first element."""
    program = tl.program_id(0).to(tl.int64)
    sample, part = program // parts, program % parts
    c_p, u_p = c_p + sample * size, u_p + sample * size
    first_c, first_u = tl.load(c_p).to(tl.float64), tl.load(u_p).to(tl.float64)
    weight = tl.full((), weight if EXACT is None else EXACT, tl.float64)
    zero = tl.zeros((BLOCK,), tl.float64)
    ones, squares, guided_ones, guided_squares = zero, zero, zero, zero
    for start in range(part * BLOCK, size, parts * BLOCK):
        at = start + tl.arange(0, BLOCK)
        mask = at < size
        c = tl.where(mask, tl.load(c_p + at, mask=mask, other=0.0).to(tl.float64) - first_c, 0.0)
        u = tl.where(mask, tl.load(u_p + at, mask=mask, other=0.0).to(tl.float64) - first_u, 0.0)
        guided = c + weight * (c - u)
        ones += c
        squares += c * c
        guided_ones += guided
        guided_squares += guided * guided
    to += 4 * program
    tl.store(to, tl.sum(ones, axis=0))
    tl.store(to + 1, tl.sum(squares, axis=0))
    tl.store(to + 2, tl.sum(guided_ones, axis=0))
    tl.store(to + 3, tl.sum(guided_squares, axis=0))


@triton.jit(do_not_specialize=["size", "parts"])
def _factors(sums_p, to, size, parts, phi, PARTS: tl.constexpr, EXACT: tl.constexpr):
    """The factor of one sample: phi std(c) / std(guided) + 1 - phi."""
    sample, part = tl.program_id(0).to(tl.int64), tl.arange(0, PARTS)
    mask = part < parts
    sums_p += 4 * (sample * parts + part)
    ones, squares = tl.sum(tl.load(sums_p, mask=mask, other=0.0)), tl.sum(tl.load(sums_p + 1, mask=mask, other=0.0))
    wanted = squares - ones / size * ones
    ones, squares = tl.sum(tl.load(sums_p + 2, mask=mask, other=0.0)), tl.sum(tl.load(sums_p + 3, mask=mask, other=0.0))
    found = squares - ones / size * ones
    phi = tl.full((), phi if EXACT is None else EXACT, tl.float64)
    ratio = tl.where(found > 0.0, tl.sqrt(tl.maximum(wanted, 0.0) / tl.where(found > 0.0, found, 1.0)), 1.0)
    tl.store(to + sample, (phi * ratio + (1.0 - phi)).to(to.dtype.element_ty))
# fmt: on


def factors(c: torch.Tensor, u: torch.Tensor, weight: float, phi: float, dtype: torch.dtype) -> torch.Tensor:
    """Return the factor of each sample of c + weight (c - u), (B,), in the dtype that a stage is computed in.

    Args:
        c, u: the predictions, (B, ...), each in one piece.
        weight, phi: of `guidance.classifier_free(weight=, rescale=)`.
        dtype: float64, where predictions are below 1e150 in size, or float32.
    """
    batch, size = c.shape[0], math.prod(c.shape[1:])
    parts = min(-(-size // (4 * BLOCK)), PARTS)
    sums = torch.empty((batch, parts, 4), dtype=torch.float64, device=c.device)
    to = torch.empty(batch, dtype=dtype, device=c.device)
    exact = [float(number) if dtype == torch.float64 else None for number in (weight, phi)]  # Triton rounds arguments
    how: dict[str, Any] = {"num_warps": 8, "enable_fp_fusion": True}
    with torch.cuda.device_of(c):
        _sums[(batch * parts,)](c, u, sums, size, parts, float(weight), BLOCK=BLOCK, EXACT=exact[0], **how)
        _factors[(batch,)](sums, to, size, parts, float(phi), PARTS=PARTS, EXACT=exact[1], **how)
    return to
