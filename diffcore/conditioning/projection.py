r"""Projection: x-hat is moved to the nearest x of which the measurement says what was observed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from diffcore import _array
from diffcore._array import Array
from diffcore.conditioning._observed import check, known_of

FUNCTION = "conditioning.projection"


@dataclass(frozen=True, eq=False)
class Projection:
    """What `projection` returns, which documents the fields."""

    parts: ClassVar = ("observed", "mask", "measure", "after")
    observed: Any
    mask: Any
    measure: Any
    after: Callable[[Array], Array] | None

    def __call__(self, x: Array) -> Array:
        """Return x-hat projected, of its shape and dtype."""
        xp = _array.namespace(FUNCTION, x=x)
        x = x if self.after is None else self.after(x)
        found = self.measure(x)
        truth, known = known_of(FUNCTION, self.observed, self.mask, found)
        residual = xp.where(known, truth - found, xp.zeros_like(found))
        moved = self.measure.spread(residual)
        if tuple(moved.shape) != tuple(x.shape):
            raise ValueError(
                f"{FUNCTION}: the `spread` of `measure` returned shape {tuple(moved.shape)} for x of shape "
                f"{tuple(x.shape)}; they must be equal"
            )
        return x + xp.astype(moved, x.dtype, copy=False)


def projection(
    observed: Any, mask: Any = None, *, measure: Any, after: Callable[[Array], Array] | None = None
) -> Projection:
    r"""Return a transform of x-hat that makes it agree with a measurement, without gradients.

        x-hat <- x-hat + A^+ (y - A x-hat)

    Of all x that A maps to y this is the nearest to x-hat: what A sees of it is set, and the rest is the denoiser's. The last
    step of a run returns x-hat, so that A of what is drawn is y, to rounding. Like replacement it is biased: the rest
    does not see what was measured but through the state. It is the way to super-resolution where there are no gradients.

    Args:
        observed: y, floating, broadcasts to the measurement; what is not under the mask is not read.
        mask: booleans, or 0 and 1, that broadcast likewise; true (1) is known. None is everything.
        measure: `downsample(f)` or `frame_average(k)`; or a function A of x with a method `spread` that is A^+, the
            pseudo-inverse of A.
        after: another transform that is applied before, such as `guidance.clip(-1.0, 1.0)`.

    Returns:
        `Projection`, for `transform_x=` of `diffcore.sample` and `step`.

    Raises:
        TypeError: `measure` has no `spread`; something that is no array.
        ValueError: a mask with other numbers than 0 and 1; shapes that do not broadcast; a `spread` of another shape.

    Source: Wang, Yu & Zhang 2023 (arXiv 2212.00490), eq. 11 (range and null space).

    >>> import diffcore as dc, numpy as np
    >>> data, small = dc.exact.Gaussian(np.zeros((1, 2, 2, 1)), 1.0), dc.conditioning.downsample(2)
    >>> sets = dc.conditioning.projection(np.array(0.5), measure=small)
    >>> plan = dc.samplers.ancestral(dc.schedules.Cosine(), steps=8)
    >>> clip = dc.sample(data, plan, shape=(3, 1, 2, 2, 1), seed=7, transform_x=sets)
    >>> small(clip).ravel().round(5)
    array([0.5, 0.5, 0.5], dtype=float32)
    """
    if not callable(measure) or not callable(getattr(measure, "spread", None)):
        raise TypeError(
            f"{FUNCTION}: `measure` is {type(measure).__name__}, but takes downsample(f), frame_average(k), or a function "
            f"of x with a method `spread`, its pseudo-inverse; for others use reconstruction or moment_matching"
        )
    check(FUNCTION, observed, mask)
    return Projection(observed, mask, measure, after)
