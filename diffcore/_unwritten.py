"""Calls of functions that must not write to what they are given, such as denoisers: else a run goes on from another state."""

from __future__ import annotations

from collections.abc import Callable
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
        view = z.view()
        view.setflags(write=False)
        try:
            return of(view, *more)
        except ValueError as error:
            if "read-only" in str(error) and _met(error.__traceback__, z, more):
                raise _written(function, argument) from error
            raise
    try:  # how often a torch tensor was written to; None where nobody counts, or a compiler follows
        before = None if _array.traced() else getattr(z, "_version", None)
    except RuntimeError:  # of a tensor made under inference_mode
        before = None
    found = of(z, *more)
    if before is not None and before != z._version:
        raise _written(function, argument)
    return found


def _met(frames: TracebackType | None, z: Any, more: tuple[Any, ...]) -> bool:
    """Return whether the function that failed had z, or a view of it, and no array of its own that cannot be written to."""
    while frames is not None and frames.tb_next is not None:
        frames = frames.tb_next
    values = () if frames is None else frames.tb_frame.f_locals.values()
    arrays = [each for each in values if isinstance(each, np.ndarray) and not any(each is other for other in more)]
    fixed = [each for each in arrays if not each.flags.writeable]
    return bool(fixed) and all(np.may_share_memory(each, z) for each in fixed)


def _written(function: str, argument: str) -> ValueError:
    return ValueError(
        f"{function}: `{argument}` must not write to its z, as z *= 0.5 or z.mul_(0.5) do; write z = 0.5 * z, or "
        "begin with a copy of z"
    )
