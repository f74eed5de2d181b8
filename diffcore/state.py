"""The state of a run between two stages, and its file."""

from __future__ import annotations

import io
import os
from typing import Any, NamedTuple

import numpy as np

from diffcore import _array, _check, _explained, _files, _layout
from diffcore._array import Array
from diffcore._dispatch import backend_of

FORMAT = 1
DTYPES = ("bfloat16", "float16", "float32", "float64")
WHOLE = ("bool", "uint8", "uint32", "int8", "int16", "int32", "int64")
"""What else a denoiser may carry: flags, counts, keys."""


class State(NamedTuple):
    """A run between two stages.

    Fields:
        z: the noisy data, (B, ...).
        memory: what the plan remembers beside it, M arrays of the shape of z.
        x: x-hat of the last stage; 0 before the first, None inside a run that nobody watches.
        index: the number of the next stage.
        draw: the number of the next draw of noise, which goes on when another plan follows; see `start`.
        keys: the key words of the samples, (B, 2), or None where the caller gives the noise.
        carried: what the denoiser made of the stages before, where it has a method `carrying`; else empty.
        mark: the mark that its plan has for the stages it went through, see `Plan.marks`; -1 where that is not known.

    A tuple of arrays, and a pytree on JAX; `save_state` writes it to a file.
    """

    z: Array
    memory: tuple[Array, ...]
    x: Array | None
    index: Any
    draw: Any
    keys: Array | None
    carried: tuple[Array, ...] = ()
    mark: Any = -1


def save_state(path: str | os.PathLike[str], state: State) -> None:
    """Write the state of a run to a file, of any library; the file is written completely or not at all.

    Args:
        path: of the file, NumPy's npz without pickled objects.
        state: from `start`, `step` or a callback. Of DTensors the whole is written, by the first process of the mesh, and
            all its processes call this.

    Raises:
        TypeError: not a state, or one whose arrays are being traced.

    >>> import diffcore as dc, tempfile, pathlib
    >>> plan = dc.samplers.unipc(dc.schedules.Cosine(), steps=4)
    >>> path = pathlib.Path(tempfile.mkdtemp(), "state.npz")
    >>> save_state(path, dc.start(plan, shape=(2, 3), seed=7))
    >>> load_state(path).memory[0].shape
    (2, 3)
    """
    _check.instance("save_state", "state", state, State, "a diffcore.State")
    arrays = {f"memory_{at}": array for at, array in enumerate(state.memory)}
    arrays |= {f"carried_{at}": array for at, array in enumerate(state.carried)}
    arrays |= {name: array for name in ("z", "x") if (array := getattr(state, name)) is not None}
    held: dict[str, Any] = {name: _array.to_host(array) for name, array in arrays.items()}
    if state.keys is not None:
        held["keys"] = np.asarray(_array.to_host(state.keys), dtype=np.uint32)
    held |= {name: np.int64(int(getattr(state, name))) for name in ("index", "draw", "mark")}
    dtypes = np.array([_dtype(array) for array in state.carried], dtype=str)  # their own: momentum of halves is float32
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, format=np.int64(FORMAT), dtype=_dtype(state.z), dtypes=dtypes, **held)
    if _layout.divided(state.z):
        _layout.once(state.z, lambda: _files.write(path, file.getvalue()))
    else:
        _files.write(path, file.getvalue())


def load_state(path: str | os.PathLike[str], *, like: Array | None = None) -> State:
    """Read the state of a run that `save_state` wrote, bit for bit.

    Args:
        path: of the file.
        like: an array that gives the library and the device; NumPy without one. The dtype is that of the file. A DTensor
            also gives the mesh and the placements, which may be others than those it was written with.

    Returns:
        A `State`: give it to `diffcore.sample` or `diffcore.step`.

    Raises:
        ValueError: the file holds no state, or a dtype that the library does not have, as float64 in JAX without 64 bits.
        OSError: it cannot be read.
    """
    like = np.zeros(()) if like is None else like
    xp, where = _array.namespace("load_state", like=like), _array.device(like)
    archive = _files.archive("load_state", path)
    shown = _check.shown(archive.name)
    try:
        with archive.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            held = {name: file[name] for name in file.files}
        if int(held["format"]) != FORMAT:
            raise ValueError(f"it has format {int(held['format'])}, but this version reads format {FORMAT}")
        name, keys = str(held["dtype"]), held.get("keys")
        memory, carried = (
            [held[f"{name}_{at}"] for at in range(sum(part.startswith(f"{name}_") for part in held))]
            for name in ("memory", "carried")
        )
        z, x, index, draw = held["z"], held.get("x"), int(held["index"]), int(held["draw"])
        mark = int(held.get("mark", -1))
        if name not in DTYPES or index < 0 or draw < 0:
            raise ValueError(f"its dtype is {_check.shown(name)}, its stage {index} and its draw {draw}")
        if any(part.shape != z.shape for part in memory + ([] if x is None else [x])) or z.ndim < 1:
            raise ValueError("its arrays differ in shape")
        # Files of before hold no dtypes of what is carried: it has the one that it was written in.
        dtypes = [str(part.dtype) for part in carried] if "dtypes" not in held else held["dtypes"].tolist()
        if len(dtypes) != len(carried) or not {*dtypes} <= {*DTYPES, *WHOLE}:
            raise ValueError(f"its {len(carried)} arrays of a denoiser have the dtypes {dtypes}")
        if keys is not None and (keys.shape != (len(z), 2) or keys.dtype != np.uint32):
            raise ValueError(f"its keys are of shape {keys.shape} and dtype {keys.dtype}")
    except Exception as error:  # NumPy raises many kinds for a file of another format
        raise ValueError(f"load_state: {shown} holds no state: {_check.cut(str(error))}") from error
    backend = backend_of(like)

    def give(array: Any, name: str = name) -> Array:
        dtype = getattr(xp, name, None)
        jax = _array.name(xp) == "jax"
        if dtype is None or (jax and str(xp.result_type(dtype)) != name):  # without 64 bits JAX makes 32 of them
            hint = "call it within `with jax.enable_x64(True):`" if jax else "give `like` of the library that wrote it"
            raise ValueError(f"load_state: {shown} holds {name}, which {_array.name(xp)} does not have; {hint}")
        return _layout.beside(xp.asarray(array, dtype=dtype, device=where), like, shape=z.shape)

    words = None if keys is None else backend.keys(keys, like)
    estimate = None if x is None else give(x)
    counts, kept = (backend.index(index), backend.index(draw)), tuple(map(give, carried, dtypes))
    return State(give(z), tuple(map(give, memory)), estimate, *counts, words, kept, backend.index(mark))


def _dtype(array: Array) -> str:
    return str(array.dtype).split(".")[-1]


_explained.face(__name__)
