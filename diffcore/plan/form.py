"""The form of a plan: how many arrays of memory it has, and which rows only copy. A kernel is compiled for a form."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Second = Literal["unguided", "raw"] | None
"""What a second column of estimates holds: x-hat of the unguided denoiser, or x-hat before `transform_x`."""


class Form(NamedTuple):
    """The properties of a plan that a kernel is compiled for; everything else is in its numbers.

    Fields:
        memory: M, the number of arrays of memory.
        shifted: how many of the last rows only move up at every stage, m_j' = m_{j-1}: their arrays are renamed.
        keeps_x: whether the row before those, the last that is computed, is x-hat itself at every stage.
        second: what a second column of estimates holds, or None.
    """

    memory: int = 0
    shifted: int = 0
    keeps_x: bool = False
    second: Second = None

    @property
    def noise(self) -> int:
        """The column of fresh noise."""
        return self.memory + 1

    @property
    def x(self) -> int:
        """The column of x-hat; that of the second estimate follows."""
        return self.memory + 2

    @property
    def columns(self) -> int:
        """The number of columns of `Plan.update`."""
        return self.memory + 3 + (self.second is not None)

    @property
    def computed(self) -> int:
        """How many rows of memory take arithmetic: the first ones."""
        return self.memory - self.shifted

    @property
    def width(self) -> int:
        """How many coefficients a stage has: two of x-hat, then its rows."""
        return 2 + (1 + self.memory) * self.columns

    @property
    def names(self) -> list[str]:
        """The names of the columns.

        >>> Form(memory=2).names
        ['z', 'm1', 'm2', 'noise', 'x']
        """
        memory = [f"m{at}" for at in range(1, self.memory + 1)]
        second = {None: [], "unguided": ["x unguided"], "raw": ["x raw"]}[self.second]
        return ["z", *memory, "noise", "x", *second]


def form_of(update: npt.NDArray[np.float64], second: Second) -> Form:
    """Return the form of a table (stages, *lead, 1 + M, columns), whose shape is right."""
    memory = update.shape[-2] - 1
    plain = Form(memory, 0, False, second)

    def copies(row: int, column: int) -> bool:
        return bool(np.all(update[..., row, :] == (np.arange(plain.columns) == column)))

    shifted = 0
    while shifted < memory - 1 and copies(memory - shifted, memory - shifted - 1):
        shifted += 1
    return Form(memory, shifted, memory > 0 and copies(memory - shifted, plain.x), second)


def needed(update: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Return (stages + 1, M): which arrays of memory later stages read, before each stage and after the last."""
    stages, memory = update.shape[0], update.shape[-2] - 1
    reads = np.any(update != 0.0, axis=tuple(range(1, update.ndim - 2)))[:, :, 1 : 1 + memory]
    live = np.zeros((stages + 1, memory), dtype=np.bool_)
    for stage in reversed(range(stages)):
        rows = np.concatenate([[True], live[stage + 1]])
        live[stage] = np.any(reads[stage][rows], axis=0)
    return live
