r"""CFG-Zero*: the unconditional velocity is scaled to be nearest to the conditional one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from diffcore import _check, _wrapping
from diffcore._array import Array
from diffcore.guidance._rule import At, Rule, axes_of, check_over, divided, dot


@dataclass(frozen=True)
class ZeroStar(Rule):
    """CFG-Zero*: what `zero_star` returns, which documents the fields."""

    space: ClassVar[str] = "flow"
    zero_below: float | None
    over: tuple[int, ...] | None

    def __call__(self, at: At) -> Array:
        """Return the guided prediction."""
        xp, c, u = at.xp, at.c, at.u
        axes = axes_of(self.over, c)
        nearest = divided(xp, dot(xp, c, u, axes), dot(xp, u, u, axes)) * u
        guided = c + at.weight * (c - nearest)
        if self.zero_below is None:
            return guided
        level = _wrapping.along("guidance.zero_star", at.log_snr, c)
        return xp.where(level < self.zero_below + 0.0 * c, xp.zeros_like(c), guided)


def zero_star(*, zero_below: float | None = None, over: int | tuple[int, ...] | None = None) -> ZeroStar:
    r"""Return CFG-Zero*, a `rule` for `classifier_free`, on the velocity eps - x-hat.

        guided = c + w (c - s u),    s = <c, u> / ||u||^2

    and 0 at the levels with the most noise, so that the first steps do not move the state of a flow.

    Args:
        zero_below: the velocity is 0 at every log-SNR below this one; for the first K stages of a plan it is
            `plan.log_snr[K]`. None is nowhere.
        over: the axes of the inner products; None is all but the first.

    Where u is already nearest to c, <c - u, u> = 0, it is classifier-free guidance; a factor of u changes nothing.

    Raises:
        TypeError: `zero_below` is no number.

    Source: Fan et al. 2025 (arXiv 2503.18886), alg. 1.

    >>> import numpy as np, diffcore as dc
    >>> c, u = np.array([[2.0, 1.0]]), np.array([[4.0, 0.0]])
    >>> guided = dc.guidance.classifier_free(
    ...     lambda z, l: c, lambda z, l: u, weight=3.0, rule=zero_star(), prediction="flow")
    >>> guided(np.zeros((1, 2)), 0.0)                      # s u = (2, 0)
    array([[2., 4.]])
    """
    function = "guidance.zero_star"
    below = None if zero_below is None else _check.number(function, "zero_below", zero_below, finite=False)
    return ZeroStar(below, check_over(function, over))
