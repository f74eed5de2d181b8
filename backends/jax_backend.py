"""JAX: a whole run is one trace, a `lax.scan` over the stages of the plan."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.experimental import io_callback

from diffcore import _known, sampling
from diffcore._array import Array
from diffcore.backends import jax_noise
from diffcore.backends.contract import Draw, Run
from diffcore.backends.generic import ArrayAPIBackend
from diffcore.sampling import State


class JAXBackend(ArrayAPIBackend):
    """The contract on JAX arrays and tracers."""

    def seeds(self, words: npt.NDArray[np.uint32], like: jax.Array) -> jax.Array:
        return jnp.asarray(words, dtype=jnp.uint32)

    def normal(
        self, words: Array, draw: Any, shape: tuple[int, ...], *, dtype: Any, device: Any = None, stream: int = 0
    ) -> jax.Array:
        return jax_noise.normal(words, draw, shape, dtype=dtype, device=device, stream=stream)

    def bits(
        self, words: Array, draw: Any, shape: tuple[int, ...], *, device: Any = None, stream: int = 0
    ) -> jax.Array:
        return jax_noise.bits(words, draw, shape, device=device, stream=stream)

    def traces(self, index: Any) -> bool:
        return isinstance(index, jax.core.Tracer)

    def advance(
        self,
        state: State,
        y: jax.Array,
        row: Any,
        noise: jax.Array | Draw | None,
        *,
        stochastic: bool,
        transform_x: Callable[[Array], Array] | None,
    ) -> State:
        eps = sampling.draw_noise(self, state, noise) if stochastic and noise is not None else None
        drawn = stochastic and noise is None
        row = sampling.table_for(np.asarray(row), state.z) if isinstance(row, list) else row
        z, saved, estimates = _stage(
            state.z,
            state.saved,
            state.estimates,
            y,
            row,
            eps,
            state.seeds if drawn else None,
            state.index + 1,
            transform_x=transform_x,
        )
        return State(z, saved, estimates, state.index + 1, state.seeds)

    def run(self, run: Run, state: State) -> State:
        first = int(state.index)
        if first >= len(run.plan):
            return state
        table = sampling.table_for(run.coefficients[first:], state.z)
        levels = sampling.levels_for(run.plan, state.z)[first:]
        indices = jnp.arange(first, len(run.plan), dtype=jnp.int32)
        held, known = None, None
        if run.held is not None:
            held = (run.held.x, run.held.known, len(run.plan))
            known = sampling.table_for(run.held.rows[first + 1 :], state.z)
        traced = isinstance(state.z, jax.core.Tracer)
        donated = (0,) if run.owned and not traced else ()  # never a caller's array, which must stay valid
        if run.callback is not None or not run.compile:
            scan: Callable[..., Carry] = partial(
                _scan, run.denoise, run.transform_x, run.noise, run.callback, run.plan.stochastic
            )
            scan = scan if traced else jax.jit(scan, donate_argnums=donated)
        else:
            scan = _kept(_ById(run.denoise), _ById(run.transform_x), _ById(run.noise), run.plan.stochastic, donated)
        carry = (state.z, state.saved, state.estimates)
        z, saved, estimates = scan(carry, state.seeds, table, levels, indices, held, known)
        return State(z, saved, estimates, len(run.plan), state.seeds)

    def cond(
        self, predicate: Array, true: Callable[..., Array], false: Callable[..., Array], *operands: Array
    ) -> Array:
        return jax.lax.cond(predicate, true, false, *operands)

    def repeat(self, times: int, body: Callable[[Any], Any], carry: Any) -> Any:
        return jax.lax.fori_loop(0, times, lambda _, carried: body(carried), carry)

    def gradient(
        self, function: Callable[[jax.Array], jax.Array], z: jax.Array
    ) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
        value, pullback = jax.vjp(function, z)
        return value, lambda cotangent: pullback(cotangent)[0]

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return jax.jit(function)

    def trace(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return jax.jit(function)


@partial(jax.jit, static_argnames="transform_x")
def _stage(
    z: jax.Array,
    saved: jax.Array | None,
    estimates: tuple[jax.Array, ...],
    y: jax.Array,
    row: jax.Array,
    eps: jax.Array | None,
    seeds: jax.Array | None,
    draw: Any,
    held: tuple[Any, ...] | None = None,
    *,
    transform_x: Callable[[Array], Array] | None,
) -> tuple[jax.Array, jax.Array | None, tuple[jax.Array, ...]]:
    """One stage, then what is known: `held` is x, which elements, their row, and their noise or the seeds of it."""
    if seeds is not None:
        eps = jax_noise.normal(seeds, draw, tuple(z.shape), dtype=z.dtype)
    after = sampling.advance(State(z, saved, estimates, 0, None), y, row, eps, transform_x)
    if held is None:
        return after.z, after.saved, after.estimates
    x, known, known_row, known_eps, known_seeds = held
    if known_seeds is not None:
        known_eps = jax_noise.normal(known_seeds, draw, tuple(z.shape), dtype=z.dtype, stream=_known.STREAM)
    return _known.overwrite(after.z, z, x, known, known_row, known_eps), after.saved, after.estimates


Carry = tuple[jax.Array, jax.Array | None, tuple[jax.Array, ...]]


def _scan(
    denoise: Callable[..., Array],
    transform_x: Callable[[Array], Array] | None,
    noise: Draw | None,
    callback: Callable[[State], object] | None,
    stochastic: bool,
    carry: Carry,
    seeds: jax.Array | None,
    table: jax.Array,
    levels: jax.Array,
    indices: jax.Array,
    held: tuple[jax.Array, jax.Array, int] | None,
    known: jax.Array | None,
) -> Carry:
    """Scan the stages; the barriers keep the stage apart from the denoiser, so that its bits do not depend on it."""

    def body(carry: Carry, stage: tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]) -> tuple[Carry, None]:
        row, level, index, known_row = stage
        y = denoise(carry[0], level)
        sampling.check_prediction(y, carry[0])
        eps = sampling.draw_noise(None, State(*carry, index, None), noise) if stochastic and noise is not None else None
        drawn = seeds if stochastic and noise is None else None
        fixed = None
        if held is not None:
            x, mask, stages = held
            known_eps = None if noise is None else _known.draw(None, State(*carry, 0, None), noise, index + 1, stages)
            fixed = (x, mask, known_row, known_eps, seeds if noise is None else None)
        carry, y, row, index, fixed = jax.lax.optimization_barrier((carry, y, row, index, fixed))
        after = _stage(*carry, y, row, eps, drawn, index + 1, fixed, transform_x=transform_x)
        after = jax.lax.optimization_barrier(after)
        if callback is not None:
            tell = lambda *parts: (callback(State(*parts)), None)[1]  # noqa: E731
            io_callback(tell, None, *after, index + 1, seeds, ordered=True)
        return after, None

    return jax.lax.scan(body, carry, (table, levels, indices, known))[0]


class _ById:
    """A callable as a key: equal only to itself, whatever its own equality says."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ById) and self.value is other.value


@lru_cache(maxsize=8)
def _kept(
    denoise: _ById, transform_x: _ById, noise: _ById, stochastic: bool, donated: tuple[int, ...]
) -> Callable[..., Carry]:
    kept: Callable[..., Carry] = jax.jit(
        partial(_scan, denoise.value, transform_x.value, noise.value, None, stochastic), donate_argnums=donated
    )
    return kept


backend = JAXBackend(jnp)
