"""Calls of functions that must not write to what they are given, denoisers and callbacks: else a run goes on from another state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from diffcore import _array
from diffcore._array import Array


def called(of: Callable[..., Any], z: Array, *more: Any, function: str = "sample", argument: str = "denoise") -> Any:
    """Return of(z, *more); raise ValueError where it writes to z.

    On NumPy it gets a view that cannot be written to. A torch tensor counts what is written to it and its views, unless it was
    made under torch.inference_mode. Nothing waits for a device.

    >>> called(lambda z: z.sort(), np.ones(2))
    Traceback (most recent call last):
    ValueError: sample: `denoise` must not write to its z, as z *= 0.5 or z.mul_(0.5) do; write z = 0.5 * z,
    or begin with a copy of z
    """
    if type(z) is np.ndarray:
        return viewed(of, z, *more, function=function, argument=argument)
    if _array.traced():  # a compiler follows, and nobody counts
        return of(z, *more)
    return counted(of, z, *more, function=function, argument=argument)


def viewed(of: Callable[..., Any], z: Array, *more: Any, function: str = "sample", argument: str = "denoise") -> Any:
    """Do what `called` does, for an array of NumPy."""
    view = z.view()
    view.setflags(False)
    try:
        return of(view, *more)
    except ValueError as error:
        if "read-only" in str(error) and _met(error.__traceback__, [z], more):
            raise _written(function, argument) from error
        raise


def counted(of: Callable[..., Any], z: Array, *more: Any, function: str = "sample", argument: str = "denoise") -> Any:
    """Do what `called` does, for a tensor of torch that no compiler follows, or an array of another library."""
    try:  # how often it was written to; None where nobody counts
        before = getattr(z, "_version", None)
    except RuntimeError:  # of a tensor made under inference_mode
        before = None
    found = of(z, *more)
    if before is not None and before != z._version:
        raise _written(function, argument)
    return found


def watched(callback: Callable[[Any], object], state: Any) -> object:
    """Return callback(state); raise ValueError where it writes to an array of the state.

    On NumPy these cannot be written to meanwhile; torch's count, as in `called`.

    >>> import diffcore as dc
    >>> state = dc.start(dc.samplers.ddim(dc.schedules.Cosine(), 2), np.ones((1, 2)))
    >>> watched(lambda state: state.z.sort(), state)
    Traceback (most recent call last):
    ValueError: sample: `callback` must not write to the arrays of the state that it sees, as state.z[:] = 0 does; write to
    a copy; what changes a run is a `constraint=`, or a loop of dc.step
    """
    arrays = [array for array in (state.z, *state.memory, state.x, *state.carried) if array is not None]
    open_ = [array for array in arrays if type(array) is np.ndarray and array.flags.writeable]
    before = [_count(array) for array in arrays]
    for array in open_:
        array.setflags(write=False)
    try:
        found = callback(state)
    except ValueError as error:
        if "read-only" in str(error) and _met(error.__traceback__, open_):
            raise _changed() from error
        raise
    finally:
        for array in sorted(open_, key=lambda array: array.base is not None):  # what owns its memory before its views
            array.setflags(write=True)
    if before != [_count(array) for array in arrays]:
        raise _changed()
    return found


def _count(array: Any) -> Any:
    """Return how often a torch tensor was written to; None where nobody counts, or a compiler follows."""
    try:
        return None if _array.traced() else getattr(array, "_version", None)
    except RuntimeError:  # of a tensor made under inference_mode
        return None


def _met(frames: TracebackType | None, given: Sequence[Any], more: tuple[Any, ...] = ()) -> bool:
    """Return whether the function that failed had an array of those given, or a view of one, also in a state, and no array of its
    own that cannot be written to."""
    while frames is not None and frames.tb_next is not None:
        frames = frames.tb_next
    held = [] if frames is None else list(frames.tb_frame.f_locals.values())
    held = [part for each in held for part in (each if isinstance(each, tuple) else (each,))]
    arrays = [each for each in held if isinstance(each, np.ndarray) and not any(each is other for other in more)]
    fixed = [each for each in arrays if not each.flags.writeable]
    return bool(fixed) and all(any(np.may_share_memory(each, z) for z in given) for each in fixed)


def _written(function: str, argument: str) -> ValueError:
    return ValueError(
        f"{function}: `{argument}` must not write to its z, as z *= 0.5 or z.mul_(0.5) do; write z = 0.5 * z, or "
        "begin with a copy of z"
    )


def _changed() -> ValueError:
    return ValueError(
        "sample: `callback` must not write to the arrays of the state that it sees, as state.z[:] = 0 does; write to a copy; "
        "what changes a run is a `constraint=`, or a loop of dc.step"
    )
