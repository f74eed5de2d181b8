"""Measurements of x: what a linear one is, averages over pixels and over frames, and masks of frames."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from diffcore import _array, _check
from diffcore._array import Array

AXES = 64
"""The most axes that an array of NumPy can have."""


class Svd(NamedTuple):
    """A singular value decomposition A = U S V^T of one sample, in functions: what `svd()` of a linear measurement returns.

    Fields:
        values: S >= 0, a float, or an array on the host that broadcasts to U^T y by its last axes.
        seen: y -> U^T y.
        into: x -> V^T x, of the shape of U^T y.
        out: c -> V c, of the shape of x.
        aligned: whether U is the identity, so that a mask of y is one of U^T y.
    """

    values: Any
    seen: Callable[[Array], Array]
    into: Callable[[Array], Array]
    out: Callable[[Array], Array]
    aligned: bool


@runtime_checkable
class LinearMeasurement(Protocol):
    """A linear measurement A, the same for each sample: `downsample`, `frame_average`, `linear`, or one of your own.

    With `adjoint` the methods that solve for what was measured need no gradient of A; with `spread` it serves `projection`,
    and with `svd` `ddrm`, `ilvr`, `daps` and `twisted`.
    """

    def __call__(self, x: Array) -> Array:
        """Return y = A x, (B, ...) for x (B, ...)."""

    def adjoint(self, y: Array) -> Array:
        """Return A^T y, of the shape of x."""


@dataclass(frozen=True)
class Downsample:
    """The mean over blocks of pixels: what `downsample` returns."""

    parts: ClassVar = ()
    factor: tuple[int, int]
    axes: tuple[int, int] | None = None

    def __call__(self, x: Array) -> Array:
        """Return the means, (..., H / f, W / g, C) for x (..., H, W, C) unless `axes` says otherwise."""
        function = "conditioning.downsample"
        if self.axes is None and len(x.shape) > 2 and x.shape[-3] <= 4 < x.shape[-1]:
            raise ValueError(
                f"{function}: `x` must be (..., H, W, C), got shape {tuple(x.shape)}, which looks like channels first; give "
                f"axes=(-2, -1) for (..., C, H, W), or axes=(-3, -2) for (..., H, W, C)"
            )
        return _mean(function, x, self._factors(x.ndim))

    def spread(self, y: Array) -> Array:
        """Return the least x that has these means, A^+ y: each pixel of a block has the block's."""
        return _repeat("conditioning.downsample", y, self._factors(y.ndim))

    def adjoint(self, y: Array) -> Array:
        """Return A^T y."""
        return self.spread(y) / (self.factor[0] * self.factor[1])

    def svd(self) -> Svd:
        """Return its decomposition: A A^T is I / (f g)."""
        return _of_means(self, self.factor[0] * self.factor[1])

    def _factors(self, rank: int) -> dict[int, int]:
        return _placed("conditioning.downsample", self.axes or (-3, -2), self.factor, rank)


def downsample(factor: int | tuple[int, int], *, axes: tuple[int, int] | None = None) -> Downsample:
    """Return the measurement of super-resolution: the mean over blocks of pixels, (..., H, W, C) -> (..., H/f, W/f, C).

    Args:
        factor: f >= 1, or one for the height and one for the width.
        axes: those of the height and the width. None is (-3, -2), channels last; (-2, -1) is channels first.

    Raises:
        ValueError: a factor below 1; an axis twice; when called, a size that is no multiple of its factor, an axis that x
            does not have, or, without `axes`, an x that looks like channels first.
        TypeError: `axes` are not two ints.

    Source: Ho et al. 2022 (arXiv 2204.03458), sec. 3.1, spatial super-resolution.

    >>> downsample(2)(np.ones((1, 1, 4, 4, 3))).shape, downsample(2, axes=(-2, -1))(np.ones((1, 1, 3, 4, 4))).shape
    ((1, 1, 2, 2, 3), (1, 1, 3, 2, 2))
    """
    function = "conditioning.downsample"
    pair = factor if isinstance(factor, tuple) else (factor, factor)
    if axes is not None and (not isinstance(axes, tuple) or len(axes) != 2 or not all(map(_is_int, axes))):
        raise _check.error(TypeError, function, "axes", "be two ints, (height, width)", axes)
    return Downsample(tuple(_check.integer(function, "factor", n, 1) for n in pair), axes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class FrameAverage:
    """The mean over blocks of frames: what `frame_average` returns."""

    parts: ClassVar = ()
    count: int
    axis: int = 1

    def __call__(self, x: Array) -> Array:
        """Return the means, (B, T / k, ...) for x (B, T, ...) unless `axis` says otherwise."""
        return _mean("conditioning.frame_average", x, self._factors(x.ndim))

    def spread(self, y: Array) -> Array:
        """Return the least x that has these means, A^+ y: each frame of a block has the block's."""
        return _repeat("conditioning.frame_average", y, self._factors(y.ndim))

    def adjoint(self, y: Array) -> Array:
        """Return A^T y."""
        return self.spread(y) / self.count

    def svd(self) -> Svd:
        """Return its decomposition: A A^T is I / k."""
        return _of_means(self, self.count)

    def _factors(self, rank: int) -> dict[int, int]:
        return _placed("conditioning.frame_average", (self.axis,), (self.count,), rank)


def frame_average(count: int, *, axis: int = 1) -> FrameAverage:
    """Return the measurement of a long exposure: the mean over blocks of frames, (B, T, ...) -> (B, T / k, ...).

    Args:
        count: k >= 1 frames a block.
        axis: that of the frames; 2 for clips (B, C, T, H, W).

    Raises:
        ValueError: k below 1; when called, a number of frames that is no multiple of it, or no such axis.
        TypeError: `axis` or k is not an int.

    >>> frame_average(4)(np.ones((1, 8, 2, 2, 3))).shape
    (1, 2, 2, 2, 3)
    """
    function = "conditioning.frame_average"
    place = _check.integer(function, "axis", axis, None)
    return FrameAverage(_check.count(function, "count", count, 1), place)


def frames(which: Iterable[int] | slice, *, of: int, trailing: int = 3) -> npt.NDArray[np.bool_]:
    """Return a mask of frames, (T, 1, 1, 1): it broadcasts to clips (B, T, H, W, C).

    Args:
        which: numbers of the known frames, negative ones from the end, or a slice; none at all is allowed.
        of: T, the number of frames of a clip.
        trailing: how many axes of the data come after that of the frames: 3 for (B, T, H, W, C), 2 for (B, C, T, H, W),
            1 for (B, T, A), 0 for (B, T).

    Raises:
        ValueError: a frame that the clip does not have; `of` below 1, or `trailing` outside [0, 62].
        TypeError: any of these that is not an int.

    >>> frames([0, -1], of=4).ravel(), frames([0], of=16, trailing=1).shape
    (array([ True, False, False,  True]), (16, 1))
    """
    function = "conditioning.frames"
    count, after = _check.integer(function, "of", of, 1), _check.integer(function, "trailing", trailing, 0, AXES - 2)
    if not isinstance(which, (slice, Iterable)):
        raise _check.error(
            TypeError, function, "which", "be the numbers of frames, or a slice", which, f"such as range({which})"
        )
    if not isinstance(which, slice):
        which = [
            _check.integer(function, "which", number, -count, count - 1, hint=f"the clip has {count} frames")
            for number in which
        ]
    mask = np.zeros((count, *(1,) * after), dtype=np.bool_)
    mask[which] = True
    return mask


def _of_means(measure: Any, count: int) -> Svd:
    """Return the decomposition of means over blocks of `count`, whose rows are orthogonal: S = 1 / sqrt(count), U = I."""
    root = float(count) ** 0.5
    return Svd(1.0 / root, _as_it_is, partial(_times, root, measure), partial(_times, 1.0 / root, measure.spread), True)


def _as_it_is(y: Array) -> Array:
    return y


def _times(factor: float, function: Any, x: Array) -> Array:
    return factor * function(x)


def _placed(function: str, axes: tuple[int, ...], factors: tuple[int, ...], rank: int) -> dict[int, int]:
    """Return axis -> factor, the axes counted from the first, or raise where an array of this rank lacks one."""
    found = {axis % rank: factor for axis, factor in zip(axes, factors, strict=True) if -rank <= axis < rank}
    if len(found) != len(axes):
        raise ValueError(f"{function}: the axes must be {len(axes)} different axes of an array of {rank}, got {axes}")
    return found


def _mean(function: str, x: Array, factors: dict[int, int]) -> Array:
    """Return the means over blocks of `factors[axis]` along each axis."""
    xp = _array.namespace(function, x=x)
    if any(x.shape[axis] % factor for axis, factor in factors.items()):
        raise ValueError(
            f"{function}: the size of `x` must be "
            + " and ".join(f"a multiple of {factor} along axis {axis}" for axis, factor in factors.items())
            + f", got shape {tuple(x.shape)}"
        )
    shape: list[int] = []
    inner: list[int] = []
    for axis, size in enumerate(x.shape):
        shape.append(size // factors.get(axis, 1))
        if axis in factors:
            inner.append(len(shape))
            shape.append(factors[axis])
    return xp.mean(xp.reshape(x, tuple(shape)), axis=tuple(inner))


def _repeat(function: str, y: Array, factors: dict[int, int]) -> Array:
    """Return y with each element `factors[axis]` times along each axis."""
    xp = _array.namespace(function, y=y)
    blocks: list[int] = []
    repeats: list[int] = []
    for axis, size in enumerate(y.shape):
        blocks += [size, 1] if axis in factors else [size]
        repeats += [size, factors[axis]] if axis in factors else [size]
    repeated = xp.broadcast_to(xp.reshape(y, tuple(blocks)), tuple(repeats))
    return xp.reshape(repeated, tuple(size * factors.get(axis, 1) for axis, size in enumerate(y.shape)))


def _is_int(value: Any) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool)
