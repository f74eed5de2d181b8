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
from diffcore.backends import jax_noise, jax_order
from diffcore.backends.contract import Draw, Run
from diffcore.backends.generic import ArrayAPIBackend
from diffcore.sampling import State

Carry = tuple[jax.Array, jax.Array | None, tuple[jax.Array, ...]]


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


@partial(jax.jit, static_argnames=("transform_x", "carried"))
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
    carried: bool = False,
) -> Carry:
    """One stage, then what is known: `held` is x, which elements, their row, and their noise or the seeds of it."""
    draw_normal = partial(jax_noise.normal, draw=draw, shape=tuple(z.shape), dtype=z.dtype)
    eps = eps if seeds is None else draw_normal(seeds)
    known_eps = None
    if held is not None:
        known_eps = held[3] if held[4] is None else draw_normal(held[4], stream=_known.STREAM)
    state = State(z, saved, estimates, 0, None)

    def fix(after: jax.Array) -> jax.Array:
        if held is None:
            return after
        fixed: jax.Array = _known.overwrite(after, z, held[0], held[1], held[2], known_eps)
        return fixed

    def plain() -> Carry:
        after = sampling.advance(state, y, row, eps, transform_x)
        return fix(after.z), after.saved, after.estimates

    def in_place() -> Carry:
        return _in_place(state, y, row, eps, draw, fix, transform_x)

    if not carried or z.size < jax_noise.LARGE or (saved is None and not estimates):
        return plain()
    after: Carry = jax.lax.platform_dependent(cpu=in_place, default=plain)
    return after


def _in_place(
    state: State,
    y: jax.Array,
    row: jax.Array,
    eps: jax.Array | None,
    draw: jax.Array,
    fix: Callable[[jax.Array], jax.Array],
    transform_x: Callable[[Array], Array] | None,
) -> Carry:
    """The same where a run goes on in the same memory: x-hat and the saved state apart, the state over the old one, and then
    the rest, each over what is read no more. Left to itself XLA copies all that comes in first.
    """

    def move(after: jax.Array, array: jax.Array) -> jax.Array:
        return jax_order.apart(after, lambda array: array, array)

    x = jax_order.apart(draw, lambda: sampling.estimate(state.z, y, row, transform_x))
    saved = None
    if state.saved is not None:
        saved = jax_order.apart(draw, lambda: jnp.asarray(sampling.update(state, x, row, None).saved))
        row = move(saved, row)
    z = last = fix(sampling.update(state, x, row, eps).z)
    if saved is not None:
        saved = last = move(last, saved)
    estimates: tuple[jax.Array, ...] = ()
    for estimate in reversed((x.astype(z.dtype), *state.estimates)[: len(state.estimates)]):
        last = move(last, estimate)
        estimates = (last, *estimates)
    return z, saved, estimates


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
        after = _stage(*carry, y, row, eps, drawn, index + 1, fixed, transform_x=transform_x, carried=True)
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
