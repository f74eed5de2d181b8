"""The CPU's compiled kernel (cpu_kernel.c) in a JAX program: a stage reads and writes each array once, in place in a run.

Left to itself XLA writes one array a loop, so that what a stage makes twice is computed twice, copies what a scan carries, and
contracts a * b + c where it fuses. The kernel's bits are those of NumPy.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffcore import _philox, _streams
from diffcore._array import is_half
from diffcore._threshold import Clip
from diffcore.backends import cpu_threads, jax_shards, numpy_noise
from diffcore.backends.jax_shards import Part, spec_of, vary, varying
from diffcore.backends.numpy_stage import SECOND
from diffcore.plan import Form

NOISE, STAGE = "diffcore_noise", "diffcore_stage"

DTYPES = ("float32", "float64", "bfloat16", "float16")


class Stage(NamedTuple):
    """What one stage reads: `x` too where x-hat is there already, `keys` instead of `eps` where noise is made."""

    z: jax.Array
    memory: tuple[jax.Array, ...]
    y: jax.Array
    x: jax.Array | None
    other: jax.Array | None
    eps: jax.Array | None
    keys: jax.Array | None
    row: jax.Array
    draw: Any
    turn: Any
    """The number of the stage, by which the slots of memory are found; see `ring`."""


class Made(NamedTuple):
    """What one stage makes: the new z, x-hat where it is wanted beside the memory, and the memory."""

    z: jax.Array
    x: jax.Array | None
    memory: tuple[jax.Array, ...]


class Kind(NamedTuple):
    """What a stage is made for: the form of its plan, the threshold of x-hat, and what becomes of its arrays."""

    form: Form
    clip: Clip | None
    slots: bool
    """Whether the memory lies in slots and is written over, as in a run; see `ring`."""
    over: bool
    """Whether the new z is written over the old one."""
    tells: bool
    """Whether x-hat is wanted beside the memory."""


def serves(z: jax.Array, lead: tuple[int, ...]) -> bool:
    """Return whether the stages of a state, with levels (*lead), are the kernel's: on a CPU, as far as can be known now."""
    where = (
        {device.platform for device in z.devices()} if not isinstance(z, jax.core.Tracer) else {jax.default_backend()}
    )
    return (
        where == {"cpu"}
        and str(z.dtype) in DTYPES
        and z.ndim > 0
        and z.size > 0
        and len(lead) <= min(z.ndim, 2)
        and all(n in (1, m) for n, m in zip(lead, z.shape, strict=False))
        and works()
    )


def takes(stage: Stage) -> bool:
    """Return whether the arrays of a stage are like its z, and no more than the kernel reads."""
    z, optional = stage.z, (stage.y, stage.x, stage.other, stage.eps)
    alike = all(
        array is None or (array.shape, array.dtype) == (z.shape, z.dtype) for array in (*optional, *stage.memory)
    )
    same = all(spec_of(array) == spec_of(z) for array in (*optional, *stage.memory) if array is not None)
    return alike and same and len(stage.memory) <= cpu_threads.MEMORY and jax_shards.divides(*jax.tree.leaves(stage))


@cache
def works() -> bool:
    """Return whether XLA can call the kernel here, by trying it; say so once where it should and cannot."""
    if cpu_threads.kernel is None:
        return False
    try:
        devices = jax.local_devices(backend="cpu")  # of this process, where there are several
    except RuntimeError:  # left out by JAX_PLATFORMS
        return False
    try:
        jax.ffi.register_ffi_target(NOISE, cpu_threads.kernel.xla_noise)
        jax.ffi.register_ffi_target(STAGE, cpu_threads.kernel.xla_stage)
        with ThreadPoolExecutor(1) as own:  # where no transformation, mesh or other context of the caller is in force
            own.submit(_try, devices[0]).result()
    except Exception as error:
        warnings.warn(
            f"diffcore: JAX cannot call the compiled kernel here ({type(error).__name__}: {str(error).splitlines()[0]}); "
            f"XLA's own operations serve, which are slower",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


def _try(device: Any) -> None:
    words, shape = np.array([[5, 7]], dtype=np.uint32), (1, 5)
    how: dict[str, Any] = {"stream": _streams.SAMPLER, "shape": shape, "dtype": jnp.uint32}
    with jax.default_device(device):
        found = np.asarray(jax.jit(partial(noise, **how))(words, np.uint32(3), None))
    if not np.array_equal(found, numpy_noise.bits(words, 3, shape)):
        raise ValueError("other bits came back than were expected")


def noise(
    seeds: jax.Array,
    draw: jax.Array,
    starts: jax.Array | None,
    stream: int,
    shape: tuple[int, ...],
    dtype: Any,
    like: jax.Array | None = None,
) -> jax.Array:
    """Return bits in uint32, or normals in float32 or float64, whose derivatives are 0, of whole samples or of the runs of
    each that begin at `starts`; see `diffcore.noise`."""
    begin = jnp.zeros((0,), jnp.uint32) if starts is None else starts
    axes = jax_shards.most(shape) if starts is None else 1  # of what runs belong to, nothing is known here

    @jax.custom_jvp
    def made(seeds: jax.Array, draw: jax.Array, begin: jax.Array) -> jax.Array:
        call = partial(_noise, stream, shape, dtype)
        found: jax.Array = jax_shards.everywhere(
            call, shape, (), (seeds, draw, begin), axes, seeds if like is None else like
        )
        return found

    still: Any = jnp.zeros(shape, dtype) if jnp.issubdtype(dtype, jnp.floating) else np.zeros(shape, jax.dtypes.float0)
    made.defjvp(lambda primals, tangents: (made(*primals), still))
    found: jax.Array = made(seeds, draw, begin)
    return found


def _noise(stream: int, shape: tuple[int, ...], dtype: Any, part: Part | None, _: Any, given: Any) -> jax.Array:
    """Return a part of the noise, or all of it."""
    seeds, draw, begin = given
    if part is not None:
        seeds, shape = part.of(seeds, 1), part.shape
        if any(part.divided[1:]):
            begin = _philox.runs(jnp, part.whole, part.region(), np.uint32)[0]
    call: Any = jax.ffi.ffi_call(NOISE, jax.ShapeDtypeStruct(shape, dtype), vmap_method="sequential")
    halves = jnp.stack([begin, jnp.zeros_like(begin)], axis=1)
    found: jax.Array = call(seeds, jnp.stack([jnp.asarray(draw, jnp.uint32), jnp.uint32(stream)]), halves)
    return found


def stage(plain: Callable[[Kind, Stage], Made], kind: Kind, stage: Stage, **kernels: Callable[[Stage], Made]) -> Made:
    """Return what a stage makes, on a CPU by the kernel or on a platform by its own, elsewhere and for derivatives by the plain
    function."""
    kernels = kernels or {"cpu": partial(_call, kind)}
    axes = varying(stage)
    stage = jax.tree.map(lambda array: vary(array, axes), stage)

    @jax.custom_jvp
    def made(stage: Stage) -> Made:
        after: Made = jax.lax.platform_dependent(stage, default=partial(plain, kind), **kernels)
        return after

    made.defjvp(lambda primals, tangents: jax.jvp(partial(plain, kind), primals, tangents))
    after: Made = made(stage)
    return after


def ring(form: Form, memory: tuple[Any, ...], turn: Any) -> tuple[Any, ...]:
    """Return the memory before stage `turn` as its slots, or the other way round, which is the same.

    The last arrays, those that only move up and the one before them, are a ring: what stage i computed lies in slot i modulo
    their number, so that a run moves nothing.
    """
    if not form.shifted:
        return memory
    head, tail = memory[: form.computed - 1], memory[form.computed - 1 :]
    at = [(turn - 1 - slot) % len(tail) for slot in range(len(tail))]
    if isinstance(turn, int):
        return (*head, *(tail[i] for i in at))
    return (*head, *(jax.lax.select_n(i.astype(jnp.int32), *tail) for i in at))


def _call(kind: Kind, stage: Stage) -> Made:
    nothing = dict.fromkeys(Stage._fields)
    small = {"keys": stage.keys, "row": stage.row, "draw": stage.draw, "turn": stage.turn}
    large = {name: array for name, array in stage._asdict().items() if name not in small}
    call: Any = lambda part, large, small: _part(kind, part, Stage(**(nothing | large | small)))  # noqa: E731
    shape = stage.z.shape
    after: Made = jax_shards.everywhere(call, shape, large, small, jax_shards.most(shape), stage.z)
    return after


def _part(kind: Kind, part: Part | None, stage: Stage) -> Made:
    """Return what a stage makes of a part of its arrays, or of all."""
    z, memory, y, x, other, eps, keys, row, draw, turn = stage
    form, clip, none = kind.form, kind.clip, jnp.zeros((0,), z.dtype)
    wide = jnp.float32 if is_half(z.dtype) else z.dtype
    if part is not None:
        row = part.of(row, row.ndim - 1)
        if keys is not None and any(part.divided[1:]):  # the kernel makes noise itself for whole samples alone
            eps = _noise(_streams.SAMPLER, part.whole, wide, part, None, (keys, draw, jnp.zeros((0,), jnp.uint32)))
            eps, keys = eps.astype(z.dtype), None
        keys = None if keys is None else part.of(keys, 1)
    low, high = (-math.inf, math.inf) if clip is None else (clip.low, clip.high)
    bounds = jnp.stack([jnp.full((), low, wide), jnp.full((), high, wide)])
    read = y if x is None or form.second == "raw" else None
    optional = [none if array is None else array for array in (read, x, other, eps)]
    fixed = (form.shifted, form.keeps_x, SECOND.index(form.second))
    numbers = jnp.stack([jnp.asarray(number, jnp.uint32) for number in (draw, turn, *fixed)])
    args = [z, *optional, jnp.zeros((0, 2), jnp.uint32) if keys is None else keys, row.astype(wide), bounds, numbers]
    written, moved = (memory, ()) if kind.slots else (memory[: form.computed], memory[max(form.computed - 1, 0) : -1])
    rets = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in (z, z if kind.tells else none, *written)]
    slots = {len(args) + at: 2 + at for at in range(len(memory))} if kind.slots else {}
    aliases = slots | ({0: 0} if kind.over else {})
    call: Any = jax.ffi.ffi_call(STAGE, rets, vmap_method="sequential", input_output_aliases=aliases)
    new, found, *made = call(*args, *memory)
    return Made(new, found if kind.tells else None, (*made, *moved))
