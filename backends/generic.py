"""The backend of any library that follows the array API standard: the reference, and the base of the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from diffcore import _array, _philox, stage
from diffcore._array import Array
from diffcore.plan import Form
from diffcore.stage import Run, Source
from diffcore.state import State


class ArrayAPIBackend:
    """The contract of `diffcore.backends.Backend`, in plain array API code and a Python loop.

    Args:
        xp: the array API namespace of the library, such as `array_api_strict` or `cupy`.
    """

    def __init__(self, xp: Any) -> None:
        self.xp = xp
        self.name = _array.name(xp)

    def keys(self, words: npt.NDArray[np.uint32], like: Array) -> Array:
        return words

    def normal(self, *args: Any, **how: Any) -> Array:
        return _philox.normal(self.xp, *args, **how)

    def bits(self, *args: Any, **how: Any) -> Array:
        return _philox.bits(self.xp, *args, **how)

    def index(self, value: int) -> Any:
        return value

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
        with _array.recording(state.z, False):
            eps = self.fresh(state, noise, between) if stochastic else None
            return stage.advance(form, state, y, row, eps, transform_x, other)

    def run(self, run: Run, state: State) -> State:
        levels, rows = stage.levels_of(run, state.z), stage.rows_of(run.coefficients, state.z)
        for at, denoise, level, noisy in stage.turns(run, int(state.index), levels):
            y, other, carried = stage.ask_carrying(run.form, denoise, state.z, level, state.carried)
            after = self.advance(
                run.form,
                state,
                y,
                rows[at],
                run.noise,
                stochastic=noisy,
                transform_x=run.transform_x,
                other=other,
                between=stage.levels_between(run.plan, at),
            )
            state = stage.constrained(self, run.held, state, after, run.noise)
            state = State(*state[:6], carried) if carried else state
            if run.callback is not None:
                run.callback(state)
        return state

    def fresh(self, state: State, noise: Array | Source | None, between: tuple[Any, Any] | None) -> Array:
        """Return the noise of a stage: what is given, or what a source or the keys give."""
        if noise is None or isinstance(noise, Source):
            return stage.drawn(self, state, noise, between)
        return noise

    def cond(
        self, predicate: Array, true: Callable[..., Array], false: Callable[..., Array], *operands: Array
    ) -> Array:
        return true(*operands) if bool(predicate) else false(*operands)

    def repeat(self, times: int, body: Callable[[Any], Any], carry: Any) -> Any:
        for _ in range(times):
            carry = body(carry)
        return carry

    def gradient(self, function: Callable[[Array], Array], z: Array) -> tuple[Array, Callable[[Array], Array]]:
        raise self._without_gradients()

    def jvp(
        self, function: Callable[..., Array], primals: tuple[Array, ...], tangents: tuple[Array, ...]
    ) -> tuple[Array, Array]:
        raise self._without_gradients()

    def _without_gradients(self) -> TypeError:
        return TypeError(
            f"{self.name} arrays carry no gradients, which this needs; use torch or JAX arrays, "
            f"or a method without gradients such as replacement"
        )

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return function

    def trace(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return function
