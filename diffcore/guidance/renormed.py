r"""CFGNorm: guided predictions are scaled back to the norm of the conditional one."""

from __future__ import annotations

from dataclasses import dataclass

from diffcore import _check, predictions
from diffcore._array import Array
from diffcore.guidance._rule import At, Rule, axes_of, check_over, dot


@dataclass(frozen=True)
class Renormed(Rule):
    """CFGNorm: what `renormed` returns, which documents the fields."""

    low: float
    high: float
    over: tuple[int, ...] | None
    space: str  # type: ignore[misc]

    def __call__(self, at: At) -> Array:
        """Return the guided prediction."""
        xp, c = at.xp, at.c
        axes = axes_of(self.over, c)
        guided = c + at.weight * at.difference
        wanted, found = dot(xp, c, c, axes), dot(xp, guided, guided, axes)
        one = xp.ones_like(found)
        some = (wanted > 0.0) & (found > 0.0)  # the square root has no slope at 0
        ratio = xp.sqrt(xp.where(some, wanted, one) / xp.where(some, found, one))
        ratio = xp.where(found > 0.0, xp.where(wanted > 0.0, ratio, 0.0 * one), one)
        return guided * xp.minimum(xp.maximum(ratio, self.low * one), self.high * one)


def renormed(
    *, low: float = 0.0, high: float = 1.0, over: int | tuple[int, ...] | None = None, space: str = "x"
) -> Renormed:
    r"""Return CFGNorm, or CFG with renormalisation, a `rule` for `classifier_free`.

        guided = g min(max(||c|| / ||g||, low), high),    g = c + w (c - u)

    Args:
        low, high: limits of the ratio, 0 <= low <= high; high = inf always gives g the norm of c, low = high = 1 is
            classifier-free guidance.
        over: the axes of the norms: None is all but the first, a norm of each sample; -1 one of each pixel or token.
        space: what is scaled: "x", "eps", "v" or "flow". ComfyUI's node CFGNorm has over=-1 on "x"; the pipelines of Qwen-Image
            have over=-1, high=inf on "flow".

    Raises:
        ValueError: limits out of order, or an unknown `space`.

    Source: Deng et al. 2025 (arXiv 2505.14683), CFG-Renorm; ComfyUI, nodes_cfg.py, CFGNorm.

    >>> import numpy as np, diffcore as dc
    >>> c, u = np.array([[3.0, 4.0]]), np.array([[0.0, 0.0]])
    >>> guided = dc.guidance.classifier_free(
    ...     lambda z, l: c, lambda z, l: u, weight=1.0, rule=renormed(low=0.8), prediction="x")
    >>> guided(np.zeros((1, 2)), 0.0)                      # g = (6, 8), the ratio 0.5
    array([[4.8, 6.4]])
    """
    function = "guidance.renormed"
    least = _check.number(function, "low", low, 0)
    most = _check.number(function, "high", high, least, finite=False)
    predictions.row_function(function, "space", space)
    return Renormed(least, most, check_over(function, over), space)
