"""How a check speaks to any library: numbers go there in one dtype, and results come back to the host in float64."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from diffcore import _array, _check, levels
from diffcore._array import Array
from diffcore.levels import Level

Float64 = npt.NDArray[np.float64]


def put(values: Any, like: Array | None = None, *, dtype: Any = None) -> Array:
    """Return values as an array of the library, device and dtype of `like`; NumPy float64 without one."""
    host_values = np.array(values, dtype=np.float64)
    if like is None:
        return host_values if dtype is None else host_values.astype(dtype)
    if not hasattr(like, "dtype"):
        what = "be an array of the library, dtype and device that are checked, such as np.zeros(1, np.float32)"
        raise _check.error(TypeError, "testing", "like", what, like)
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


def largest(array: Array) -> float:
    """Return the largest number of an array's dtype."""
    kind = str(array.dtype).removeprefix("torch.").rsplit(".", 1)[-1]
    return (2.0 - 2.0**-7) * 2.0**127 if kind == "bfloat16" else float(np.finfo(kind).max)


def flat(function: str, **given: Level) -> list[Level]:
    """Return levels of any shapes that line up, numbers too, as arrays of one shape (N,)."""
    made = {name: Level(*map(_as_array, level)) for name, level in given.items() if hasattr(level, "alpha")}
    found = levels.line_up(function, **{**given, **made})
    shape = np.broadcast_shapes(*(tuple(level.log_snr.shape) for level in found))
    xp = _array.library(found[0].log_snr)
    return [Level(*(xp.reshape(xp.broadcast_to(part, shape), (-1,)) for part in level)) for level in found]


def _as_array(part: Array) -> Array:
    return np.asarray(part) if _array.library(part) is None else part


def in_range(function: str, **given: Level) -> list[Level]:
    """Return levels as `flat` does, or raise ValueError, with the place, where a square of alpha or sigma leaves the dtype."""
    found = flat(function, **given)
    for name, level in zip(given, found, strict=True):
        log_snr, like = host(level.log_snr), level.log_snr
        bound = min(math.log(largest(like)), -math.log(smallest(like)))
        wrong = np.flatnonzero(~((np.abs(log_snr) <= bound) | np.isinf(log_snr)))
        if wrong.size:
            kind = str(like.dtype).rsplit(".", 1)[-1]
            raise ValueError(
                f"{function}: `{name}` must have a log-SNR in [-{bound:.1f}, {bound:.1f}], or infinite, in {kind}, got "
                f"{float(log_snr[wrong[0]])!r}{_at(log_snr, wrong)}; beyond, alpha^2 or sigma^2 leaves the range of the dtype"
            )
    return found


def in_order(function: str, **given: Level) -> list[Level]:
    """Return levels as `in_range` does, or raise ValueError, with the place, unless each is at most as noisy as the next."""
    found = in_range(function, **given)
    names, log_snrs = list(given), [host(level.log_snr) for level in found]
    for at, (less, more) in enumerate(pairwise(log_snrs)):
        wrong = np.flatnonzero(~(less >= more))
        if wrong.size:
            raise ValueError(
                f"{function}: `{names[at]}` must have a log-SNR >= that of `{names[at + 1]}`, the noisier level, got "
                f"{float(less[wrong[0]])!r} and {float(more[wrong[0]])!r}{_at(less, wrong)}; exchange them"
            )
    return found


def _at(values: Float64, wrong: npt.NDArray[np.intp]) -> str:
    return "" if values.size == 1 else f" at [{wrong[0]}]"


def where_at(**given: Level) -> dict[str, Float64]:
    """Return the log-SNRs of levels for the message of `compare`."""
    return {f"log_snr_{name}": host(level.log_snr) for name, level in given.items()}


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
