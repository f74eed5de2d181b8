"""Captions of moving digits: what a clip shows in words, from the truth behind it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from diffcore.unet3d.digits.data import MovingDigits

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIRECTIONS = ("right", "down right", "down", "down left", "left", "up left", "up", "up right")
"""By eighths of a turn."""

_WHOLE = 1.0 - 1e-6
"""Of a step's length, up to rounding: a step that ends beyond a border and comes back is shorter."""


def captions(truth: MovingDigits) -> list[str]:
    """Return what each clip shows, such as "a three moves up left, then bounces".

    The direction, of eight, is that of the first frames; "then bounces" where the digit meets a border after it. A digit in a
    single frame moves nowhere, and several digits are joined by "and".

    Args:
        truth: of `moving_digits_truth`.

    Returns:
        N texts, for `unet3d.data.captioned(digits.moving_digits(...), ...)` with the same arguments.

    >>> from diffcore.unet3d.digits import moving_digits_truth
    >>> captions(moving_digits_truth(count=3))[1:]
    ['a nine moves left, then bounces', 'a four moves down right, then bounces']
    """
    shown = []
    for labels, positions in zip(truth.labels, truth.positions, strict=True):
        each = [_told(int(label), positions[:, number]) for number, label in enumerate(labels)]
        shown.append(" and ".join(each))
    return shown


def _told(label: int, positions: npt.NDArray[np.float64]) -> str:
    """Return what one digit does: (T, 2), (top, left)."""
    name = f"{'an' if label == 8 else 'a'} {NAMES[label]}"
    steps = np.diff(positions, axis=0)
    if not np.any(steps):
        return name
    whole = np.abs(steps) >= _WHOLE * np.abs(steps).max(axis=0)  # not cut short by a bounce
    first = whole.argmax(axis=0)
    down, right = (steps[first[axis], axis] for axis in (0, 1))
    way = DIRECTIONS[round(np.arctan2(down, right) / (np.pi / 4)) % 8]
    late = np.arange(len(steps))[:, None] > first
    turned = late & ~(whole & (np.sign(steps) == np.sign([down, right])))
    return f"{name} moves {way}{', then bounces' if turned.any() else ''}"
