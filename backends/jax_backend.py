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

from diffcore import _known, _streams, sampling
from diffcore._array import Array
from diffcore._philox import Region
from diffcore._threshold import Clip
from diffcore.backends import jax_denoiser, jax_kernel, jax_noise
from diffcore.backends.contract import Draw, Run
from diffcore.backends.generic import ArrayAPIBackend
from diffcore.backends.jax_denoiser import Same
from diffcore.backends.jax_kernel import Carry
from diffcore.sampling import State


class JAXBackend(ArrayAPIBackend):
    """The contract on JAX arrays and tracers."""

    def seeds(self, words: npt.NDArray[np.uint32], like: jax.Array) -> jax.Array:
        words = words if isinstance(words, jax.Array) else np.asarray(words).astype(np.uint32)
        return jnp.asarray(words, dtype=jnp.uint32)

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
    ) -> jax.Array:
        return jax_noise.normal(words, draw, shape, dtype=dtype, device=device, stream=stream, region=region)

    def bits(
        self,
        words: Array,
        draw: Any,
        shape: tuple[int, ...],
        *,
        device: Any = None,
        stream: int = _streams.SAMPLER,
        region: Region | None = None,
    ) -> jax.Array:
        return jax_noise.bits(words, draw, shape, device=device, stream=stream, region=region)

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
            kernel=jax_kernel.serves(state.z, row.shape[:-1]),
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
        kernel = jax_kernel.serves(state.z, run.plan.lead)
        settings = (run.plan.stochastic, kernel)
        weights: list[Any] = []
        if run.callback is not None or not run.compile:
            scan: Callable[..., Carry] = partial(
                _scan, run.denoise, run.transform_x, run.noise, run.callback, *settings
            )
            scan = scan if traced else jax.jit(scan, donate_argnums=donated)
        else:
            weights, denoise = jax_denoiser.split(run.denoise)
            scan = _kept(denoise, Same(run.transform_x), Same(run.noise), *settings, donated)
        turn = jax_kernel.turn if kernel else lambda estimates, _: estimates
        carry = (state.z, state.saved, turn(state.estimates, first + 1))
        z, saved, estimates = scan(carry, weights, state.seeds, table, levels, indices, held, known)
        return State(z, saved, turn(estimates, len(run.plan) + 1), len(run.plan), state.seeds)

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


@partial(jax.jit, static_argnames=("transform_x", "kernel", "carried"))
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
    kernel: bool,
    carried: bool = False,
) -> Carry:
    """One stage, then what is known: `held` is x, which elements, their row, and their noise or the seeds of it.

    With `kernel`, the stage is the CPU kernel's, and what is `carried` through a run has its estimates in slots.
    """
    draw_normal = partial(jax_noise.normal, shape=tuple(z.shape), dtype=z.dtype)
    slots = kernel and carried

    def plain(stage: jax_kernel.Stage) -> Carry:  # of what it is given alone, so that it can be differentiated
        turn = jax_kernel.turn if slots and estimates else lambda estimates, draw: estimates
        eps = stage.eps if stage.seeds is None else draw_normal(stage.seeds, stage.draw)
        state = State(stage.z, stage.saved, turn(stage.estimates, stage.draw), 0, None)
        x = sampling.estimate(stage.z, stage.y, stage.row, transform_x) if stage.x is None else stage.x
        after = sampling.update(state, x, stage.row, eps)
        return after.z, after.saved, turn(after.estimates, stage.draw + 1)

    stage = jax_kernel.Stage(z, saved, estimates, y, None, row, eps, seeds, draw)
    clip = transform_x if type(transform_x) is Clip else None
    if transform_x is not None and clip is None:
        stage = stage._replace(y=None, x=sampling.estimate(z, y, row, transform_x))
    if kernel and jax_kernel.takes(stage):
        after = jax_kernel.stage(plain, stage, clip, slots=slots, over=carried and held is None)
    else:
        after = plain(stage)
    if held is None:
        return after
    known_eps = held[3] if held[4] is None else draw_normal(held[4], draw, stream=_streams.KNOWN)
    fixed: jax.Array = _known.overwrite(after[0], z, held[0], held[1], held[2], known_eps)
    return fixed, after[1], after[2]


def _scan(
    denoise: Any,
    transform_x: Callable[[Array], Array] | None,
    noise: Draw | None,
    callback: Callable[[State], object] | None,
    stochastic: bool,
    kernel: bool,
    carry: Carry,
    weights: list[jax.Array],
    seeds: jax.Array | None,
    table: jax.Array,
    levels: jax.Array,
    indices: jax.Array,
    held: tuple[jax.Array, jax.Array, int] | None,
    known: jax.Array | None,
) -> Carry:
    """Scan the stages; the barriers keep the stage apart from the denoiser, so that its bits do not depend on it.

    `denoise` is the denoiser, or what is left of it without its arrays, the weights.
    """
    denoise = denoise.join(weights) if isinstance(denoise, jax_denoiser.Rest) else denoise

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
        settings = {"transform_x": transform_x, "kernel": kernel, "carried": True}
        after = _stage(*carry, y, row, eps, drawn, index + 1, fixed, **settings)
        after = jax.lax.optimization_barrier(after)
        if callback is not None:

            def tell(z: Any, saved: Any, estimates: tuple[Any, ...], index: Any, seeds: Any) -> None:
                estimates = jax_kernel.turn(estimates, int(index) + 1) if kernel else estimates
                callback(State(z, saved, estimates, index, seeds))

            io_callback(tell, None, *after, index + 1, seeds, ordered=True)
        return after, None

    return jax.lax.scan(body, carry, (table, levels, indices, known))[0]


@lru_cache(maxsize=8)
def _kept(
    denoise: jax_denoiser.Rest, transform_x: Same, noise: Same, stochastic: bool, kernel: bool, donated: tuple[int, ...]
) -> Callable[..., Carry]:
    """Return the compiled run of all denoisers that differ in their arrays alone."""
    kept: Callable[..., Carry] = jax.jit(
        partial(_scan, denoise, transform_x.value, noise.value, None, stochastic, kernel), donate_argnums=donated
    )
    return kept


backend = JAXBackend(jnp)
