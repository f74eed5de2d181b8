r"""Projection: x-hat is moved to the nearest x of which the measurement says what was observed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from diffcore import _array, _brief, _check
from diffcore._array import Array
from diffcore.conditioning._observed import check, known_of, weigh

FUNCTION = "conditioning.projection"


@dataclass(frozen=True, eq=False)
class Projection:
    """What `projection` returns, which documents the fields."""

    parts: ClassVar = ("observed", "mask", "measure", "after")
    observed: Any
    mask: Any
    measure: Any
    after: Callable[[Array], Array] | None
    __repr__ = _brief.fields

    def __call__(self, x: Array) -> Array:
        """Return x-hat projected, of its shape and dtype."""
        xp = _array.namespace(FUNCTION, x=x)
        x = x if self.after is None else self.after(x)
        found = self.measure(x)
        truth, known = known_of(FUNCTION, self.observed, self.mask, found)
        moved = self.measure.spread(weigh(known, truth - found))
        if tuple(moved.shape) != tuple(x.shape):
            raise ValueError(
                f"{FUNCTION}: `measure.spread` must return the shape of x, {tuple(x.shape)}, got {tuple(moved.shape)}"
            )
        return x + xp.astype(moved, x.dtype, copy=False)


def projection(
    observed: Any, mask: Any = None, *, measure: Any, after: Callable[[Array], Array] | None = None
) -> Projection:
    r"""Return a transform of x-hat that makes it agree with a measurement, without gradients.

        x-hat <- x-hat + A^+ (y - A x-hat)

    Of all x that A maps to y, this is the nearest to x-hat: A x-hat is set to y and nothing else changes. The last step
    of a run returns x-hat, so A of the sample is y, to rounding. Like replacement it is biased: all else depends on the
    measurement only through the state. Use it for super-resolution without gradients.

    Args:
        observed: y, floating, broadcasts to the measurement; entries outside the mask are not read.
        mask: booleans, or weights m in [0, 1], that broadcast likewise; true (1) is known, and with m in between A x-hat goes
            that share of the way to y. None means everything.
        measure: `downsample(f)` or `frame_average(k)`; or a function A of x with a method `spread` that is A^+, the
            pseudo-inverse of A.
        after: another transform, applied before this one, such as `guidance.clip(-1.0, 1.0)`.

    Returns:
        `Projection`, for `transform_x=` of `diffcore.sample` and `step`.

    Raises:
        TypeError: `measure` has no `spread`; `observed` or `mask` is not an array.
        ValueError: a mask with numbers outside [0, 1]; shapes that do not broadcast; a `spread` of another shape.

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
        must = "be downsample(f), frame_average(k), or a function of x with a method `spread`, its pseudo-inverse"
        hint = "for others use reconstruction or moment_matching"
        raise _check.error(TypeError, FUNCTION, "measure", must, measure, hint)
    check(FUNCTION, observed, mask)
    return Projection(observed, mask, measure, after)
