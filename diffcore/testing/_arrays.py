"""How a check speaks to any library: numbers go there in one dtype, and results come back to the host in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from diffcore import _array
from diffcore._array import Array

Float64 = npt.NDArray[np.float64]


def put(values: Any, like: Array | None = None, *, dtype: Any = None) -> Array:
    """Return values as an array of the library, device and dtype of `like`; NumPy float64 without one."""
    host_values = np.array(values, dtype=np.float64)
    if like is None:
        return host_values if dtype is None else host_values.astype(dtype)
    xp = _array.namespace("testing", like=like)
    kind = like.dtype if dtype is None else dtype
    return xp.asarray(host_values, dtype=kind, device=_array.device(like))


def host(array: Array) -> Float64:
    """Return an array of any library on the host, in float64."""
    return _array.to_host(array, np.float64)


def epsilon(array: Array) -> float:
    """Return the distance from 1 to the next number of an array's dtype, bfloat16 too."""
    kind = str(array.dtype).removeprefix("torch.")
    return 2.0**-7 if kind == "bfloat16" else float(np.finfo(kind.rsplit(".", 1)[-1]).eps)


def smallest(array: Array) -> float:
    """Return the smallest normal number of an array's dtype: what lies below it a library may flush to zero."""
    kind = str(array.dtype).removeprefix("torch.").rsplit(".", 1)[-1]
    return 2.0**-126 if kind == "bfloat16" else float(np.finfo(kind).smallest_normal)


def fail_unless(good: Any, identity: str, message: str) -> None:
    """Raise AssertionError, naming the identity that does not hold, unless `good`; not an `assert`, which -O removes."""
    if not bool(good):
        raise AssertionError(f"{identity}: {message}")


def compare(
    identity: str,
    found: Any,
    truth: Any,
    tolerance: Any,
    *,
    where: Any = None,
    what: str = "",
) -> float:
    """Raise AssertionError unless |found - truth| <= tolerance everywhere, naming the identity and the worst place.

    Equal infinities agree; NaN agrees with nothing. Returns the largest error in units of the tolerance.

    Args:
        identity: for the message, for example "Chapman-Kolmogorov: variance".
        found, truth, tolerance: arrays or numbers on the host that broadcast.
        where: what the entries are at, for the message: an array or a list of arrays that broadcast, or a text.
        what: more for the message.
    """
    parts = np.broadcast_arrays(*(np.asarray(part, dtype=np.float64) for part in (found, truth, tolerance)))
    got, want, allowed = parts
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.where(got == want, 0.0, np.abs(got - want))
        ratio = np.where(error == 0.0, 0.0, error / allowed)
    ratio = np.where(np.isnan(ratio) | ~np.isfinite(error), np.inf, ratio)
    if ratio.size == 0:
        return 0.0
    index = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
    if ratio[index] > 1.0:
        place = "" if where is None else f" at {_place(where, index, ratio.shape)}"
        raise AssertionError(
            f"{identity}{place}: {float(got[index])!r}, but should be {float(want[index])!r} within "
            f"{float(allowed[index]):.3g}; off by {float(error[index]):.3g}{', ' + what if what else ''} "
            f"({int(np.sum(ratio > 1.0))} of {ratio.size} entries)"
        )
    return float(ratio[index])


def _place(where: Any, index: tuple[Any, ...], shape: tuple[int, ...]) -> str:
    if isinstance(where, str):
        return f"{where}{[int(i) for i in index] if index else ''}"
    named = where if isinstance(where, dict) else {"entry": where}
    return ", ".join(
        f"{name} = {float(np.broadcast_to(np.asarray(part, dtype=np.float64), shape)[index])!r}"
        for name, part in named.items()
    )
