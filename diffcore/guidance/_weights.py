"""A weight of guidance: checked once, and lined up with the data it meets."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from diffcore import _array, _check, _layout
from diffcore._array import Array

Weight = float | Array | Callable[[Array], Array]
"""A weight of guidance: a number, an array of shape (), (B,) or (B, T), or a function of log_snr."""


def check(function: str, argument: str, value: Any) -> Any:
    """Return a number as a finite float, and an array or a function as it is, or raise TypeError or ValueError."""
    if callable(value):
        return value
    must = "be a finite number, or an array of them of shape (), (B,) or (B, T)"
    try:
        number = _array.library(value) is None
    except TypeError:
        raise _check.error(TypeError, function, argument, must, value) from None
    if isinstance(value, (bool, np.bool_)):
        raise _check.error(TypeError, function, argument, must, value)
    known = number or isinstance(value, np.ndarray)  # the values of other libraries are not read: they may be traced
    if known and not np.all(np.isfinite(value)):
        raise _check.error(ValueError, function, argument, must, value)
    return float(value) if number else value


def of_two(function: str, weight: Any, scale: Any) -> Any:
    """Return w from exactly one of the two conventions."""
    if (weight is None) == (scale is None):
        raise ValueError(f"{function}: give exactly one of `weight`, w of (1 + w) c - w u, and `scale` = 1 + w")
    if scale is None:
        return check(function, "weight", weight)
    checked = check(function, "scale", scale)
    return partial(_less_one, checked) if callable(checked) else checked - 1.0


def _less_one(scale: Any, log_snr: Any) -> Any:
    return scale(log_snr) - 1.0


def along(function: str, weight: Any, log_snr: Any, data: Array, xp: Any) -> Any:
    """Return a weight at a level as a Python float, or in the dtype of the data and aligned with its leading axes."""
    weight = weight(log_snr) if callable(weight) else weight
    if isinstance(weight, np.ndarray):
        weight = _layout.beside(xp.asarray(weight, dtype=data.dtype, device=_array.device(data)), data)
    _array.namespace(function, **{"the prediction": data, "weight": weight})
    weight = weight.to(data.device) if hasattr(weight, "to") else weight  # torch: one number is often elsewhere
    return _array.along(function, "weight", weight, data, xp)


def is_off(weight: Any) -> bool:
    """Return whether a weight is the number 0, so that no other prediction is needed."""
    return isinstance(weight, float) and weight == 0.0
