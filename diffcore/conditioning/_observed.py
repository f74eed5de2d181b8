"""Observations and masks: checked when they are given, and converted to the data's library when they are used."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffcore import _array, _check, _layout
from diffcore._array import Array

HOST: tuple[type, ...] = (np.ndarray, list, tuple, bool, int, float, np.generic)


def check(function: str, observed: Any, mask: Any) -> None:
    """Raise if `observed` or `mask` cannot be right; values are checked only where they are known on the host.

    Raises:
        TypeError: integer data, or not an array.
        ValueError: shapes that do not broadcast together; a mask of numbers outside [0, 1]; an observed value that is not
            finite where the mask is above 0.
    """
    for argument, value in (("observed", observed), ("mask", mask)):
        if value is None and argument == "mask":
            continue
        array = np.asarray(value) if isinstance(value, HOST) else value
        _array.namespace(function, **{argument: array})
        if argument == "observed" and not isinstance(value, float):
            _array.check_floating(function, **{argument: array})
    given, known = _array.known(observed), True if mask is None else _array.known(mask)
    if known is not None and not isinstance(known, bool):
        if known.dtype != np.bool_ and not np.all((known >= 0) & (known <= 1)):
            raise ValueError(
                f"{function}: `mask` must be booleans, or weights in [0, 1] with 1 for known, got other numbers; for a mask of 0 "
                f"and 255 give mask / 255"
            )
        shapes = tuple(np.shape(observed)), tuple(known.shape)
        try:
            np.broadcast_shapes(*shapes)
        except ValueError:
            raise ValueError(
                f"{function}: `observed` and `mask` must broadcast together and to the data, got {shapes[0]} and {shapes[1]}; "
                f"a mask of T frames needs trailing axes, (T, 1, 1, 1): see diffcore.conditioning.frames"
            ) from None
    if given is not None and known is not None:
        bad = ~np.isfinite(given) & np.asarray(known, dtype=np.bool_)
        if np.any(bad):
            raise ValueError(
                f"{function}: `observed` must be finite where it is known, got NaN or infinity in {int(bad.sum())} known "
                f"entries; mask them, since unknown entries may hold anything"
            )


def soft(mask: Any) -> bool:
    """Return whether a mask may hold weights between 0 and 1: those of floating masks that are not known on the host may."""
    if mask is None or isinstance(mask, (bool, int, np.bool_)):
        return False
    given = _array.known(mask)
    if given is not None:
        return bool(given.dtype != np.bool_ and np.any((given > 0) & (given < 1)))
    return _array.is_floating(mask)


def deviation_of(function: str, noise_std: Any, mask: Any) -> float:
    """Return the deviation of an observation's noise; raise where it is 0 for a mask with weights between 0 and 1."""
    deviation = _check.number(function, "noise_std", noise_std, 0)
    if deviation == 0.0 and soft(mask) and _array.known(mask) is not None:
        must, hint = "be booleans, or 0 and 1", "they divide the variance of the noise; give `noise_std` > 0"
        raise _check.error(ValueError, function, "mask", must, "weights between 0 and 1", hint)
    return deviation


def beside(function: str, argument: str, value: Any, like: Array, *, boolean: bool) -> Array:
    """Return an array of the host or of the data's library, broadcast to the data, as booleans or in its computing dtype.

    Raises:
        TypeError: an array of another library.
        ValueError: it does not broadcast, or its axes could be the first as well as the last of the data.
    """
    xp = _array.namespace(function, data=like)
    if isinstance(value, HOST):
        host = np.array(value)  # a copy: torch warns of read-only arrays
        value = xp.asarray(host != 0 if boolean else host, device=_array.device(like))
    _array.namespace(function, **{"the data": like, argument: value})
    of = tuple(like.shape)
    _array.check_trailing(function, argument, tuple(value.shape), of)
    if boolean:
        value = value if value.dtype == xp.bool else value != 0
    else:
        value = xp.astype(value, _array.widen(xp, like).dtype, copy=False)
    return _layout.beside(xp.broadcast_to(value, of), like, shape=of)


def known_of(function: str, observed: Any, mask: Any, like: Array) -> tuple[Array, Array]:
    """Return (x^a, known) of the data's shape, with x^a = 0 where it is unknown: values there, even NaN, are ignored.

    `known` holds booleans; for a soft mask its weights in [0, 1], in the dtype that the data is computed in.
    """
    xp = _array.namespace(function, data=like)
    given = beside(function, "observed", observed, like, boolean=False)
    if mask is None:
        return given, xp.ones_like(given, dtype=xp.bool)
    if isinstance(mask, HOST) and _array.traced():  # torch's compiler knows no dtype of a NumPy array
        mask = xp.asarray(np.array(mask), device=_array.device(like))
    if soft(mask):
        weight = beside(function, "mask", mask, like, boolean=False)
        return xp.where(weight > 0, given, xp.zeros_like(given)), weight
    known = beside(function, "mask", mask, like, boolean=True)
    return xp.where(known, given, xp.zeros_like(given)), known


def weigh(known: Array, u: Array, *, root: bool = False) -> Array:
    """Return u times what `known_of` returned, the booleans as 0 and 1; or times the root of the weights."""
    xp = _array.library(u)
    if known.dtype == xp.bool:
        return xp.where(known, u, xp.zeros_like(u))
    weight = xp.astype(known, u.dtype, copy=False)
    return (xp.sqrt(weight) if root else weight) * u
