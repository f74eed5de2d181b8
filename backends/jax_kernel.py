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

from diffcore import _streams
from diffcore._array import is_half
from diffcore._threshold import Clip
from diffcore.backends import cpu_threads, numpy_noise

NOISE, STAGE = "diffcore_noise", "diffcore_stage"

DTYPES = ("float32", "float64", "bfloat16", "float16")

Carry = tuple[jax.Array, jax.Array | None, tuple[jax.Array, ...]]
"""The new z, the saved state and the estimates."""


class Stage(NamedTuple):
    """What one stage reads: `x` instead of `y` where x-hat is there already, `seeds` instead of `eps` where noise is made."""

    z: jax.Array
    saved: jax.Array | None
    estimates: tuple[jax.Array, ...]
    y: jax.Array | None
    x: jax.Array | None
    row: jax.Array
    eps: jax.Array | None
    seeds: jax.Array | None
    draw: jax.Array


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
    z, optional = stage.z, (stage.saved, stage.y, stage.x, stage.eps)
    alike = all(
        array is None or (array.shape, array.dtype) == (z.shape, z.dtype) for array in (*optional, *stage.estimates)
    )
    return alike and len(stage.estimates) <= cpu_threads.HISTORY and whole(*jax.tree.leaves(stage))


def whole(*arrays: Any) -> bool:
    """Return whether the types of arrays say nothing of devices, as they do in a `shard_map` and on a mesh with explicit axes,
    where the results of a call would be of another type than those of XLA's operations."""
    kinds = [getattr(array, "aval", None) for array in arrays]
    varying = [getattr(kind, "vma", None) or getattr(getattr(kind, "mat", None), "varying", None) for kind in kinds]
    specs = [getattr(getattr(kind, "sharding", None), "spec", ()) for kind in kinds]
    return not any(varying) and all(axis is None for spec in specs for axis in spec)


@cache
def works() -> bool:
    """Return whether XLA can call the kernel here, by trying it; say so once where it should and cannot.

    With several CPU devices XLA divides arrays among them, but not those of a call, so there the kernel is not used.
    """
    if cpu_threads.kernel is None:
        return False
    try:
        devices = jax.devices("cpu")
    except RuntimeError:  # left out by JAX_PLATFORMS
        return False
    if len(devices) > 1:
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
    seeds: jax.Array, draw: jax.Array, starts: jax.Array | None, stream: int, shape: tuple[int, ...], dtype: Any
) -> jax.Array:
    """Return bits in uint32, or normals in float32 or float64, whose derivatives are 0, of whole samples or of the runs of
    each that begin at `starts`; see `diffcore.noise`."""
    begin = jnp.zeros((0,), jnp.uint32) if starts is None else starts

    @jax.custom_jvp
    def made(seeds: jax.Array, draw: jax.Array, begin: jax.Array) -> jax.Array:
        call: Any = jax.ffi.ffi_call(NOISE, jax.ShapeDtypeStruct(shape, dtype), vmap_method="sequential")
        halves = jnp.stack([begin, jnp.zeros_like(begin)], axis=1)
        found: jax.Array = call(seeds, jnp.stack([jnp.asarray(draw, jnp.uint32), jnp.uint32(stream)]), halves)
        return found

    still: Any = jnp.zeros(shape, dtype) if jnp.issubdtype(dtype, jnp.floating) else np.zeros(shape, jax.dtypes.float0)
    made.defjvp(lambda primals, tangents: (made(*primals), still))
    found: jax.Array = made(seeds, draw, begin)
    return found


def stage(plain: Callable[[Stage], Carry], stage: Stage, clip: Clip | None, *, slots: bool, over: bool) -> Carry:
    """Return what a stage makes, on a CPU by the kernel, elsewhere and for derivatives by the plain function.

    Args:
        plain: the function.
        stage: what it reads.
        clip: applied to an x-hat that is made.
        slots: the estimates lie in the slots of `turn`, and x-hat goes where the oldest was; else they are the newest first.
        over: write the new z over the old one.
    """

    @jax.custom_jvp
    def made(stage: Stage) -> Carry:
        after: Carry = jax.lax.platform_dependent(stage, cpu=partial(_call, clip, slots, over), default=plain)
        return after

    made.defjvp(lambda primals, tangents: jax.jvp(plain, primals, tangents))
    after: Carry = made(stage)
    return after


def turn(estimates: tuple[Any, ...], draw: Any) -> tuple[Any, ...]:
    """Return the estimates before stage `draw` = 1, 2, ... as their slots, or the other way round, which is the same: what stage
    i made lies in slot i modulo their number, so that a run moves nothing."""
    count = len(estimates)
    at = [(draw - 1 - slot) % count for slot in range(count)]
    if isinstance(draw, int):
        return tuple(estimates[i] for i in at)
    return tuple(jax.lax.select_n(i.astype(jnp.int32), *estimates) for i in at)


def _call(clip: Clip | None, slots: bool, over: bool, stage: Stage) -> Carry:
    z, saved, estimates, y, x, row, eps, seeds, draw = stage
    none = jnp.zeros((0,), z.dtype)
    wide = jnp.float32 if is_half(z.dtype) else z.dtype
    bounds = jnp.asarray([-math.inf, math.inf] if clip is None else [clip.low, clip.high], wide)
    optional = [none if array is None else array for array in (y, x, saved, eps)]
    keys = jnp.zeros((0, 2), jnp.uint32) if seeds is None else seeds
    args = [z, *optional, keys, row.astype(wide), bounds, jnp.asarray(draw, jnp.uint32), *estimates]
    kept = estimates if slots else estimates[:1]
    rets = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in (z, optional[2], *kept)]
    first = len(args) - len(estimates)
    over_estimates = {first + i: 2 + i for i in range(len(estimates))} if slots else {}
    over_saved = {3: 1} if slots and saved is not None else {}
    aliases = over_estimates | over_saved | ({0: 0} if over else {})
    call: Any = jax.ffi.ffi_call(STAGE, rets, vmap_method="sequential", input_output_aliases=aliases)
    new, new_saved, *made = call(*args)
    if not slots:
        made = [*made, *estimates[:-1]]
    return new, None if saved is None else new_saved, tuple(made)
