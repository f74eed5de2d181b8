"""The factor that brings the deviation of a guided prediction back to that of the conditional one."""

from __future__ import annotations

from typing import Any

from diffcore._array import Array


def factor(xp: Any, guided: Array, c: Array, phi: float) -> Array:
    """Return phi std(c) / std(guided) + 1 - phi of each sample, (B, 1, ...), the deviations over all axes but the first.

    The ratio is 1 where guided has no deviation.

    Source: Lin et al. 2023 (arXiv 2305.08891), eq. 15-16.
    """
    axes = tuple(range(1, guided.ndim))
    centred = [part - xp.mean(part, axis=axes, keepdims=True) for part in (c, guided)]
    top = xp.max(xp.maximum(*(xp.abs(part) for part in centred)), axis=axes, keepdims=True)
    zero, one = xp.zeros_like(top), xp.ones_like(top)
    top = xp.where(top > 0, top, one)  # a unit in which no square overflows
    wanted, found = (xp.mean((part / top) ** 2, axis=axes, keepdims=True) for part in centred)
    # the square root has no slope at 0, so it is not taken there
    positive, some = found > 0, (found > 0) & (wanted > 0)
    ratio = xp.sqrt(xp.where(some, wanted, one) / xp.where(some, found, one))
    ratio = xp.where(some, ratio, xp.where(positive, zero, one))
    return phi * ratio + (1.0 - phi)
