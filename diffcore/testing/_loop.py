"""A run through `diffcore.sample` and its kin, or through a backend that no entry point declares yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import diffcore as dc
from diffcore import _array, noise, stage
from diffcore._array import Array
from diffcore.backends import Backend, Run
from diffcore.plan import Plan
from diffcore.state import State

Denoise = Callable[[Array, Array], Array]


class Loop:
    """Starts, steps and runs on the library of `like`; with a backend, on that one instead of the one it is served by."""

    def __init__(self, like: Array | None = None, backend: Backend | None = None) -> None:
        self.like = np.zeros((), dtype=np.float64) if like is None else like
        self.backend = backend

    def start(self, plan: Plan, shape: Sequence[int], seed: Any) -> State:
        """Return the state at the start of a run from pure noise."""
        if self.backend is None:
            return dc.start(plan, shape=shape, like=self.like, seed=seed)
        xp, dims = _array.library(self.like), tuple(shape)
        words = self.backend.keys(noise.keys(seed, dims[0]), self.like)
        where = _array.device(self.like)
        eps = _array.widen(xp, self.backend.normal(words, 0, dims, dtype=self.like.dtype, device=where))
        sigma = plan.start.sigma
        sigma = float(sigma) if np.ndim(sigma) == 0 else _array.table_for(np.asarray(sigma), eps)
        z = xp.astype(_array.along("testing", "plan", sigma, eps, xp) * eps, self.like.dtype, copy=False)
        blank = [xp.zeros_like(z) for _ in range(plan.memory + 1)]
        return State(z, tuple(blank[1:]), blank[0], self.backend.index(0), self.backend.index(1), words)

    def step(self, plan: Plan, state: State, y: Array, prediction: str) -> State:
        """Return the state after a stage."""
        if self.backend is None:
            return dc.step(plan, state, y, prediction=prediction)
        at = int(state.index)
        row = stage.row_of(plan.coefficients(prediction), at, state.z)
        return self.backend.advance(plan.form, state, y, row, None, stochastic=plan.noisy[at], transform_x=None)

    def sample(
        self,
        denoise: Denoise,
        plan: Plan,
        state: State,
        prediction: str,
        callback: Callable[[State], Any] | None = None,
    ) -> Array:
        """Return the end of the run that goes on from a state."""
        keep = True if _array.name(_array.library(self.like)) == "jax" else None  # else JAX compiles every run anew
        if self.backend is None:
            return dc.sample(denoise, plan, state, prediction=prediction, callback=callback, compile=keep)
        table = plan.coefficients(prediction)
        return self.backend.run(Run(denoise, plan, table, callback=callback, compile=keep), state).z
