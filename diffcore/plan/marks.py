"""Marks of the stages of a plan, by which a state shows which stages it went through."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

MANY = 2**30
FINE = 1e8
"""Marks differ where numbers of the plan differ by more than about 1e-7."""

NEAR = 2
"""By how much the same mark may differ on another machine."""


def table(*arrays: npt.NDArray[np.float64]) -> tuple[int, ...]:
    """Return the marks (stages + 1) before and after every stage, of arrays (stages, ...).

    Each is a sum over the stages so far, continuous in their numbers and rounded last, so that the mark of the same plan made on
    another machine, whose exponentials may round otherwise, is almost the same.

    >>> table(np.array([[0.0], [1.0]]), np.array([[1.0], [np.inf]]))[0]
    0
    """
    rows = np.arctan(np.concatenate([array.reshape(len(array), -1) for array in arrays], axis=1))
    sums = np.cumsum(np.sum(rows * np.cos(np.arange(rows.size)).reshape(rows.shape), axis=1))
    return 0, *np.mod(np.rint(FINE * sums), MANY).astype(int).tolist()


def same(one: int, other: int) -> bool:
    """Return whether two marks differ by no more than rounding."""
    return abs(math.remainder(one - other, MANY)) <= NEAR
