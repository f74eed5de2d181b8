r"""Moving digits: scikit-learn's handwritten digits, gliding and bouncing, made anew from a seed within seconds.

A digit of 8 x 8 is enlarged once, by cubic splines, to two cells a pixel. A frame is what a camera would see of it: a
pixel holds the mean of the digit over its area,

    frame[p, q] = sum_ij R(p; y)_i glyph_ij R(q; x)_j,   R(p; y)_i = |[p, p + 1] and cell i of a digit at y|,

so motion is smooth at any fraction of a pixel and no light is lost on the way. Its corner goes along a straight line
that is folded back into [0, room] at both ends, in each axis alone: an elastic bounce,

    position(t) = room - | (p_0 + v t) mod 2 room  -  room |.

Source: Srivastava et al. 2015 (arXiv 1502.04681), sec. 3.2, for the moving digits; here with digits that any
installation of scikit-learn holds.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from diffcore import _check, _streams
from diffcore.unet3d.data.arrays import Arrays
from diffcore.unet3d.data.source import Float32, generator, seed_of

Split = Literal["train", "test"]
SPLITS = ("train", "test")
TRAIN = 1500
SPEED = (1 / 40, 1 / 12)
"""The least and the greatest speed, in sides of a frame per frame: 0.8 to 2.7 pixels of 32."""

_CELLS = 2  # a pixel, along each axis: enough that a digit is as sharp half way between two pixels as on one
_AT_ONCE = 64  # clips: some 20 MB of them as they are drawn


class MovingDigits(NamedTuple):
    """The truth behind `moving_digits`, for evaluations.

    `images` (N, digits) are indices into `sklearn.datasets.load_digits().images`, `labels` (N, digits) what they show,
    and `positions` (N, T, digits, 2) the (top, left) of each digit's square in pixels.
    """

    images: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    positions: npt.NDArray[np.float64]


def moving_digits(
    *,
    frames: int = 16,
    size: int = 32,
    count: int = 4096,
    split: Split = "train",
    seed: int = 0,
    digits: int = 1,
    digit_size: int | None = None,
) -> Arrays:
    r"""Return a source of handwritten digits that glide at constant speed and bounce off the borders.

    The digits are real: 1797 images by 43 writers, of which 1500 make the clips of "train" and the other 297 those of
    "test". Every clip has its own digit, start, direction and speed (`SPEED`). The first clips of a larger `count` are
    those of a smaller one.

    Args:
        frames: T >= 1.
        size: H = W, in pixels.
        count: N, how many clips.
        split: "train" or "test", which share no image of a digit.
        seed: in [0, 2^64).
        digits: 1, or more that pass over one another, of which a pixel shows the brightest.
        digit_size: side of a digit's square in pixels, from 8 to `size`; half the frame by default.

    Returns:
        `Arrays` over uint8 clips (N, T, size, size, 1), background 0 and so -1. With one digit its class is the label,
        of 10; with more there is none.

    Raises:
        ImportError: scikit-learn is missing.
        TypeError, ValueError: an argument out of its range, an unknown split.

    Source: Srivastava et al. 2015 (arXiv 1502.04681), sec. 3.2.

    >>> source = moving_digits(count=8)
    >>> source.shape, source.classes
    ((16, 32, 32, 1), 10)
    """
    side = _side(frames, size, count, split, seed, digits, digit_size)
    truth = _truth(frames, size, side, count, split, seed, digits)
    shown, which = np.unique(truth.images, return_inverse=True)
    glyphs, which = _glyphs(shown, side), which.reshape(truth.images.shape)
    clips = np.zeros((count, frames, size, size, 1), dtype=np.uint8)
    for first in range(0, count, _AT_ONCE):
        some = slice(first, first + _AT_ONCE)
        for digit in range(digits):
            seen = _render(glyphs[which[some, digit]], truth.positions[some, :, digit], size)
            np.maximum(clips[some, ..., 0], np.rint(255.0 * seen).astype(np.uint8), out=clips[some, ..., 0])
    return Arrays(
        clips, truth.labels[:, 0] if digits == 1 else None, frames=frames, classes=10 if digits == 1 else None
    )


def moving_digits_truth(
    *,
    frames: int = 16,
    size: int = 32,
    count: int = 4096,
    split: Split = "train",
    seed: int = 0,
    digits: int = 1,
    digit_size: int | None = None,
) -> MovingDigits:
    """Return which digits the clips of `moving_digits` with the same arguments show, and where.

    Args:
        frames, size, count, split, seed, digits, digit_size: as in `moving_digits`.

    Returns:
        A `MovingDigits`.

    Raises:
        ImportError: scikit-learn is missing.
        TypeError, ValueError: as `moving_digits`.

    >>> truth = moving_digits_truth(count=8)
    >>> truth.images.shape, truth.positions.shape
    ((8, 1), (8, 16, 1, 2))
    """
    side = _side(frames, size, count, split, seed, digits, digit_size)
    return _truth(frames, size, side, count, split, seed, digits)


def _side(frames: int, size: int, count: int, split: str, seed: int, digits: int, digit_size: int | None) -> int:
    """Raise for an argument out of range; return the side of a digit."""
    function = "digits.moving_digits"
    for argument, value in (("frames", frames), ("count", count), ("digits", digits)):
        _check.integer(function, argument, value, 1)
    _check.integer(function, "size", size, 8)
    if frames * count * digits * size * size > 2**36:
        must = f"be a number of clips, of {frames} frames of {size}x{size}, that take no more than 64 GB"
        raise _check.error(ValueError, function, "count", must, count)
    seed_of(function, seed)
    _check.choice(function, "split", split, SPLITS)
    return max(8, size // 2) if digit_size is None else _check.integer(function, "digit_size", digit_size, 8, size)


def _load() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("digits.moving_digits: needs the digits of scikit-learn; pip install scikit-learn") from error
    found = load_digits()
    return found.images / 16.0, found.target.astype(np.int64)


def _truth(frames: int, size: int, side: int, count: int, split: Split, seed: int, digits: int) -> MovingDigits:
    _, classes = _load()
    # Raw words, and not `permutation`: their stream never changes with the version of NumPy, nor may the split.
    shuffled = np.argsort(generator(0, _streams.GENERATOR_SPLIT).bit_generator.random_raw(classes.size), kind="stable")
    part = shuffled[:TRAIN] if split == "train" else shuffled[TRAIN:]
    drawn = generator(seed, _streams.GENERATOR_DIGITS, SPLITS.index(split)).random((count, digits, 5))
    images = part[(drawn[..., 0] * part.size).astype(np.int64)]
    return MovingDigits(images, classes[images], _positions(drawn[..., 1:], frames, size, side))


def _positions(drawn: npt.NDArray[np.float64], frames: int, size: int, side: int) -> npt.NDArray[np.float64]:
    """Return (N, T, digits, 2) from uniform numbers (N, digits, 4): start along both axes, speed, direction."""
    room = float(size - side)
    speed = size * (SPEED[0] + (SPEED[1] - SPEED[0]) * drawn[..., 2])
    angle = 2.0 * np.pi * drawn[..., 3]
    velocity = np.stack([speed * np.sin(angle), speed * np.cos(angle)], axis=-1)
    straight = room * drawn[..., :2][:, None] + velocity[:, None] * np.arange(frames)[:, None, None]
    return room - np.abs(np.mod(straight, 2.0 * room) - room) if room else np.zeros_like(straight)


def _glyphs(images: npt.NDArray[np.int64], side: int) -> Float32:
    """Return images of digits in cells, (N, cells, cells) from 0 to 1."""
    from scipy.ndimage import zoom

    pixels = _load()[0][images]
    cells = _CELLS * side
    smooth = zoom(pixels, (1, cells / 8, cells / 8), order=3, mode="grid-constant", grid_mode=True)
    clipped: Float32 = np.clip(smooth, 0.0, 1.0).astype(np.float32)
    return clipped


def _render(glyphs: Float32, positions: npt.NDArray[np.float64], size: int) -> Float32:
    """Return the frames (N, T, size, size), from 0 to 1, of one digit a clip: glyphs (N, c, c), positions (N, T, 2)."""
    edges = np.arange(glyphs.shape[-1] + 1) / _CELLS
    pixels = np.arange(size)[:, None]
    start = positions[..., None, None] + edges[:-1]  # of each cell along each axis, (N, T, 2, 1, c)
    seen = np.minimum(start + 1.0 / _CELLS, pixels + 1.0) - np.maximum(start, pixels)
    rows, columns = np.moveaxis(np.maximum(seen, 0.0).astype(np.float32), 2, 0)
    frames: Float32 = rows @ glyphs[:, None] @ np.swapaxes(columns, -1, -2)
    return frames
