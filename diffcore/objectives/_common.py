"""What the objectives share: checked arrays, levels as functions of which derivatives are taken, targets without gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from diffcore import _array, _check, _layout, mesh
from diffcore._array import Array
from diffcore._dispatch import backend_of
from diffcore.levels import Level


def check_network(function: str, network: object, takes: str = "(z, log_snr)", **others: object) -> None:
    """Raise TypeError for a network that cannot be called, or another one that can be left out."""
    _check.callable_(function, "network", network, f"a function of {takes}")
    for argument, other in others.items():
        if other is not None:
            _check.callable_(function, argument, other, "a function of (z, log_snr), or None")


def check_scaling(function: str, argument: str, level: Level, scaling: str) -> None:
    """Raise where the host knows that a level has another scaling."""
    alpha, sigma = (_array.known(part) for part in level[:2])
    if alpha is None or sigma is None:
        return
    total = alpha + sigma if scaling == "flow" else alpha**2 + sigma**2
    if not np.all(np.abs(total - 1.0) < 1e-4):
        rule = {"flow": "alpha + sigma = 1", "vp": "alpha^2 + sigma^2 = 1"}[scaling]
        hint = f"make it by a schedule of scaling {scaling!r}"
        raise _check.error(ValueError, function, argument, f"have {rule}", float(np.max(total)), hint)


def log_snr_of(function: str, level: Level, like: Array) -> Array:
    """Return the log-SNR of a level as an array (B,) or (B, T), in the library and dtype that `like` is computed in."""
    xp = _array.library(like)
    wide = _array.widen(xp, like)
    found = level.log_snr
    if _array.library(found) is not xp:
        found = _array.table_for(np.asarray(found, dtype=np.float64), wide)
    found = xp.astype(found, wide.dtype, copy=False)
    _array.check_lead(function, "level", tuple(found.shape), tuple(like.shape))
    lead = max(1, len(found.shape))
    shape = (like.shape[0], *found.shape[1:]) if lead > 1 else (like.shape[0],)
    return _layout.leading(xp.broadcast_to(found, shape), like)


def by_samples(function: str, loss: Callable[..., Array], x: Array, *given: Any) -> Array:
    """Return loss(x, *given) of DTensors, of which each process works out those of its samples, on ordinary tensors: torch takes
    a DTensor for a constant where it differentiates forwards."""
    if not backend_of(x).whole:
        hint = (
            "`split_meanflow`, `shortcut` and `consistency_pair`, which take no derivative, may be divided in any way"
        )
        raise _check.error(ValueError, function, "x", mesh.WHOLE, x.placements, hint)
    return mesh.local(loss)(x, *given)


def stopped(array: Array) -> Array:
    """Return an array without its gradient."""
    xp = _array.library(array)
    name = "" if xp is None else _array.name(xp)
    if name == "torch":
        return array.detach()
    if name == "jax":
        import jax

        return jax.lax.stop_gradient(array)
    return array


def along(function: str, coefficient: Array, data: Array) -> Array:
    """Return a coefficient of a level ready to meet data."""
    return _array.along(function, "level", coefficient, data, _array.library(data))


def mean(each: Array) -> Array:
    """Return the mean over all axes but the first."""
    flat = _array.flat(each)
    return _array.library(flat).sum(flat, axis=1) / max(flat.shape[1], 1)
