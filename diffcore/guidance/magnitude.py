r"""Magnitude-aware guidance (MAMBO-G): the weight falls where guidance is large beside the prediction itself."""

from __future__ import annotations

from dataclasses import dataclass

from diffcore import _check, predictions
from diffcore._array import Array
from diffcore.guidance._rule import At, Rule, axes_of, check_over, divided, dot


@dataclass(frozen=True)
class Magnitude(Rule):
    """Magnitude-aware guidance: what `magnitude` returns, which documents the fields."""

    rate: float
    over: tuple[int, ...] | None
    space: str  # type: ignore[misc]

    def __call__(self, at: At) -> Array:
        """Return the guided prediction."""
        xp, d, u = at.xp, at.difference, at.u
        axes = axes_of(self.over, u)
        squared = divided(xp, dot(xp, d, d, axes), dot(xp, u, u, axes))
        some = squared > 0.0  # the square root has no slope at 0
        ratio = xp.where(some, xp.sqrt(xp.where(some, squared, xp.ones_like(squared))), 0.0 * squared)
        return at.c + at.weight * xp.exp(-self.rate * ratio) * d


def magnitude(rate: float = 8.0, *, over: int | tuple[int, ...] | None = None, space: str = "flow") -> Magnitude:
    r"""Return magnitude-aware guidance, a `rule` for `classifier_free`.

        guided = c + w exp(-rate ||c - u|| / ||u||) (c - u)

    Args:
        rate: alpha in the paper, at least 0; at 0 it is classifier-free guidance.
        over: the axes of the norms; None is all but the first.
        space: what the norms are of: "x", "eps", "v" or "flow".

    Raises:
        ValueError: `rate` is negative or not finite, or an unknown `space`.

    Source: Zhu et al. 2025 (arXiv 2508.03442).

    >>> import numpy as np, diffcore as dc
    >>> c, u = np.array([[3.0, 0.0]]), np.array([[2.0, 0.0]])
    >>> guided = dc.guidance.classifier_free(
    ...     lambda z, l: c, lambda z, l: u, weight=1.0, rule=magnitude(2.0), prediction="flow")
    >>> guided(np.zeros((1, 2)), 0.0).round(4)             # 3 + e^{-2 / 2}
    array([[3.3679, 0.    ]])
    """
    function = "guidance.magnitude"
    predictions.row_function(function, "space", space)
    return Magnitude(_check.number(function, "rate", rate, 0), check_over(function, over), space)
