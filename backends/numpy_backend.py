"""NumPy: noise and stages by the compiled kernel; everything else is the plain array API code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from diffcore import _streams
from diffcore._array import Array
from diffcore._philox import Region
from diffcore.backends import numpy_noise, numpy_run
from diffcore.backends.generic import ArrayAPIBackend
from diffcore.plan import Form
from diffcore.stage import Run, Source
from diffcore.state import State


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
        form: Form,
        state: State,
        y: Array,
        row: Any,
        noise: Array | Source | None,
        *,
        stochastic: bool,
        transform_x: Callable[[Array], Array] | None,
        other: Array | None = None,
        between: tuple[Any, Any] | None = None,
    ) -> State:
        given = noise if stochastic else False
        found = numpy_run.advance(self, form, state, y, row, given, transform_x, other, between, _same, _same)
        if found is not None:
            return found
        settings: dict[str, Any] = {"transform_x": transform_x, "other": other, "between": between}
        return super().advance(form, state, y, row, noise, stochastic=stochastic, **settings)

    def run(self, run: Run, state: State) -> State:
        reached = numpy_run.run(self, run, state, _same, _same)
        return super().run(run, state) if reached is None else reached


def _same(array: Any) -> Any:
    return array


backend = NumPyBackend(np)
