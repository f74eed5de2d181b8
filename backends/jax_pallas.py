"""JAX on CUDA: a stage and its noise in one kernel of Pallas, which reads and writes each array once.

XLA fuses a stage that makes no noise into one kernel by itself. Of one that makes noise it makes three, with arrays between them
that move 137 MB where the stage's own have 75 (jaxlib 0.10, ancestral, float32; `benchmarks.xla_gpu` compiles and shows it, without
a GPU). Here a program makes four lanes of normals from the words of its blocks and hands each, with its part of every array, to
the plain function of a stage, so that there is no second formula.

It is written for Pallas's Triton backend, which JAX 0.11 has deprecated: where a stage does not compile, XLA's operations serve.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffcore import _philox, _streams, stage
from diffcore._threshold import Clip
from diffcore.backends import jax_noise, numpy_noise
from diffcore.backends.jax_kernel import Kind, Made, Stage
from diffcore.plan import Form
from diffcore.state import State

DTYPES = ("float32", "bfloat16", "float16")
TOGETHER = 2
"""Tiles of a program at most: 16 numbers for each of its 128 threads."""
INTERPRETED = False
"""Whether kernels are interpreted, on any device: for tests."""
Plain = Callable[[Kind, Stage], Made]


def takes(read: Stage) -> bool:
    """Return whether the kernel makes a stage: one with noise, of whole tiles, with a row for all samples or one for each."""
    z = read.z
    if read.keys is None or z.ndim < 2 or z.size == 0 or str(z.dtype) not in DTYPES:
        return False
    arrays = [part for part in (read.y, read.other, *read.memory) if part is not None]
    alike = all((part.shape, part.dtype) == (z.shape, z.dtype) for part in arrays)
    alike = alike and (read.x is None or read.x.shape == z.shape)  # in float32 beside half precision
    rows = math.prod(read.row.shape[:-1])
    whole = math.prod(z.shape[1:]) % (4 * _philox.TILE) == 0
    return alike and whole and read.row.ndim <= 2 and rows in (1, len(z)) and _alone() and works()


def _alone() -> bool:
    """Return whether arrays are of one device, the default one, and no mesh says how they are divided."""
    mesh, default = jax.sharding.get_abstract_mesh(), jax.config.jax_default_device  # type: ignore[attr-defined]
    divided = mesh.manual_axes or getattr(mesh, "explicit_axes", ())
    return not divided and (INTERPRETED or default is None or "cpu" not in str(default).lower())


@cache
def works() -> bool:
    """Return whether Pallas compiles a stage here, by trying one on the only GPU; say so once where it does not. With
    DIFFCORE_PALLAS=0 in the environment it is not tried."""
    if jax.default_backend() != "gpu" or jax.device_count() > 1 or os.environ.get("DIFFCORE_PALLAS") == "0":
        return False
    try:
        with ThreadPoolExecutor(1) as own:  # where no transformation, mesh or other context of the caller is in force
            own.submit(_try).result()
    except Exception as error:
        warnings.warn(
            f"diffcore: JAX cannot compile the kernel of a stage here ({type(error).__name__}: {str(error).splitlines()[0]}); "
            f"XLA's own operations serve, which move twice as much",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


def on(plain: Plain, kind: Kind) -> dict[str, Callable[[Stage], Made]]:
    """Return the kernel of a stage by its platform."""
    deprecated = "The Pallas Triton backend is deprecated"  # raised where a program is lowered, by whoever compiles it
    warnings.filterwarnings("ignore", message=deprecated, category=DeprecationWarning)
    return dict.fromkeys(("cuda", "cpu") if INTERPRETED else ("cuda",), partial(call, plain, kind))


def call(plain: Plain, kind: Kind, read: Stage) -> Made:
    """Return what a stage makes, by the kernel."""
    from jax.experimental import pallas as pl  # which takes long, and is of no use without a GPU

    form, z = kind.form, read.z
    batch, tiles = len(z), math.prod(z.shape[1:]) // (4 * _philox.TILE)
    together = math.gcd(tiles, TOGETHER)
    shape = batch, tiles, 4, _philox.TILE
    optional = {"y": read.y if read.x is None or form.second == "raw" else None, "x": read.x, "other": read.other}
    names = [name for name, part in optional.items() if part is not None]
    arrays = [z, *read.memory, *(getattr(read, name) for name in names)]
    told = [z] if kind.tells else []
    written = [z, *told, *read.memory[: form.computed]]
    over = {}  # what is written over in a run: z, and what it remembers, but for what moves up, which is still read
    if kind.over:
        over = {3: 0} | {4 + at: len(told) + 1 + at for at in range(form.computed - (form.shifted > 0))}
    row = jnp.reshape(read.row, (-1, read.row.shape[-1]))
    draw = jnp.reshape(jnp.uint32(read.draw) if isinstance(read.draw, int) else jnp.asarray(read.draw), (1,))

    def kernel(keys: Any, draw: Any, row: Any, *refs: Any) -> None:
        first = jnp.uint32(together) * pl.program_id(1).astype(jnp.uint32)
        lanes = _philox.normals(jnp, _words(keys[0, 0], keys[0, 1], draw[0], first, together), jnp.float32, jnp.int32)
        coefficients = [row[0, column] for column in range(row.shape[1])]
        for lane, eps in enumerate(lanes):
            own, *rest = (ref[0, :, lane, :] for ref in refs[: len(arrays)])
            memory, others = tuple(rest[: form.memory]), dict(zip(names, rest[form.memory :], strict=True))
            of = Stage(own, memory, None, None, None, eps.astype(z.dtype), None, coefficients, 0, 0)  # type: ignore[arg-type]
            others = {"y": others["x"].astype(z.dtype), **others} if "x" in others else others  # which nothing reads
            made = plain(kind, of._replace(**others))
            outs = [made.z, *([made.x] if kind.tells else []), *made.memory[: form.computed]]
            for ref, out in zip(refs[len(arrays) :], outs, strict=True):
                ref[0, :, lane, :] = out

    block = pl.BlockSpec((1, together, 4, _philox.TILE), lambda sample, at: (sample, at, 0, 0))
    of_sample = pl.BlockSpec((1, 2), lambda sample, _: (sample, 0))
    of_row = pl.BlockSpec((1, row.shape[1]), lambda sample, _: (sample if len(row) > 1 else 0, 0))
    made = _launch(
        kernel,
        grid=(batch, tiles // together),
        in_specs=[of_sample, pl.BlockSpec((1,), lambda *_: (0,)), of_row, *[block] * len(arrays)],
        out_specs=[block] * len(written),
        out_shape=[jax.ShapeDtypeStruct(shape, z.dtype)] * len(written),
        input_output_aliases=over,
    )(read.keys, draw, row.astype(jnp.float32), *(jnp.reshape(part, shape) for part in arrays))
    new, *rest = (jnp.reshape(part, z.shape) for part in made)
    found = rest.pop(0) if kind.tells else None
    return Made(new, found, (*rest, *read.memory[max(form.computed - 1, 0) : form.memory - 1]) if form.memory else ())


def _launch(kernel: Callable[..., None], **settings: Any) -> Callable[..., Any]:
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    how = {"interpret": True} if INTERPRETED else {"compiler_params": triton.CompilerParams(num_warps=4, num_stages=1)}
    launch: Callable[..., Any] = pl.pallas_call(kernel, **how, **settings)
    return launch


def _words(k0: Any, k1: Any, draw: Any, first: Any, together: int) -> list[jax.Array]:
    """Return the four words of the blocks of some tiles (together, TILE), from a key and the number of the draw."""
    tile, at = (jax.lax.broadcasted_iota(jnp.uint32, (together, _philox.TILE), axis) for axis in (0, 1))
    zero, block = jnp.zeros_like(at), (first + tile) * jnp.uint32(_philox.TILE) + at
    counter = (block, zero, zero | draw.astype(jnp.uint32), zero | jnp.uint32(_streams.SAMPLER))
    return list(jax_noise.rounds(_philox.ROUNDS, (counter, (zero | k0, zero | k1)), _multiply)[0])


def _multiply(constant: int, words: Any) -> tuple[Any, Any]:
    """Return the high and low words of the product, in 64 bits, which the compiler makes one instruction; Pallas has no `mulhi`."""
    with jax.enable_x64(True):
        wide = words.astype(jnp.uint64) * np.uint64(constant)
        high = jax.lax.shift_right_logical(wide, jnp.full_like(wide, 32)).astype(jnp.uint32)
    return high, words * jnp.uint32(constant)


def _try() -> None:
    """Make a stage in half precision that clips x-hat and keeps it, and hold it to NumPy's."""
    form, clip, shape = Form(1, 0, True), Clip(-1.0, 1.0), (2, 4 * _philox.TILE)
    keys, row = np.array([[5, 7], [1, 0]], np.uint32), np.linspace(-0.5, 0.5, form.width, dtype=np.float32)
    z, y, kept = (np.cos(np.arange(at, at + math.prod(shape), dtype=np.float32)).reshape(shape) for at in range(3))
    eps = numpy_noise.normal(keys, 3, shape, dtype=np.float32)

    def plain(kind: Kind, of: Stage) -> Made:
        after = stage.advance(kind.form, State(of.z, of.memory, None, 0, 0, None), of.y, of.row, of.eps, clip)
        return Made(after.z, None, after.memory)

    kind, half = Kind(form, None, slots=False, over=True, tells=False), partial(np.asarray, dtype=jnp.bfloat16)
    read = Stage(half(z), (half(kept),), half(y), None, None, None, keys, row, np.int32(3), 0)  # type: ignore[arg-type]
    made = jax.jit(partial(call, plain, kind))(jax.tree.map(jnp.asarray, read))
    want = plain(kind, Stage(z, (kept,), y, None, None, eps, None, list(row), 3, 0))  # type: ignore[arg-type]
    for found, true in zip((made.z, *made.memory), (want.z, *want.memory), strict=True):
        if not np.allclose(np.asarray(found, np.float32), true, rtol=0.02, atol=0.02):
            raise ValueError("other numbers came back than were expected")
