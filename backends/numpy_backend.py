"""NumPy: noise and stages by the compiled kernel; everything else is the plain array API code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from diffcore import _streams
from diffcore._array import Array
from diffcore._philox import Region
from diffcore.backends import numpy_noise, numpy_run
from diffcore.backends.contract import Draw, Run
from diffcore.backends.generic import ArrayAPIBackend
from diffcore.sampling import State


class NumPyBackend(ArrayAPIBackend):
    """The contract on NumPy arrays."""

    def normal(
        self,
        words: Array,
        draw: Any,
        shape: tuple[int, ...],
        *,
        dtype: Any,
        device: Any = None,
        stream: int = _streams.SAMPLER,
        region: Region | None = None,
    ) -> Array:
        return numpy_noise.normal(words, draw, shape, dtype=dtype, device=device, stream=stream, region=region)

    def bits(
        self,
        words: Array,
        draw: Any,
        shape: tuple[int, ...],
        *,
        device: Any = None,
        stream: int = _streams.SAMPLER,
        region: Region | None = None,
    ) -> Array:
        return numpy_noise.bits(words, draw, shape, device=device, stream=stream, region=region)

    def advance(
        self,
        state: State,
        y: Array,
        row: Any,
        noise: Array | Draw | None,
        *,
        stochastic: bool,
        transform_x: Callable[[Array], Array] | None,
    ) -> State:
        found = numpy_run.advance(self, state, y, row, noise if stochastic else False, transform_x, _same, _same)
        if found is not None:
            return found
        return super().advance(state, y, row, noise, stochastic=stochastic, transform_x=transform_x)

    def run(self, run: Run, state: State) -> State:
        reached = numpy_run.run(self, run, state, _same, _same)
        return super().run(run, state if reached is None else reached)


def _same(array: Any) -> Any:
    return array


backend = NumPyBackend(np)
