"""JAX on CUDA: a stage and its noise in one kernel of Pallas, which reads and writes each array once.

XLA fuses a stage that makes no noise into one kernel by itself. Of noise it makes the words or the radii in one kernel and the
rest in another, which moves 137 MB where the arrays have 75 (jaxlib 0.10, ancestral, float32; `benchmarks.xla_gpu` compiles and
shows it, without a GPU). Here a program makes four lanes of normals from the words of its blocks and hands each, with its part
of every array, to the plain function of a stage, so that there is no second formula.

It is written for Pallas's Triton backend, which JAX 0.11 has deprecated: where a kernel does not compile, XLA's operations serve.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffcore import _philox, _streams
from diffcore.backends import jax_noise, numpy_noise
from diffcore.backends.jax_kernel import Kind, Made, Stage

pl: Any = None
pallas_triton: Any = None
with suppress(ImportError):  # a JAX without them
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton as pallas_triton

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
    return alike and whole and read.row.ndim <= 2 and rows in (1, len(z)) and works()


@cache
def works() -> bool:
    """Return whether Pallas compiles a kernel here, by trying it on the only GPU; say so once where it does not."""
    if pallas_triton is None or jax.default_backend() != "gpu" or jax.device_count() > 1:
        return False
    deprecated = r"The Pallas Triton backend is deprecated"  # raised where a program is lowered, by whoever compiles it
    warnings.filterwarnings("ignore", message=deprecated, category=DeprecationWarning)
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
    return {"cpu" if INTERPRETED else "cuda": partial(call, plain, kind)}


def call(plain: Plain, kind: Kind, read: Stage) -> Made:
    """Return what a stage makes, by the kernel."""
    form, z = kind.form, read.z
    batch, tiles = len(z), math.prod(z.shape[1:]) // (4 * _philox.TILE)
    together = math.gcd(tiles, TOGETHER)
    shape = batch, tiles, 4, _philox.TILE
    optional = {"y": read.y if read.x is None or form.second == "raw" else None, "x": read.x, "other": read.other}
    names = [name for name, part in optional.items() if part is not None]
    arrays = [z, *read.memory, *(getattr(read, name) for name in names)]
    told = [z] if kind.tells else []
    written = [z, *told, *read.memory[: form.computed]]
    over = (
        {3: 0} if kind.over else {}
    )  # in a run z and what it remembers are written over, but what moves up is still read
    over |= {4 + at: len(told) + 1 + at for at in range(form.computed - (form.shifted > 0))} if kind.over else {}
    row = jnp.reshape(read.row, (-1, read.row.shape[-1]))

    def kernel(keys: Any, draw: Any, row: Any, *refs: Any) -> None:
        first = jnp.uint32(together) * pl.program_id(1).astype(jnp.uint32)
        lanes = _philox.normals(jnp, _words(keys, draw, first, together), jnp.float32, jnp.int32)
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
    )(read.keys, _draw(read.draw), row.astype(jnp.float32), *(jnp.reshape(part, shape) for part in arrays))
    new, *rest = (jnp.reshape(part, z.shape) for part in made)
    found = rest.pop(0) if kind.tells else None
    return Made(new, found, (*rest, *read.memory[max(form.computed - 1, 0) : form.memory - 1]) if form.memory else ())


def _launch(kernel: Callable[..., None], **settings: Any) -> Callable[..., Any]:
    if INTERPRETED:
        how: dict[str, Any] = {"interpret": True}
    else:
        how = {"compiler_params": pallas_triton.CompilerParams(num_warps=4, num_stages=1)}
    launch: Callable[..., Any] = pl.pallas_call(kernel, **how, **settings)
    return launch


def _draw(draw: Any) -> jax.Array:
    return jnp.reshape(jnp.asarray(draw), (1,))


def _words(keys: Any, draw: Any, first: Any, together: int) -> list[jax.Array]:
    """Return the four words of the blocks of some tiles (together, TILE), of references to the keys and the number of the draw."""
    tile, at = (jax.lax.broadcasted_iota(jnp.uint32, (together, _philox.TILE), axis) for axis in (0, 1))
    zero, block = jnp.zeros_like(at), (first + tile) * jnp.uint32(_philox.TILE) + at
    counter = (block, zero, zero | draw[0].astype(jnp.uint32), zero | jnp.uint32(_streams.SAMPLER))
    key = (zero | keys[0, 0], zero | keys[0, 1])
    return list(jax_noise.rounds(_philox.ROUNDS, (counter, key), _multiply)[0])


def _multiply(constant: int, words: Any) -> tuple[Any, Any]:
    """Return the high and low words of the product, in 64 bits, which the compiler makes one instruction; Pallas has no `mulhi`."""
    with jax.enable_x64(True):
        wide = words.astype(jnp.uint64) * np.uint64(constant)
        high = jax.lax.shift_right_logical(wide, jnp.full_like(wide, 32)).astype(jnp.uint32)
    return high, words * jnp.uint32(constant)


def _try() -> None:
    def kernel(keys: Any, draw: Any, out: Any) -> None:
        for lane, words in enumerate(_words(keys, draw, jnp.uint32(0), 1)):
            out[lane, :] = words[0]

    keys, out = np.array([[5, 7]], dtype=np.uint32), jax.ShapeDtypeStruct((4, _philox.TILE), jnp.uint32)
    found = np.asarray(jax.jit(_launch(kernel, out_shape=out))(keys, np.array([3], np.uint32))).reshape(1, -1)
    if not np.array_equal(found, numpy_noise.bits(keys, 3, found.shape)):
        raise ValueError("other bits came back than were expected")
