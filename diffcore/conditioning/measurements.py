"""What may be measured of x: averages over pixels and over frames, and masks of whole frames."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from diffcore import _array
from diffcore._array import Array


@dataclass(frozen=True)
class Downsample:
    """The mean over blocks of pixels: what `downsample` returns."""

    parts: ClassVar = ()
    factor: tuple[int, int]

    def __call__(self, x: Array) -> Array:
        """Return (..., H / f, W / g, C) for x (..., H, W, C)."""
        xp = _array.namespace("conditioning.downsample", x=x)
        f, g = self.factor
        if x.ndim < 3 or x.shape[-3] % f or x.shape[-2] % g:
            raise ValueError(
                f"conditioning.downsample: `x` has shape {tuple(x.shape)}, but takes (..., H, W, C) with H a multiple "
                f"of {f} and W of {g}"
            )
        *lead, height, width, channels = x.shape
        blocks = xp.reshape(x, (*lead, height // f, f, width // g, g, channels))
        return xp.mean(blocks, axis=(-4, -2))

    def spread(self, y: Array) -> Array:
        """Return the least x, (..., H, W, C), that has these means: each pixel of a block has the block's."""
        xp = _array.namespace("conditioning.downsample", y=y)
        f, g = self.factor
        *lead, height, width, channels = y.shape
        blocks = xp.reshape(y, (*lead, height, 1, width, 1, channels))
        whole = xp.broadcast_to(blocks, (*lead, height, f, width, g, channels))
        return xp.reshape(whole, (*lead, height * f, width * g, channels))


def downsample(factor: int | tuple[int, int]) -> Downsample:
    """Return the measurement of super-resolution: the mean over blocks of pixels, (..., H, W, C) -> (..., H/f, W/f, C).

    Args:
        factor: f >= 1, or one for the height and one for the width.

    Raises:
        ValueError: a factor below 1; when called, a size that is no multiple of it.

    Source: Ho et al. 2022 (arXiv 2204.03458), sec. 3.1, spatial super-resolution.

    >>> downsample(2)(np.ones((1, 1, 4, 4, 3))).shape
    (1, 1, 2, 2, 3)
    """
    pair = factor if isinstance(factor, tuple) else (factor, factor)
    return Downsample(tuple(_whole("conditioning.downsample", "factor", n) for n in pair))  # type: ignore[arg-type]


@dataclass(frozen=True)
class FrameAverage:
    """The mean over blocks of frames: what `frame_average` returns."""

    parts: ClassVar = ()
    count: int

    def __call__(self, x: Array) -> Array:
        """Return (B, T / k, ...) for x (B, T, ...)."""
        xp = _array.namespace("conditioning.frame_average", x=x)
        if x.ndim < 2 or x.shape[1] % self.count:
            raise ValueError(
                f"conditioning.frame_average: `x` has shape {tuple(x.shape)}, but takes (B, T, ...) with T a multiple "
                f"of {self.count}"
            )
        batch, frames, *rest = x.shape
        return xp.mean(xp.reshape(x, (batch, frames // self.count, self.count, *rest)), axis=2)

    def spread(self, y: Array) -> Array:
        """Return the least x, (B, T, ...), that has these means: each frame of a block has the block's."""
        xp = _array.namespace("conditioning.frame_average", y=y)
        batch, blocks, *rest = y.shape
        whole = xp.broadcast_to(xp.reshape(y, (batch, blocks, 1, *rest)), (batch, blocks, self.count, *rest))
        return xp.reshape(whole, (batch, blocks * self.count, *rest))


def frame_average(count: int) -> FrameAverage:
    """Return the measurement of a long exposure: the mean over blocks of frames, (B, T, ...) -> (B, T / k, ...).

    Args:
        count: k >= 1 frames a block.

    Raises:
        ValueError: k below 1; when called, a number of frames that is no multiple of it.

    >>> frame_average(4)(np.ones((1, 8, 2, 2, 3))).shape
    (1, 2, 2, 2, 3)
    """
    return FrameAverage(_whole("conditioning.frame_average", "count", count))


def frames(which: Iterable[int] | slice, *, of: int) -> npt.NDArray[np.bool_]:
    """Return the mask of whole frames, (T, 1, 1, 1): it broadcasts to clips (B, T, H, W, C).

    Args:
        which: numbers of the known frames, negative ones from the end, or a slice; none at all is allowed.
        of: T, the number of frames of a clip.

    Raises:
        ValueError: a frame that the clip does not have.

    >>> frames([0, -1], of=4).ravel()
    array([ True, False, False,  True])
    """
    count = _whole("conditioning.frames", "of", of)
    numbers = range(count)[which] if isinstance(which, slice) else list(which)
    for number in numbers:
        if isinstance(number, bool) or not hasattr(number, "__index__") or not -count <= number < count:
            raise ValueError(
                f"conditioning.frames: `which` has {number!r}, but takes numbers of frames in [-{count}, {count})"
            )
    mask = np.zeros((count, 1, 1, 1), dtype=np.bool_)
    mask[list(numbers)] = True
    return mask


def _whole(function: str, argument: str, value: Any) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < 1:
        raise ValueError(f"{function}: `{argument}` is {value!r}, but takes a whole number >= 1")
    return int(value)
