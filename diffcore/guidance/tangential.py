r"""Tangential damping (TCFG): what the unconditional prediction has beside the direction that both share is left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from diffcore._array import Array
from diffcore.guidance._rule import At, Rule, axes_of, check_over, dot


@dataclass(frozen=True)
class Tangential(Rule):
    """Tangential damping: what `tangential` returns, which documents the fields."""

    space: ClassVar[str] = "eps"
    over: tuple[int, ...] | None

    def __call__(self, at: At) -> Array:
        """Return the guided prediction."""
        xp, c, u = at.xp, at.c, at.u
        axes = axes_of(self.over, c)
        half, across = 0.5 * (dot(xp, c, c, axes) - dot(xp, u, u, axes)), dot(xp, c, u, axes)
        one, squared = xp.ones_like(half), half * half + across * across
        some = squared > 0.0  # else no direction is the first, and u stays
        size = xp.sqrt(xp.where(some, squared, one))
        of_u = xp.where(some, 0.5 * (1.0 - half / size), one)
        of_c = xp.where(some, 0.5 * across / size, 0.0 * one)
        return c + at.weight * (c - (of_c * c + of_u * u))


def tangential(*, over: int | tuple[int, ...] | None = None) -> Tangential:
    r"""Return guidance with tangential damping, a `rule` for `classifier_free`, on eps.

        guided = c + w (c - v <v, u>)

    with v the first right singular vector of the two rows c and u, in closed form: with h = (||c||^2 - ||u||^2) / 2 and
    r = sqrt(h^2 + <c, u>^2), v <v, u> = (<c, u> c + (r - h) u) / (2 r).

    Args:
        over: the axes of the inner products; None is all but the first.

    Where u is a multiple of c it is classifier-free guidance.

    Source: Kwon et al. 2025 (arXiv 2503.18137), alg. 1.

    >>> import numpy as np, diffcore as dc
    >>> c, u = np.array([[2.0, 0.0]]), np.array([[0.0, 1.0]])
    >>> guided = dc.guidance.classifier_free(
    ...     lambda z, l: c, lambda z, l: u, weight=3.0, rule=tangential(), prediction="eps")
    >>> guided(np.zeros((1, 2)), 0.0)                      # the first direction is c's, in which u has nothing
    array([[8., 0.]])
    """
    return Tangential(check_over("guidance.tangential", over))
