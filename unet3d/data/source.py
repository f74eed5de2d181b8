"""What a source of clips offers, and where its random numbers come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

from diffcore import _check

Float32 = npt.NDArray[np.float32]


class Source(ABC):
    """Clips to train on: how many there are, and one of them, or one frame of it, cut at random.

    Nothing random is kept: what is cut is a function of `index` and of what `rng` says. Data of one's own becomes a
    source by a subclass of this.
    """

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int, int]:
        """(T, H, W, C) of a clip."""

    @property
    @abstractmethod
    def classes(self) -> int | None:
        """How many classes there are, the labels being 0, ..., classes - 1; None without labels."""

    @abstractmethod
    def __len__(self) -> int:
        """Return how many clips there are to cut from: an epoch meets each of them once."""

    @abstractmethod
    def clip(self, index: int, rng: np.random.Generator) -> Float32:
        """Return T consecutive frames of clip `index`, (T, H, W, C) in [-1, 1]."""

    @abstractmethod
    def frame(self, index: int, rng: np.random.Generator) -> Float32:
        """Return one random frame of clip `index`, (H, W, C) in [-1, 1]."""

    @abstractmethod
    def label(self, index: int) -> int | None:
        """Return the class of clip `index`, or None."""

    @property
    def frames(self) -> int:
        """T, how many frames a clip has."""
        return self.shape[0]


def generator(seed: int, stream: int, number: int = 0, part: int = 0) -> np.random.Generator:
    """Return the generator that belongs to these integers in [0, 2^64).

    Philox4x64 with key (seed, stream) and counter (0, 0, part, number): 2^128 draws to each, and no two overlap.
    """
    key = np.array([seed, stream], dtype=np.uint64)
    counter = np.array([0, 0, part, number], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def seed_of(function: str, seed: Any) -> int:
    """Return a seed as an int in [0, 2^64), or raise."""
    return _check.integer(function, "seed", seed, 0, 2**64 - 1)
