"""JAX: a whole run is one trace, a `lax.scan` over the stages of the plan."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.experimental import io_callback
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from diffcore import _array, stage
from diffcore._array import Array
from diffcore._threshold import Clip
from diffcore.backends import jax_denoiser, jax_kernel, jax_noise, jax_pallas, jax_shards
from diffcore.backends.generic import ArrayAPIBackend
from diffcore.backends.jax_denoiser import Rest
from diffcore.backends.jax_kernel import Kind, Made, Stage, ring
from diffcore.plan import Form
from diffcore.stage import Run, Source
from diffcore.state import State

Carry = tuple[jax.Array, tuple[jax.Array, ...], tuple[jax.Array, ...]]
"""What a run carries from stage to stage: z, the memory, in slots where the kernel serves, and what its denoiser carries."""


class Given(NamedTuple):
    """What a caller gives to a run: arrays and denoisers, functions, or what holds some; None where there is nothing."""

    denoise: Any
    transform_x: Any
    noise: Any
    held: Any


class Settings(NamedTuple):
    """What besides its arrays a run is compiled for."""

    form: Form
    stochastic: bool
    kernel: bool
    given: Given
    """What is left of it without its arrays."""


class At(NamedTuple):
    """What a run reads stage by stage."""

    row: Any
    levels: tuple[Any, ...]
    number: Any
    between: tuple[Any, ...] | None
    """The levels from and to, where a source of noise asks."""


class JAXBackend(ArrayAPIBackend):
    """The contract on JAX arrays and tracers."""

    def keys(self, words: npt.NDArray[np.uint32], like: jax.Array) -> jax.Array:
        words = words if isinstance(words, jax.Array) else np.asarray(words).astype(np.uint32)
        return jnp.asarray(words, dtype=jnp.uint32)

    normal = staticmethod(jax_noise.normal)
    bits = staticmethod(jax_noise.bits)

    def advance(
        self,
        form: Form,
        state: State,
        y: jax.Array,
        row: Any,
        noise: jax.Array | Source | None,
        *,
        stochastic: bool,
        transform_x: Callable[[Array], Array] | None,
        other: jax.Array | None = None,
        between: tuple[Any, Any] | None = None,
    ) -> State:
        z, memory = state.z, state.memory
        made = stochastic and noise is None and state.keys is not None
        eps = self.fresh(state, noise, between) if stochastic and not made else None
        if isinstance(row, list):  # jit takes an array of the host faster than it is put on a device
            row = np.asarray(row, np.float32 if _array.is_half(z.dtype) else z.dtype)
        arrays, rest = jax_denoiser.split(transform_x)
        x = None
        if not rest.lasting:  # a function of a caller's own: called as it is, and kept nowhere
            x = stage.transformed(_estimate(z, y, row), z, transform_x)
            arrays, rest = jax_denoiser.split(None)
        read = Stage(z, memory, y, x, other, eps, state.keys if made else None, row, state.draw, state.index)
        kernel = jax_kernel.serves(z, row.shape[:-1])
        found = _by_hand(read, arrays, form=form, rest=rest, kernel=kernel)
        x = found.memory[form.computed - 1] if form.keeps_x else found.x
        return State(found.z, found.memory, x, state.index + 1, state.draw + 1, state.keys)

    def run(self, run: Run, state: State) -> State:
        first, stages, form = _array.known_int(state.index), len(run.plan), run.form
        if first is None:
            raise ValueError(
                "sample: the number of the next stage, `state.index`, must be known where a run is traced, since it says how many "
                "stages are left; go on with dc.step"
            )
        if first >= stages:
            return state
        z, source = state.z, run.noise
        numbers = np.arange(first, stages, dtype=np.int32)
        asks = source is not None and source.takes_levels
        tables = (run.coefficients, run.plan.log_snr, run.plan.next_log_snr)
        row, *between = (_table(table[first:], z) for table in (tables if asks else tables[:1]))
        levels = stage.levels_of(run, z, lambda table, like: [_table(table[first:], like)])
        each = At(row, levels[0], numbers, tuple(between) or None)
        traced = isinstance(z, jax.core.Tracer)
        kernel = jax_kernel.serves(z, run.plan.lead)
        function = None if source is None else source.function
        split = [jax_denoiser.split(part) for part in Given(run.denoise, run.transform_x, function, run.held)]
        arrays = Given(*(found for found, _ in split))
        settings = Settings(form, run.plan.stochastic, kernel, Given(*(rest for _, rest in split)))
        # Never a caller's array, which must stay valid, nor one of a run that is mapped, whose result is of another shape.
        donated = (0,) if run.owned and not traced and _untraced() else ()
        if run.callback is None and run.compile:
            scan = _kept(settings, donated)
        else:
            scan = partial(_scan, settings, run.callback)
            scan = scan if traced else jax.jit(scan, donate_argnums=donated)
        slots = partial(ring, form) if kernel else lambda memory, _: memory
        carry = (z, slots(state.memory, first), state.carried)
        z, memory, carried = scan(carry, arrays, state.keys, state.draw - first, each)
        return State(z, slots(memory, stages), None, stages, state.draw + (stages - first), state.keys, carried)

    def cond(
        self, predicate: Array, true: Callable[..., Array], false: Callable[..., Array], *operands: Array
    ) -> Array:
        return _alone(partial(_choose, true, false), predicate, *operands)

    def repeat(self, times: int, body: Callable[[Any], Any], carry: Any) -> Any:
        return _alone(partial(jax.lax.fori_loop, 0, times, lambda _, carried: body(carried)), carry)

    def gradient(
        self, function: Callable[[jax.Array], jax.Array], z: jax.Array
    ) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
        value, pullback = jax.vjp(function, z)
        return value, lambda cotangent: pullback(cotangent)[0]

    def jvp(
        self, function: Callable[..., jax.Array], primals: tuple[Array, ...], tangents: tuple[Array, ...]
    ) -> tuple[jax.Array, jax.Array]:
        value, tangent = jax.jvp(function, primals, tangents)
        return value, tangent

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return jax.jit(function)

    def trace(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return jax.jit(function)


def _untraced() -> bool:
    """Return whether no transformation is going on, which a function may reach through what it closes over; only a private name
    tells, and where it is missing nothing is donated."""
    clean = getattr(sys.modules["jax._src.core"], "trace_state_clean", None)
    return clean is not None and bool(clean())


def _choose(true: Callable[..., Array], false: Callable[..., Array], predicate: Array, *operands: Array) -> Array:
    return jax.lax.cond(predicate, true, false, *operands)


def _alone(function: Callable[..., Any], *operands: Any) -> Any:
    """Call a function that is a loop or a branch, as a program that goes when it is done.

    JAX keeps the programs of the last 4096 loops that were called outside `jax.jit`; those of functions that are made for one
    call never serve again. The arrays that the function holds are arguments of the program, so that it holds none.
    """
    eager = jax.config.jax_disable_jit  # type: ignore[attr-defined]
    if eager or any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(operands)):
        return function(*operands)
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*operands)
    program = jax.jit(lambda held, leaves: jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, held))(*leaves))
    return jax.tree.unflatten(jax.tree.structure(shapes), program(closed.consts, jax.tree.leaves(operands)))


def _table(table: Any, like: jax.Array) -> Any:
    """Return a table as a run takes it: on the host where it is compiled for one device, which costs a call nothing."""
    if isinstance(like, jax.core.Tracer) or len(like.devices()) > 1 or not isinstance(table, np.ndarray):
        return _array.table_for(table, like)
    return table.astype(np.float32 if _array.is_half(like.dtype) else like.dtype)


@jax.jit
def _estimate(z: jax.Array, y: jax.Array, row: jax.Array) -> jax.Array:
    x: jax.Array = stage.estimate(z, y, row)
    return x


@partial(jax.jit, static_argnames=("form", "rest", "kernel"))
def _by_hand(read: Stage, arrays: list[jax.Array], *, form: Form, rest: Rest, kernel: bool) -> Made:
    """One stage, with a transform of x-hat that is settings and arrays alone."""
    kind = Kind(form, None, slots=False, over=False, tells=not form.keeps_x)
    return _stage(kind, rest.join(arrays), read, kernel)


def _stage(kind: Kind, transform_x: Callable[[Array], Array] | None, read: Stage, kernel: bool) -> Made:
    """One stage: by a kernel where one serves, which clips x-hat itself, and takes one that is transformed otherwise."""
    clip = transform_x if type(transform_x) is Clip else None
    apart = read
    if transform_x is not None and clip is None:
        x = stage.transformed(stage.estimate(read.z, read.y, read.row), read.z, transform_x)
        apart = read._replace(x=x)
    plain = partial(_plain, clip)
    if kernel and jax_kernel.takes(apart):
        return jax_kernel.stage(plain, kind._replace(clip=clip), apart)
    if not kernel and jax_pallas.takes(apart):
        return jax_kernel.stage(plain, kind, apart, **jax_pallas.on(plain, kind))
    return plain(kind, apart)


def _plain(transform_x: Callable[[Array], Array] | None, kind: Kind, read: Stage) -> Made:
    """What the kernel makes, of what is given alone, so that it can be differentiated."""
    form, eps, x = kind.form, read.eps, read.x
    memory = ring(form, read.memory, read.turn) if kind.slots else read.memory
    if read.keys is not None:
        eps = jax_noise.normal(read.keys, read.draw, tuple(read.z.shape), dtype=read.z.dtype, beside=read.z)
    transform = transform_x if x is None else lambda _: x
    state = State(read.z, memory, None, 0, 0, None)
    after = stage.advance(form, state, read.y, read.row, eps, transform, read.other)
    memory = ring(form, after.memory, read.turn + 1) if kind.slots else after.memory
    return Made(after.z, after.x if kind.tells else None, memory)


def _seen(kind: Kind, made: Made, index: Any, draw: Any, keys: Any, carried: Any = ()) -> State:
    """Return the state of a run as a caller sees it."""
    form, memory = kind.form, ring(kind.form, made.memory, index) if kind.slots else made.memory
    return State(made.z, memory, memory[form.computed - 1] if form.keeps_x else made.x, index, draw, keys, carried)


def _scan(
    settings: Settings,
    callback: Callable[[State], object] | None,
    carry: Carry,
    arrays: Given,
    keys: jax.Array | None,
    ahead: Any,
    each: At,
) -> Carry:
    """Scan the stages; the barriers keep a stage apart from the denoiser, so that its bits do not depend on it."""
    form, stochastic, kernel, rests = settings
    denoise, transform_x, function, held = (rest.join(found) for rest, found in zip(rests, arrays, strict=True))
    source = None if function is None else Source(function)
    watched = callback is not None or held is not None
    kind = Kind(form, None, slots=kernel, over=held is None, tells=watched and not form.keeps_x)
    made_here = stochastic and source is None and keys is not None

    def body(carry: Carry, at: At) -> tuple[Carry, None]:
        z, memory, carried = carry
        y, other, carried = stage.ask_carrying(form, denoise, z, at.levels, carried)
        before, eps = _seen(kind, Made(z, None, memory), at.number, at.number + ahead, keys), None
        if stochastic and not made_here:
            eps = stage.drawn(backend, before, source, at.between)
        read = Stage(z, memory, y, None, other, eps, keys if made_here else None, at.row, at.number + ahead, at.number)
        read = jax.lax.optimization_barrier(read)
        made = _stage(kind, transform_x, read, kernel)
        if held is not None:
            before = _seen(kind, Made(read.z, None, read.memory), read.turn, read.draw, keys)
            after = _seen(kind, made, read.turn + 1, read.draw + 1, keys)
            made = made._replace(z=stage.constrained(backend, held, before, after, source).z)
        made = jax.lax.optimization_barrier(made)
        if callback is not None:

            def tell(made: Made, index: Any, draw: Any, keys: Any, carried: Any) -> None:
                callback(_seen(kind, made, int(index), int(draw), keys, carried))

            io_callback(tell, None, made, at.number + 1, at.number + ahead + 1, keys, carried, ordered=True)
        return (made.z, made.memory, carried), None

    after: Carry = jax.lax.scan(body, _varied(carry, (arrays, keys), body, each), each)[0]
    return after


def _varied(carry: Carry, given: Any, body: Callable[..., Any], each: At) -> Carry:
    """Return what is carried in the types that the stages give it: in a `shard_map` it varies over the axes of all it meets."""
    manual = frozenset(jax.sharding.get_abstract_mesh().manual_axes)
    if not manual:
        return carry
    axes = jax_shards.varying((carry, given))
    if axes != manual:
        axes = jax_shards.varying(jax.eval_shape(body, carry, jax.tree.map(lambda table: table[0], each))[0])
    varied: Carry = jax.tree.map(lambda array: jax_shards.vary(array, axes), carry)
    return varied


@lru_cache(maxsize=8)
def _kept(settings: Settings, donated: tuple[int, ...]) -> Callable[..., Carry]:
    """Return the compiled run of all that differ in their arrays alone."""
    kept: Callable[..., Carry] = jax.jit(partial(_scan, settings, None), donate_argnums=donated)
    return kept


backend = JAXBackend(jnp)
