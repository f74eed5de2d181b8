r"""Adaptive projected guidance (APG): less of the part of the guidance that only makes x-hat larger."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from diffcore import _check
from diffcore._array import Array
from diffcore.guidance._rule import At, Rule, at_most, axes_of, check_over, divided, dot


@dataclass(frozen=True)
class Projected(Rule):
    """Adaptive projected guidance: what `projected` returns, which documents the fields."""

    space: ClassVar[str] = "x"
    parallel: float
    norm: float
    momentum: float = 0.0
    over: tuple[int, ...] | None = None

    def __call__(self, at: At) -> Array:
        """Return the guided prediction."""
        xp, c, d = at.xp, at.c, at.difference
        axes = axes_of(self.over, c)
        if not math.isinf(self.norm):
            d = d * at_most(xp, dot(xp, d, d, axes), self.norm)
        along = divided(xp, dot(xp, d, c, axes), dot(xp, c, c, axes)) * c
        return c + at.weight * (d + (self.parallel - 1.0) * along)


def projected(
    parallel: float = 0.0, *, norm: float = math.inf, momentum: float = 0.0, over: int | tuple[int, ...] | None = None
) -> Projected:
    r"""Return adaptive projected guidance, a `rule` for `classifier_free`, on x-hat.

        d_k = c - u + momentum d_{k-1},    d = d_k min(1, norm / ||d_k||)
        guided = c + w (d - d_c + parallel d_c),    d_c = <d, c> c / ||c||^2

    With momentum, d_k is carried from call to call: `diffcore.sample` does that and saves it in the `State`; where one calls
    the denoiser oneself, use `begin` and `carrying`. Then it must be the outermost wrapper.

    Args:
        parallel: the share of the part of d along c that is kept, eta in the paper; 1 is all.
        norm: the largest norm of d, r in the paper; inf is no limit. It is over all axes but the first, so that it grows with
            the size of a sample.
        momentum: beta in the paper, which takes -0.5 to -0.75; 0 is none.
        over: the axes of norms and inner products; None is all but the first.

    At parallel = 1, norm = inf, momentum = 0 it is classifier-free guidance.

    Raises:
        ValueError: `norm` is not positive, `momentum` is not in (-1, 1), or `parallel` is not finite.

    Source: Sadat et al. 2024 (arXiv 2410.02416), alg. 1.

    >>> import numpy as np, diffcore as dc
    >>> c, u = np.array([[2.0, 0.0]]), np.array([[1.0, -1.0]])
    >>> guided = dc.guidance.classifier_free(
    ...     lambda z, l: c, lambda z, l: u, weight=3.0, rule=projected(), prediction="x")
    >>> guided(np.zeros((1, 2)), 0.0)                      # c - u = (1, 1), of which (1, 0) is along c
    array([[2., 3.]])
    """
    function = "guidance.projected"
    return Projected(
        _check.number(function, "parallel", parallel),
        _check.number(function, "norm", norm, 0, open_low=True, finite=False),
        _check.number(function, "momentum", momentum, -1, 1, open_low=True, open_high=True),
        check_over(function, over),
    )
