"""The backend of any library that follows the array API standard: the reference, and the base of the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from diffcore import _array, _known, _philox, _streams, sampling
from diffcore._array import Array
from diffcore._philox import Region
from diffcore.backends.contract import Draw, Run
from diffcore.sampling import State


class ArrayAPIBackend:
    """The contract of `diffcore.backends.Backend`, in plain array API code and a Python loop.

    Args:
        xp: the array API namespace of the library, such as `array_api_strict` or `cupy`.
    """

    def __init__(self, xp: Any) -> None:
        self.xp = xp
        self.name = _array.name(xp)

    def seeds(self, words: npt.NDArray[np.uint32], like: Array) -> Array:
        return words

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
        return _philox.normal(self.xp, words, draw, shape, dtype=dtype, device=device, stream=stream, region=region)

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
        return _philox.bits(self.xp, words, draw, shape, device=device, stream=stream, region=region)

    def index(self, value: int) -> Any:
        return value

    def traces(self, index: Any) -> bool:
        return False

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
        drawn = sampling.draw_noise(self, state, noise) if stochastic else None
        return sampling.advance(state, y, row, drawn, transform_x)

    def run(self, run: Run, state: State) -> State:
        at = sampling.levels_for(run.plan, state.z)
        for stage in range(int(state.index), len(run.plan)):
            denoise = run.denoise.at(run.plan.log_snr[stage]) if hasattr(run.denoise, "at") else run.denoise
            y = denoise(state.z, at[stage, ...])
            sampling.check_prediction(y, state.z)
            state = self.finish(run, state, y, stage, run.noise)
        return state

    def finish(self, run: Run, state: State, y: Array, stage: int, noise: Array | Draw | None) -> State:
        """Return the state after a stage whose prediction is there, with what is known set and the callback called."""
        row, noisy = sampling.row_for(run.coefficients[stage], state.z)
        after = self.advance(state, y, row, noise, stochastic=noisy, transform_x=run.transform_x)
        if run.held is not None:
            after = _known.after(self, run.held, state, after, run.noise)
        if run.callback is not None:
            run.callback(after)
        return after

    def cond(
        self, predicate: Array, true: Callable[..., Array], false: Callable[..., Array], *operands: Array
    ) -> Array:
        return true(*operands) if bool(predicate) else false(*operands)

    def repeat(self, times: int, body: Callable[[Any], Any], carry: Any) -> Any:
        for _ in range(times):
            carry = body(carry)
        return carry

    def gradient(self, function: Callable[[Array], Array], z: Array) -> tuple[Array, Callable[[Array], Array]]:
        raise TypeError(
            f"{self.name} arrays carry no gradients, which this needs; use torch or JAX arrays, "
            f"or a method without gradients such as replacement"
        )

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return function

    def trace(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return function
