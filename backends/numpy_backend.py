"""NumPy: noise and stages by the compiled kernel; everything else is the plain array API code."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffcore._array import Array
from diffcore.backends import numpy_noise
from diffcore.backends.generic import ArrayAPIBackend


class NumPyBackend(ArrayAPIBackend):
    """The contract on NumPy arrays."""

    def normal(
        self, words: Array, draw: Any, shape: tuple[int, ...], *, dtype: Any, device: Any = None, stream: int = 0
    ) -> Array:
        return numpy_noise.normal(words, draw, shape, dtype=dtype, device=device, stream=stream)

    def bits(self, words: Array, draw: Any, shape: tuple[int, ...], *, device: Any = None, stream: int = 0) -> Array:
        return numpy_noise.bits(words, draw, shape, device=device, stream=stream)


backend = NumPyBackend(np)
