r"""What clips of one moving handwritten digit are judged by: 146 features of look and motion, and figures for a table.

The space is fixed: nothing in it depends on the clips it is given. With brightness b = (x + 1) / 2 cut to [0, 1], each
frame is read as follows.

* The **place** of the digit is the mean of the pixel centres weighted by b^2, in units of the lesser side of the frame (the
  square keeps a faint haze from pulling it to the middle). A black frame has its place in the middle.
* The **window** of half that side round that place is averaged by area to 8 x 8 cells, the size of scikit-learn's
  digits. Its edge cuts through pixels, so that it follows the digit by fractions of a pixel.
* A small **classifier** (64 -> 64 hidden units with ReLU -> 10 digits) gives hidden activations h and a probability p of
  each digit. It is trained on windows of `moving_digits(split="train")`, always the same ones, within about two
  seconds when it is first needed, and has seen no digit of the split "test".

| features of a clip, in this order | how many | times |
|---|---|---|
| look: mean of h over the frames | 64 | 1/2 |
| change: mean of abs(h[t+1] - h[t]) | 64 | 4 |
| place: mean and standard deviation | 2, 2 | 4 |
| velocity, place[t+1] - place[t]: mean, mean of abs, standard deviation | 2, 2, 2 | 20 |
| acceleration, velocity[t+1] - velocity[t]: mean and median of abs | 2, 2 | 20 |
| light inside and outside of the window, 1 = the whole frame is white: mean and standard deviation | 2, 2 | 40 |

The last column brings the rows to sizes that can be compared: over real clips the variances of their features add up to
4.7, 0.15, 0.35, 0.85, 0.03 and 0.11. Any clip of finite numbers has finite features, noise and black frames included.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from diffcore import _array, _check
from diffcore._array import Array
from diffcore.unet3d.digits.captions import DIRECTIONS
from diffcore.unet3d.digits.data import moving_digits

Float64 = npt.NDArray[np.float64]

_CELLS = 8
_HIDDEN = 64
_CLIPS = 8192  # of one frame each: every digit of the split five times, each time elsewhere
_ROUNDS = 40
_AT_ONCE = 256  # clips


class Legibility(NamedTuple):
    """How surely and how rightly the digits of clips are recognised: what `legibility` returns."""

    probability: float
    accuracy: float | None


class _Seen(NamedTuple):
    """What is read off the frames of clips: windows (N, T, 64), places (N, T, 2) and light (N, T, 2), in and outside."""

    windows: Float64
    places: Float64
    light: Float64


def features(clips: Array) -> Float64:
    """Return the features of clips of one moving digit: the table at the head of this module.

    Args:
        clips: (N, T, H, W, 1) of any library, in [-1, 1] with a background of -1; T >= 3. The digit's square is half as
            wide as the lesser side of a frame.

    Returns:
        (N, 146), float64, on the host: what `metrics.frechet_distance(..., features=features)` takes.

    Raises:
        ImportError: scikit-learn is missing; install diffcore[metrics].
        TypeError: no floating array; uint8 clips u take u / 127.5 - 1.
        ValueError: another shape, or values that are not finite.

    >>> from diffcore.unet3d.digits import moving_digits
    >>> features(moving_digits(count=2).clips / 127.5 - 1.0).shape
    (2, 146)
    """
    seen = _see("digits.features", clips, 3)
    hidden, _ = _recognise(seen.windows)
    velocity = np.diff(seen.places, axis=1)
    acceleration = np.abs(np.diff(velocity, axis=1))
    rows = (
        (0.5, hidden.mean(axis=1)),
        (4.0, np.abs(np.diff(hidden, axis=1)).mean(axis=1)),
        (4.0, seen.places.mean(axis=1), seen.places.std(axis=1)),
        (20.0, velocity.mean(axis=1), np.abs(velocity).mean(axis=1), velocity.std(axis=1)),
        (20.0, acceleration.mean(axis=1), np.median(acceleration, axis=1)),
        (40.0, seen.light.mean(axis=1), seen.light.std(axis=1)),
    )
    return np.concatenate([times * part for times, *parts in rows for part in parts], axis=1)


def legibility(clips: Array, labels: npt.ArrayLike | None = None) -> Legibility:
    """Return how legible the digits are: the classifier's largest probability, and how often it is right.

    Args:
        clips: as in `features`, T >= 1.
        labels: (N,) integers from 0 to 9, which digits the clips should show, or None.

    Returns:
        `Legibility(probability, accuracy)`: the largest of the ten probabilities, mean over all frames; and the fraction of
        clips whose probabilities, mean over their frames, are largest for the label, or None without labels.

    Raises:
        ImportError, TypeError, ValueError: as `features`; labels that do not fit.

    >>> from diffcore.unet3d.digits import moving_digits
    >>> real = moving_digits(count=32)
    >>> found = legibility(real.clips / 127.5 - 1.0, real.labels)
    >>> found.probability > 0.9, found.accuracy > 0.9
    (True, True)
    """
    function = "digits.legibility"
    _, probability = _recognise(_see(function, clips, 1).windows)
    sure = float(probability.max(axis=-1).mean())
    if labels is None:
        return Legibility(sure, None)
    given = _array.to_host(labels, function=function, argument="labels")
    if given.shape != probability.shape[:1]:
        raise _check.error(ValueError, function, "labels", f"be one digit a clip, {probability.shape[:1]}", given)
    return Legibility(sure, float(np.mean(probability.mean(axis=1).argmax(axis=-1) == given)))


def identity_held(clips: Array) -> float:
    """Return how far clips keep their digit: the fraction of frames taken for the digit that most frames of the clip are.

    Args:
        clips: as in `features`, T >= 1.

    Returns:
        A float from about 1 / min(T, 10), chance, to 1.

    Raises:
        ImportError, TypeError, ValueError: as `features`.

    >>> from diffcore.unet3d.digits import moving_digits
    >>> identity_held(moving_digits(count=8).clips / 127.5 - 1.0) > 0.95
    True
    """
    _, probability = _recognise(_see("digits.identity_held", clips, 1).windows)
    votes = np.eye(probability.shape[-1])[probability.argmax(axis=-1)].sum(axis=1)
    return float(np.mean(votes.max(axis=-1) / probability.shape[1]))


def speed(clips: Array) -> float:
    """Return the mean speed of the digits: |place[t+1] - place[t]|, in sides of the frame per frame.

    Args:
        clips: as in `features`, T >= 2.

    Raises:
        TypeError, ValueError: as `features`.

    >>> from diffcore.unet3d.digits import moving_digits
    >>> 1 / 40 < speed(moving_digits(count=8).clips / 127.5 - 1.0) < 1 / 12
    True
    """
    places = _see("digits.speed", clips, 2).places
    return float(np.linalg.norm(np.diff(places, axis=1), axis=-1).mean())


def straightness(clips: Array) -> float:
    """Return how unevenly the digits move: the median of abs(acceleration), in sides of the frame per frame squared.

    0 is a straight line at constant speed, or no motion: read it beside `speed`. The median is over the frames of a clip,
    along each axis alone, and leaves out bounces, of which a clip has few; then the mean is taken over axes and clips.

    Args:
        clips: as in `features`, T >= 3.

    Raises:
        TypeError, ValueError: as `features`.

    >>> from diffcore.unet3d.digits import moving_digits
    >>> straightness(moving_digits(count=8).clips / 127.5 - 1.0) < 1e-3
    True
    """
    places = _see("digits.straightness", clips, 3).places
    return float(np.median(np.abs(np.diff(places, n=2, axis=1)), axis=1).mean())


def directions(clips: Array) -> npt.NDArray[np.str_]:
    """Return where the digits move at first, in the words of `captions`: "right", "down right", and so on by eighths of a turn.

    Along each axis the digit has the median of abs(velocity), which a bounce leaves as it is, and the sign of its first step
    of at least half of that.

    Args:
        clips: as in `features`, T >= 3.

    Returns:
        (N,) words. Those of a clip without motion mean nothing.

    Raises:
        TypeError, ValueError: as `features`.

    >>> from diffcore.unet3d.digits import captions, moving_digits, moving_digits_truth
    >>> captions(moving_digits_truth(count=3))
    ['an eight moves down right, then bounces', 'a nine moves left, then bounces', 'a four moves down right, then bounces']
    >>> directions(moving_digits(count=3).clips / 127.5 - 1.0).tolist()
    ['down right', 'left', 'down right']
    """
    velocity = np.diff(_see("digits.directions", clips, 3).places, axis=1)
    size = np.median(np.abs(velocity), axis=1)
    first = (np.abs(velocity) >= 0.5 * size[:, None]).argmax(axis=1)
    down, right = (np.sign(np.take_along_axis(velocity, first[:, None], axis=1)[:, 0]) * size).T
    eighths = np.rint(np.arctan2(down, right) / (np.pi / 4)).astype(np.int64) % 8
    found: npt.NDArray[np.str_] = np.array(DIRECTIONS)[eighths]
    return found


def _see(function: str, clips: Array, least: int) -> _Seen:
    _array.check_floating(function, clips=clips)
    shape = tuple(getattr(clips, "shape", ()))
    if len(shape) != 5 or shape[-1] != 1 or 0 in shape or shape[1] < least:
        raise _check.error(ValueError, function, "clips", f"have shape (N, T, H, W, 1) with T >= {least}", clips)
    ends = ((first, min(first + _AT_ONCE, shape[0])) for first in range(0, shape[0], _AT_ONCE))
    parts = [_see_some(function, clips[first:end, ...]) for first, end in ends]
    return _Seen(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _see_some(function: str, clips: Any) -> _Seen:
    host = _array.to_host(clips, np.float64, function=function, argument="clips", finite=True)
    n, t, height, width, _ = host.shape
    bright = np.clip((host.reshape(n * t, height, width) + 1.0) / 2.0, 0.0, 1.0)
    weight = bright**2
    total = weight.sum(axis=(1, 2))
    y, x = (
        np.where(
            total > 0.0, weight.sum(axis=axis) @ (np.arange(side) + 0.5) / np.where(total > 0.0, total, 1.0), side / 2
        )
        for axis, side in ((2, height), (1, width))
    )
    side = min(height, width)
    cell = side / 2 / _CELLS
    rows, columns = (_overlap(centre - side / 4, cell, pixels) for centre, pixels in ((y, height), (x, width)))
    light = rows @ bright @ np.swapaxes(columns, 1, 2)  # of each cell, in pixels
    inside = light.sum(axis=(1, 2))
    outside = bright.sum(axis=(1, 2)) - inside
    return _Seen(
        (light / cell**2).reshape(n, t, _CELLS**2),
        (np.stack([y, x], axis=-1) / side).reshape(n, t, 2),
        (np.stack([inside, outside], axis=-1) / (height * width)).reshape(n, t, 2),
    )


def _overlap(start: Float64, cell: float, pixels: int) -> Float64:
    """Return the length that each cell of a window shares with each pixel along one axis, (frames, cells, pixels)."""
    low = (start[:, None] + cell * np.arange(_CELLS))[:, :, None]
    pixel = np.arange(pixels)
    shared: Float64 = np.maximum(np.minimum(low + cell, pixel + 1) - np.maximum(low, pixel), 0.0)
    return shared


def _recognise(windows: Float64) -> tuple[Float64, Float64]:
    """Return hidden activations (N, T, 64) and probabilities (N, T, 10) of windows."""
    classifier = _classifier()
    flat = windows.reshape(-1, windows.shape[-1])
    hidden = np.maximum(flat @ classifier.coefs_[0] + classifier.intercepts_[0], 0.0)
    probability = classifier.predict_proba(flat)
    return hidden.reshape(*windows.shape[:2], -1), probability.reshape(*windows.shape[:2], -1)


@functools.cache
def _classifier() -> Any:
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPClassifier
    except ImportError as error:
        raise ImportError("digits.features: needs scikit-learn; install diffcore[metrics]") from error
    seen = moving_digits(frames=1, size=32, count=_CLIPS, split="train", seed=0)
    windows = _see("digits.features", seen.clips / 127.5 - 1.0, 1).windows[:, 0]
    network = MLPClassifier((_HIDDEN,), alpha=0.1, learning_rate_init=3e-3, max_iter=_ROUNDS, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the rounds are counted, so that they are always the same
        return network.fit(windows, seen.labels)
